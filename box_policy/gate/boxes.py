"""A box as the gate sees it: its policy in force, and what is open on its behalf."""

from typing import Protocol

from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy


class Live(Protocol):
    """Something open on behalf of a box."""

    def cut(self, reason: Reason) -> None:
        """End it at once, with RST both ways and a record. Repeating it does nothing."""


class GatedBox:
    """One box. ``policy`` and ``generation`` change together, between two events of the loop."""

    def __init__(self, box_id: str, policy: CompiledPolicy, generation: int) -> None:
        self.id = box_id
        self.policy = policy
        self.generation = generation
        self.live: set[Live] = set()
        self.pending = 0
        """Connections and requests without a verdict yet."""
        self.questions = 0
        """DNS questions being asked."""
        self.dns_connections = 0
        self._limit_recorded = float("-inf")

    def put_policy(self, policy: CompiledPolicy, generation: int) -> int:
        """Replace the policy in force."""
        self.policy = policy
        self.generation = generation
        return 0

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
