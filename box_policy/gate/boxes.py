"""A box as the gate sees it: its policy in force, and what is open on its behalf."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from box_policy.audit.bucket import Bucket
from box_policy.gate.failures import Fallible, attempt, every
from box_policy.gate.limits import Limits
from box_policy.gate.poller import Poller
from box_policy.policy.addresses import Address
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy, Verdict

log = logging.getLogger(__name__)


class Live(Fallible, Protocol):
    """Something open on behalf of a box."""

    def cut(self, reason: Reason) -> None:
        """End it at once, with RST both ways and a record. Repeating it does nothing."""

    def judge_again(self) -> bool:
        """The box has a new policy: go on if it allows what is open, or what is not yet decided; else end
        it as ``cut`` does, with ``POLICY_CHANGED``. True if it was ended."""

    def buffered(self) -> int:
        """Bytes that are kept for it, on their way or not yet judged."""


class GatedBox:
    """One box. ``policy`` and ``generation`` change together, between two events of the loop."""

    def __init__(
        self, box_id: str, policy: CompiledPolicy, generation: int, limits: Limits | None = None
    ) -> None:
        limits = limits or Limits()
        self.id = box_id
        self.policy = policy
        self.generation = generation
        self.poller = Poller()
        """Watches its descriptors in the lane."""
        self.live: set[Live] = set()
        """Connections, from accept to close."""
        self.asking: set[Live] = set()
        """DNS questions that upstream has been asked."""
        self.pending = 0
        """Connections and requests without a verdict yet, and connections that are being dialled for."""
        self.questions = 0
        """DNS questions that are not answered yet."""
        self.dns_connections = 0
        self.http_connections = 0
        self.roomy = 0
        """Connections, relayed or HTTP, whose buffers may grow."""
        self.overheard = 0
        """Names that went by and are being resolved."""
        self.judged_again: dict[tuple[Address, str | None, Address], Verdict] = {}
        """By the policy in force, on what was open when it came: many connections go to few places."""
        self.new_connections = Bucket(limits.connection_rate, limits.connection_burst)
        self.new_questions = Bucket(limits.question_rate, limits.question_burst)
        self._limit_recorded: dict[str, float] = {}
        self._records: list[Callable[[], None]] | None = None

    def put_policy(self, policy: CompiledPolicy, generation: int) -> int:
        """Replace the policy in force, and end what it no longer allows. Returns how much that was."""
        self.policy = policy
        self.generation = generation
        self.judged_again = {}
        records: list[Callable[[], None]] = []
        self._records = records
        ended = 0
        try:
            for live in [*self.live, *self.asking]:
                try:
                    ended += live.judge_again()
                except Exception as error:  # the others have their turn
                    log.exception("a connection could not be judged again and is closed")
                    every(partial(live.failed, error))
                    ended += 1
            return ended
        finally:
            self._records = None
            every(*records)

    def record_end(self, record: Callable[[], None]) -> None:
        """Record an end, by a call that doesn't raise: now, or once a new policy has ended all that it ends.
        To be cut is urgent, to be told of it isn't."""
        if self._records is None:
            record()
        else:
            self._records.append(record)

    def may_record_limit(self, now: float, what: str) -> bool:
        """True once a second for each cap, of which there are few: what a box does at them must not fill the
        log."""
        if now - self._limit_recorded.get(what, float("-inf")) < 1:
            return False
        self._limit_recorded[what] = now
        return True

    def shed(self, most: int) -> None:
        """Cut those that keep most, until all together keep no more than that many bytes."""
        sizes = [(size, live) for live in self.live if (size := live.buffered())]
        excess = sum(size for size, _ in sizes) - most
        if excess <= 0:
            return
        for size, live in sorted(sizes, key=lambda item: item[0], reverse=True):
            live.cut(Reason.LIMIT)
            excess -= size
            if excess <= 0:
                return

    def cut_all(self, reason: Reason) -> None:
        """End everything that is open."""
        for live in [*self.live, *self.asking]:
            attempt(live, live.cut, reason)
