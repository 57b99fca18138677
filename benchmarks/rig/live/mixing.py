"""Does every connection fit one whole policy, while two of them take turns a hundred times a second?

By the one the first name may be reached, at the first address alone; by the other the second name, at the
second address. Both names have both addresses. The address that is dialled tells which ``denied_cidrs`` was
held against it, and the name which ``allowed_domains``.
"""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from benchmarks.rig.live.bench import Bench, Count, Figure, Timing
from benchmarks.rig.live.operator import Operator, Update
from benchmarks.rig.live.outcomes import Outcome
from benchmarks.rig.live.plan import FIRST, FIRST_NAME, SECOND, SECOND_NAME, Policy
from box_policy.policy.reasons import Reason

UPDATES: Final = 1000
SECONDS: Final = 10
OPERATORS: Final = 4
"""Connections to the control endpoint, which take turns: a PUT may take longer than the time between two."""
SHOWN: Final = 10
"""Misfits that are told in words."""


def policy(number: int) -> Policy:
    """The even ones allow the first, the odd ones the second. No two are the same: that is no update."""
    name, denied = (SECOND_NAME, FIRST) if number % 2 else (FIRST_NAME, SECOND)
    return {
        "mode": "custom",
        "allowed_domains": [name, f"update-{number}.test"],
        "denied_cidrs": [f"{denied}/32"],
    }


class Connection(NamedTuple):
    """As its client saw it."""

    number: int
    """The hello carries it to the origin."""
    port: int
    """Which client's it is."""
    name: str
    address: str
    """Where it was bound for."""
    outcome: Outcome
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one policy says to a connection."""

    rule: str
    reason: Reason
    dialled: str | None = None
    """None: denied."""
    outcome: Outcome = Outcome.RESET
    """What the client sees, unless a new policy comes in between."""


def judgement(put: Policy, connection: Connection) -> Judgement:
    """What a policy of this benchmark must say to a connection of it."""
    name, denied = put["allowed_domains"][0], put["denied_cidrs"][0]
    if f"{connection.address}/32" == denied:
        return Judgement(f"denied_cidrs: {denied}", Reason.CIDR_DENIED)
    if connection.name != name:
        none = "allowed_domains: no entry matches"
        return Judgement(none, Reason.NAME_NOT_ALLOWED, outcome=Outcome.DENIED)
    dialled = FIRST if name == FIRST_NAME else SECOND
    return Judgement(f"allowed_domains: {name}", Reason.NAME_ALLOWED, dialled, Outcome.ANSWERED)


class Judge:
    """Holds connections against the policies that were in force."""

    def __init__(self, updates: Sequence[Update], seen: Mapping[int, str]) -> None:
        """``seen``: the address at which the origin saw a connection, by its number."""
        self._updates = {update.generation: update for update in updates}
        self._seen = seen

    def misfit(
        self, connection: Connection, decision: Mapping[str, Any], end: Mapping[str, Any] | None
    ) -> str | None:
        """Why a connection doesn't fit the policy that its records say; None if it does.

        Args:
            decision: the gate's record of its verdict.
            end: that of its end, if it was allowed.
        """
        update = self._updates.get(decision["generation"])
        if update is None:
            return "its generation is none of ours"
        after = self._updates.get(update.generation + 1)
        if update.sent > connection.ended or (after is not None and after.answered < connection.began):
            return "its policy was not in force at any time during the connection"
        wanted = judgement(update.policy, connection)
        allowed = decision["verdict"] == "allow"
        if (decision["rule"], decision.get("dialled")) != (wanted.rule, wanted.dialled):
            return f"its policy says {wanted.rule}, dialled {wanted.dialled}"
        if allowed != (wanted.dialled is not None):
            return "verdict and policy differ"
        cut = decision["reason"] == Reason.POLICY_CHANGED and not allowed
        if decision["reason"] != wanted.reason and not cut:
            return f"the reason is not {wanted.reason}"
        if self._seen.get(connection.number) not in (None, wanted.dialled):
            return f"the origin saw it at {self._seen[connection.number]}"
        if end is not None and end["reason"] == Reason.POLICY_CHANGED:
            later = self._updates.get(end["generation"])
            if later is None or judgement(later.policy, connection).rule != end["rule"]:
                return "the policy that cut it allows it, or says something else"
            cut = True
        elif end is not None and end["reason"] != Reason.CLOSED:
            return f"it ended with {end['reason']}"
        if connection.outcome is Outcome.ANSWERED and connection.number not in self._seen:
            return "it was answered, but the origin has not seen it"
        if connection.outcome is not wanted.outcome and not (cut and connection.outcome is Outcome.RESET):
            return f"its policy says that it is {wanted.outcome}"
        return None


def mixing(bench: Bench) -> Iterator[Figure]:
    """Put policies while clients connect; then judge every connection."""
    bench.rig.origin.order("forget")
    records = bench.records()
    with ExitStack() as stack:
        operators = [stack.enter_context(bench.operator()) for _ in range(OPERATORS)]
        first = operators[0].put(policy(0))
        threads = stack.enter_context(ThreadPoolExecutor(OPERATORS))
        bench.rig.box.begin("mix")
        began = time.monotonic()
        shares = threads.map(lambda turn: _put_in_turn(operators[turn], turn, began), range(OPERATORS))
        updates = [first, *itertools.chain.from_iterable(shares)]
        took = time.monotonic() - began
        bench.rig.box.write_line(b"stop")
    rows = bench.rig.box.finish()["connections"]
    connections = [Connection._make([*before, Outcome(outcome), *times]) for *before, outcome, times in rows]
    count = len(connections)
    entries = records.read_until(lambda entries: _are_whole(_since(entries, first.generation), count))
    entries = _since(entries, first.generation)
    seen = dict(bench.rig.origin.order("report")["seen"])
    misfits, kinds = _judged(Judge(updates, seen), connections, entries)
    puts = [update.answered - update.sent for update in updates[1:]]
    yield Timing("mixing: PUT answered under load", puts)
    yield Count("mixing: updates", len({update.generation for update in updates[1:]}), UPDATES)
    yield Count("mixing: updates a second", len(puts) / took)
    yield Count("mixing: connections judged", len(connections))
    for kind, count in sorted(kinds.items()):
        yield Count(f"mixing: ... {kind}", count)
    yield Count("mixing: connections that fit no whole policy", len(misfits), 0, misfits[:SHOWN])


def _put_in_turn(operator: Operator, turn: int, began: float) -> list[Update]:
    updates = []
    for number in range(turn, UPDATES, OPERATORS):
        time.sleep(max(0.0, began + number * SECONDS / UPDATES - time.monotonic()))
        updates.append(operator.put(policy(1 + number)))
    return updates


def _since(entries: list[dict[str, Any]], generation: int) -> list[dict[str, Any]]:
    """The records from that policy's on. Those before are of other measurements: they are written late."""
    for index, entry in enumerate(entries):
        if entry["event"] == "policy" and entry["generation"] == generation:
            return entries[index:]
    return []


def _are_whole(entries: Sequence[Mapping[str, Any]], connections: int) -> bool:
    decisions = [entry for entry in entries if entry["event"] == "decision"]
    ends = sum(entry["event"] == "end" for entry in entries)
    return len(decisions) >= connections and ends >= sum(entry["verdict"] == "allow" for entry in decisions)


def _judged(
    judge: Judge, connections: Sequence[Connection], entries: Sequence[Mapping[str, Any]]
) -> tuple[list[str], Counter[str]]:
    """The misfits in words, and how many connections came to what.

    A client has one connection at a time, so the gate's records of its port are in the same order.
    """
    ends = {entry["connection"]: entry for entry in entries if entry["event"] == "end"}
    decisions = defaultdict(list)
    for entry in entries:
        if entry["event"] == "decision":
            decisions[entry["claimed_port"]].append(entry)
    of_port = {
        port: iter(sorted(some, key=lambda entry: entry["connection"])) for port, some in decisions.items()
    }
    misfits: list[str] = []
    kinds: Counter[str] = Counter()
    for connection in connections:
        decision = next(of_port.get(connection.port, iter(())), None)
        if decision is None:
            misfits.append(f"{connection}: the gate has no record of it")
            continue
        end = ends.get(decision["connection"])
        why = judge.misfit(connection, decision, end)
        if decision["verdict"] == "allow" and end is None:
            why = why or "the gate has no record of its end"
        if why is not None:
            misfits.append(f"{connection}: {why}\n  {decision}\n  {end}")
        kinds[f"{decision['verdict']}, {connection.outcome}"] += 1
    misfits += [f"nobody's record: {entry}" for some in of_port.values() for entry in some]
    return misfits, kinds
