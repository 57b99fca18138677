"""Which policy is in force for which box, and its generation.

The store belongs to the event loop: a change is made in one step, between two events, so changes are
serialised, nobody sees half of one, and what was acknowledged last is what is in force.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from box_policy.audit.records import Outcome, PolicyRecord
from box_policy.audit.sinks import Audit
from box_policy.control.threads import in_thread
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

log = logging.getLogger(__name__)

_COMPILED_INLINE: Final = 1_000
"""Entries of a policy that the loop compiles itself, in about 5 ms; more are compiled in a thread."""


class UnknownBoxError(Exception):
    """There is no box of that name."""

    def __init__(self, box: str) -> None:
        super().__init__(f"there is no box {box!r}")
        self.box = box


class BoxExistsError(Exception):
    """There is a box of that name already."""


class StaleGenerationError(Exception):
    """The policy in force isn't of the generation that the change was meant for."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the policy in force is generation {current}")
        self.current = current


@dataclass(frozen=True, slots=True)
class InForce:
    """A box's policy in force."""

    box: str
    compiled: CompiledPolicy
    generation: int
    """1 for a box's first policy, one more with each that differs from the one before."""
    source: str
    """Who put it: ``control``, a file's path, or another word for people."""
    since: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    @property
    def policy(self) -> NetworkPolicy:
        """As it was written, in canonical form."""
        return self.compiled.policy


class Enforcer(Protocol):
    """What puts policies in force: the gate."""

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        """The policy in the form that judges. Called from any thread."""

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int) -> int:
        """Put it in force: what begins from now on is judged by it, and what is open and no longer allowed
        has been cut when this returns. Returns how many connections were cut. The box may be new."""

    def drop(self, box_id: str) -> None:
        """Forget a box, and end all that is open."""


class PolicyStore:
    """Boxes, their policies and generations. To be used from the event loop alone."""

    def __init__(self, enforcer: Enforcer, audit: Audit) -> None:
        self._enforcer = enforcer
        self._audit = audit
        self._boxes: dict[str, InForce] = {}
        self._subscribers: list[Callable[[InForce], None]] = []

    def __iter__(self) -> Iterator[InForce]:
        """Every box, by name."""
        return iter([self._boxes[box] for box in sorted(self._boxes)])

    def __contains__(self, box: str) -> bool:
        return box in self._boxes

    def __len__(self) -> int:
        return len(self._boxes)

    def get(self, box: str) -> InForce:
        """The policy in force for a box. Raises UnknownBoxError."""
        try:
            return self._boxes[box]
        except KeyError:
            raise UnknownBoxError(box) from None

    def subscribe(self, subscriber: Callable[[InForce], None]) -> Callable[[], None]:
        """Have every policy told that comes into force. Returns what ends that."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def create(self, box: str, policy: NetworkPolicy | CompiledPolicy, *, source: str) -> InForce:
        """Add a box with its first policy. Raises BoxExistsError."""
        if box in self._boxes:
            raise BoxExistsError(f"there is a box {box!r} already")
        compiled = policy if isinstance(policy, CompiledPolicy) else self._enforcer.compile(policy)
        return self._enforce(InForce(box, compiled, 1, source))

    def remove(self, box: str, *, source: str, detail: str = "") -> None:
        """Forget a box: all that it has open ends. ``detail`` says why. Raises UnknownBoxError."""
        last = self.get(box)
        self._enforcer.drop(box)
        del self._boxes[box]
        record = PolicyRecord(
            box=box, generation=last.generation, outcome=Outcome.REMOVED, source=source, detail=detail
        )
        _tell(self._audit, record)

    async def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        """The policy in the form that judges, made without holding up the loop."""
        lists = (policy.allowed_domains, policy.allowed_cidrs, policy.denied_cidrs)
        if sum(len(entries or ()) for entries in lists) <= _COMPILED_INLINE:
            return self._enforcer.compile(policy)
        return await in_thread(self._enforcer.compile, policy)

    async def put(
        self,
        box: str,
        policy: NetworkPolicy | CompiledPolicy,
        *,
        source: str,
        expected: Collection[int] | None = None,
    ) -> InForce:
        """Put a policy in force for a known box, in place of the one before. The same one changes nothing.

        When it returns, the policy is in force, and connections that it no longer allows have been cut.

        Args:
            policy: as written, or as :meth:`compile` makes it, which for many boxes is done once.
            expected: the generations that the change is meant for; None for whichever is in force.

        Raises:
            UnknownBoxError: also when the box is removed meanwhile.
            StaleGenerationError: none of ``expected`` is in force.
        """
        self._check(box, expected)
        compiled = policy if isinstance(policy, CompiledPolicy) else await self.compile(policy)
        # What follows is one step; what was checked before may have changed while it was compiled.
        before = self._check(box, expected)
        if compiled.policy == before.policy:
            return before
        return self._enforce(InForce(box, compiled, before.generation + 1, source))

    def _check(self, box: str, expected: Collection[int] | None) -> InForce:
        current = self.get(box)
        if expected is not None and current.generation not in expected:
            raise StaleGenerationError(current.generation)
        return current

    def _enforce(self, new: InForce) -> InForce:
        cut = self._enforcer.put_policy(new.box, new.compiled, new.generation)
        self._boxes[new.box] = new
        detail = new.policy.kind + (f", {cut} connections cut" if cut else "")
        record = PolicyRecord(
            box=new.box, generation=new.generation, outcome=Outcome.ACCEPTED, source=new.source, detail=detail
        )
        # It is in force: whoever fails to hear of it changes nothing about that.
        _tell(self._audit, record)
        for subscriber in self._subscribers:
            _tell(subscriber, new)
        return new


def _tell[News](listener: Callable[[News], None], news: News) -> None:
    try:
        listener(news)
    except Exception:
        log.exception("a new policy is in force, but somebody could not be told")
