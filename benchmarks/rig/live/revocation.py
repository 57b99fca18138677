"""How long after a PUT is sent the last of a thousand connections has ended that it no longer allows."""

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.rig import plan
from benchmarks.rig.live.bench import Bench, Count, Figure, Timing
from benchmarks.rig.live.plan import DENY_ALL, KEPT_NAME, NARROW, WIDE, Policy
from benchmarks.rig.process import BenchmarkError

CONNECTIONS: Final = 1000
ROUNDS: Final = 3
_TARGET: Final = 0.1


def revocation(bench: Bench) -> Iterator[Figure]:
    """Idle TLS connections, then HTTP ones, all cut; and TLS ones of which half may stay."""
    box = bench.rig.box
    for name, order, rounds in (
        ("TLS", {"order": "keep", "name": plan.NAME}, ROUNDS),
        ("HTTP", {"order": "keep_http"}, 1),
    ):
        ends = []
        for _ in range(rounds):
            _put(bench, WIDE)
            box.order(**order, group="cut", count=CONNECTIONS)
            ends.append(_revoke(bench, DENY_ALL, "cut", CONNECTIONS))
        yield from _figures(f"{CONNECTIONS:,} {name} cut", ends)
    _put(bench, WIDE)
    for _ in range(CONNECTIONS // 50):
        # In turn, so that those that stay are all over the gate's books.
        box.order("keep", group="cut", count=25, name=plan.NAME)
        box.order("keep", group="stay", count=25, name=KEPT_NAME)
    box.order("send", group="stay", number=1)
    half = _revoke(bench, NARROW, "cut", CONNECTIONS // 2)
    box.order("send", group="stay", number=2)
    damaged = box.order("receive", group="stay", numbers=[1, 2])["damaged"]
    yield from _figures(f"{CONNECTIONS // 2:,} of {CONNECTIONS:,} TLS cut", [half])
    yield Count("connections that stayed and lost a byte", damaged, 0)


def _put(bench: Bench, policy: Policy) -> None:
    with bench.operator() as operator:
        operator.put(policy)


def _revoke(bench: Bench, policy: Policy, group: str, count: int) -> dict[str, Any]:
    """Put the policy; seconds until it was answered, and until the last end on either side."""
    origin, box = bench.rig.origin, bench.rig.box
    before = origin.order("report")["open"]
    origin.order("forget")
    with bench.operator() as operator:
        operator.connect()
        box.begin("await_ends", group=group)
        update = operator.put(policy)
    seen = box.finish()
    if seen["left"]:
        raise BenchmarkError(f"{seen['left']} connections live on under a policy that forbids them")
    at_origin = origin.order("report")
    while at_origin["open"] > before - count:
        at_origin = origin.order("report")
    return {
        "put": update.answered - update.sent,
        "client": seen["last"] - update.sent,
        "origin": at_origin["last_end"] - update.sent,
        "closed": seen["closed"],
    }


def _figures(name: str, ends: list[dict[str, Any]]) -> Iterator[Figure]:
    yield Timing(f"{name}: PUT answered", [end["put"] for end in ends])
    yield Timing(f"{name}: last client reset", [end["client"] for end in ends], _TARGET)
    yield Timing(f"{name}: last end at the origin", [end["origin"] for end in ends], _TARGET)
    yield Count(f"{name}: clients not reset but closed", sum(end["closed"] for end in ends), 0)
