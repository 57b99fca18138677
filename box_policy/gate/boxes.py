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

    def __init__(self, box_id: str, policy: CompiledPolicy) -> None:
        self.id = box_id
        self.policy = policy
        self.generation = 1
        self.live: set[Live] = set()
        self.pending = 0
        """Connections without a verdict yet."""

    def put_policy(self, policy: CompiledPolicy) -> int:
        """Replace the policy in force. Returns the new generation."""
        self.policy = policy
        self.generation += 1
        return self.generation

    def cut_all(self, reason: Reason) -> None:
        """End everything that is open."""
        for live in list(self.live):
            live.cut(reason)
