"""What a box says it wants, and how that is written down."""

import socket
import time
from dataclasses import dataclass, field
from typing import Final

from box_policy.audit.records import Event, Protocol, Record, escape_name, listed, next_connection
from box_policy.gate.boxes import GatedBox
from box_policy.gate.destination import Destination
from box_policy.policy.addresses import Address
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict
from box_policy.wire.client_hello import ClientHello

NAME_MAY_DECIDE: Final = (Reason.ADDRESS_NOT_ALLOWED, Reason.DENY_ALL)
"""Denials of a bare address after which the first bytes are looked at: a name may allow it, or the
client can be told in its own protocol."""


@dataclass(slots=True, eq=False)
class Claim:
    """Everything known of one connection that the box chose. Never trusted."""

    box: GatedBox
    destination: Destination
    protocol: Protocol = Protocol.TCP
    name: str | None = None
    """Canonical: what is judged."""
    name_as_sent: bytes | None = None
    """What is recorded; may be anything."""
    hello: ClientHello | None = None
    """In which the name that was judged came."""
    ech: bool = False
    resolved: tuple[Address, ...] = ()
    number: int = field(default_factory=next_connection)
    accepted: float = field(default_factory=time.monotonic)

    @property
    def speaks_tls(self) -> bool:
        """The client can be told why it is refused, by an alert."""
        return self.protocol in (Protocol.TLS, Protocol.POSTGRESQL)

    def decision(self, verdict: Verdict, *, dialled: Address | None = None, detail: str = "") -> Record:
        """The record of a verdict on this claim."""
        if verdict.dropped and not detail:
            detail = "not used: " + ", ".join(listed(verdict.dropped))
        return Record(
            event=Event.DECISION,
            connection=self.number,
            box=self.box.id,
            generation=self.box.generation,
            protocol=self.protocol,
            allowed=verdict.allowed,
            reason=verdict.reason,
            rule=verdict.rule,
            name=self._recorded_name(),
            claimed_address=str(self.destination.address),
            claimed_port=self.destination.port,
            resolved=listed(self.resolved),
            dialled=str(dialled) if dialled is not None else None,
            mismatch=bool(self.resolved) and self.destination.address not in self.resolved,
            ech=self.ech,
            detail=detail,
        )

    def end(
        self, verdict: Verdict, *, dialled: Address | None, up: int, down: int, detail: str = ""
    ) -> Record:
        """The record of an allowed connection's end; the verdict holds the reason of the end."""
        record = self.decision(verdict, dialled=dialled, detail=detail)
        record.event = Event.END
        record.allowed = True
        record.bytes_up = up
        record.bytes_down = down
        record.duration = time.monotonic() - self.accepted
        return record

    def final_denial(self) -> Verdict | None:
        """The denial that is certain before this claim has come to a dial; None while there is hope.

        Without a name there is, as long as the policy allows any.
        """
        policy = self.box.policy
        verdict = policy.judge_address(self.destination.address)
        if verdict.reason is Reason.ADDRESS_NOT_ALLOWED and self.name is not None:
            verdict = policy.judge_name(self.name)
        elif verdict.reason is Reason.ADDRESS_NOT_ALLOWED:
            return None
        return None if verdict.allowed else verdict

    def judge_again(self, dialled: Address) -> Verdict:
        """What the policy in force says to this claim, now that it has come to a connection to ``dialled``.

        What was allowed by address alone has no name: none was read.
        """
        key = (self.destination.address, self.name, dialled)
        verdict = self.box.judged_again.get(key)
        if verdict is None:
            verdict = self.box.judged_again[key] = self._judge_again(dialled)
        return verdict

    def _judge_again(self, dialled: Address) -> Verdict:
        policy = self.box.policy
        claimed = policy.judge_address(self.destination.address)
        if not claimed.allowed and claimed.reason not in NAME_MAY_DECIDE:
            return claimed
        by_address = policy.judge_address(dialled)
        if by_address.allowed or self.name is None:
            return by_address
        return policy.judge_resolution(self.name, (dialled,))

    def _recorded_name(self) -> str | None:
        if self.name_as_sent is not None:
            return escape_name(self.name_as_sent)
        return self.name


FAILED: Final = Verdict.denied(Reason.INTERNAL_ERROR)
"""What becomes of a claim where the gate itself fails. Made beforehand: making verdicts may be what fails."""


def limit_record(box: GatedBox, protocol: Protocol, what: str) -> Record:
    """The record of a box at one of its caps, of which one a second is enough."""
    return _nameless(box, protocol, Reason.LIMIT, f"too many {what} at once; one such record a second")


def failure_record(box: GatedBox, protocol: Protocol) -> Record:
    """The record of a connection or a question that came to nothing before anything was known of it."""
    return _nameless(box, protocol, Reason.INTERNAL_ERROR)


def _nameless(box: GatedBox, protocol: Protocol, reason: Reason, detail: str = "") -> Record:
    return Record(
        event=Event.DECISION,
        connection=next_connection(),
        box=box.id,
        generation=box.generation,
        protocol=protocol,
        allowed=False,
        reason=reason,
        detail=detail,
    )


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A connection that starts with HTTP, on its way to the HTTP layer. The receiver owns the socket."""

    sock: socket.socket
    received: bytes
    claim: Claim
