"""A box as the gate sees it: its policy in force, and what is open on its behalf."""

import logging
from collections.abc import Callable
from typing import Protocol

from box_policy.policy.addresses import Address
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy, Verdict

log = logging.getLogger(__name__)


class Live(Protocol):
    """Something open on behalf of a box."""

    def cut(self, reason: Reason) -> None:
        """End it at once, with RST both ways and a record. Repeating it does nothing."""

    def judge_again(self) -> bool:
        """The box has a new policy: go on if it allows what is open, or what is not yet decided; else end
        it as ``cut`` does, with ``POLICY_CHANGED``. True if it was ended."""


class GatedBox:
    """One box. ``policy`` and ``generation`` change together, between two events of the loop."""

    def __init__(self, box_id: str, policy: CompiledPolicy, generation: int) -> None:
        self.id = box_id
        self.policy = policy
        self.generation = generation
        self.live: set[Live] = set()
        """Connections, from accept to close."""
        self.asking: set[Live] = set()
        """DNS questions that upstream has been asked."""
        self.pending = 0
        """Connections and requests without a verdict yet."""
        self.questions = 0
        """DNS questions that are not answered yet."""
        self.dns_connections = 0
        self.overheard = 0
        """Names that went by and are being resolved."""
        self.judged_again: dict[tuple[Address, str | None, Address], Verdict] = {}
        """By the policy in force, on what was open when it came: many connections go to few places."""
        self._limit_recorded = float("-inf")
        self._records: list[Callable[[], None]] | None = None

    def put_policy(self, policy: CompiledPolicy, generation: int) -> int:
        """Replace the policy in force, and end what it no longer allows. Returns how much that was."""
        self.policy = policy
        self.generation = generation
        self.judged_again = {}
        records: list[Callable[[], None]] = []
        self._records = records
        try:
            return sum(map(_ended_by_new_policy, [*self.live, *self.asking]))
        finally:
            self._records = None
            for record in records:
                record()

    def record_end(self, record: Callable[[], None]) -> None:
        """Record an end, by a call that doesn't raise: now, or once a new policy has ended all that it ends.
        To be cut is urgent, to be told of it isn't."""
        if self._records is None:
            record()
        else:
            self._records.append(record)

    def may_record_limit(self, now: float) -> bool:
        """True once a second: what a box does at its caps must not fill the log."""
        if now - self._limit_recorded < 1:
            return False
        self._limit_recorded = now
        return True

    def cut_all(self, reason: Reason) -> None:
        """End everything that is open."""
        for live in list(self.live):
            live.cut(reason)


def _ended_by_new_policy(live: Live) -> bool:
    """Whatever goes wrong with one, the others have their turn."""
    try:
        return live.judge_again()
    except Exception:
        log.exception("a connection could not be judged again and is closed")
        try:
            live.cut(Reason.INTERNAL_ERROR)
        except Exception:
            log.exception("a connection that failed in the gate could not be closed")
        return True
