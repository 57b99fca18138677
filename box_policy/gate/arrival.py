"""A connection from accept to verdict."""

import logging
import socket
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from box_policy.audit.records import Protocol, escape_name
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import FAILED, NAME_MAY_DECIDE, Claim, HandedOver
from box_policy.gate.destination import Destination, original_destination
from box_policy.gate.dial import Dial
from box_policy.gate.failures import attempt, every
from box_policy.gate.farewell import Farewell
from box_policy.gate.poller import ERROR, HANG_UP, QUIET, READ
from box_policy.gate.reset import reset
from box_policy.gate.resolution import Resolution
from box_policy.policy.domains import name_from_wire
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict
from box_policy.wire.alerts import ACCESS_DENIED, INTERNAL_ERROR, fatal_alert
from box_policy.wire.client_hello import ClientHello, ClientHelloReader, Fault, Malformed
from box_policy.wire.first_bytes import Start, classify
from box_policy.wire.postgresql import ACCEPTED, SSL_REQUEST

if TYPE_CHECKING:
    from box_policy.gate.lane import Lane

log = logging.getLogger(__name__)

_READ_SIZE: Final = 16 * 1024

_FAULTS: Final = {
    Fault.INVALID: Reason.HELLO_INVALID,
    Fault.TOO_LARGE: Reason.HELLO_TOO_LARGE,
    Fault.NAME_AMBIGUOUS: Reason.NAME_INVALID,
    Fault.NAME_EMPTY: Reason.NO_NAME,
}


class Arrival:
    """Owns the client's socket until the verdict, and then gives it away."""

    __slots__ = ("_claim", "_done", "_hello", "_lane", "_resolving", "_sock")

    def __init__(
        self, lane: "Lane", sock: socket.socket, box: GatedBox, destination: Destination | None
    ) -> None:
        self._lane = lane
        self._sock = sock
        self._claim = Claim(box, destination or _destination(sock))
        self._hello: ClientHelloReader | None = None
        self._resolving = False
        self._done = False
        lane.arriving.start(self, self._claim.accepted)
        box.live.add(self)
        box.pending += 1

    def begin(self, received: bytes) -> None:
        """Judge the destination by itself; look at the first bytes if that does not decide."""
        verdict = self._claim.box.policy.judge_address(self._claim.destination.address)
        if verdict.allowed:
            self._dial(verdict, received)
        elif verdict.reason not in NAME_MAY_DECIDE:
            self._deny(verdict)
        else:
            limits = self._lane.limits
            self._hello = ClientHelloReader(limits.hello, limits.hello_extensions)
            self._claim.box.poller.watch(self._sock.fileno(), READ, self)
            if received:
                self._take(received)

    def ready(self, events: int) -> None:
        if self._resolving:
            if events & (HANG_UP | ERROR):
                self._deny(Verdict.denied(Reason.CLIENT_GONE))
            return
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._deny(Verdict.denied(Reason.CLIENT_GONE), detail="closed before it named a host")

    def overdue(self) -> None:
        self._deny(Verdict.denied(Reason.TIMEOUT))

    def failed(self, error: Exception) -> None:
        self._end(FAILED)

    def cut(self, reason: Reason) -> None:
        self._end(Verdict.denied(reason))

    def judge_again(self) -> bool:
        denial = self._claim.final_denial()
        if denial is not None:
            self._end(Verdict.denied(Reason.POLICY_CHANGED, denial.rule))
            return True
        verdict = self._claim.box.policy.judge_address(self._claim.destination.address)
        if verdict.allowed and self._hello is not None:
            self._claim.name = None  # its address lets it through; the name may be false
            self._dial(verdict, bytes(self._hello.received))
        return False

    def buffered(self) -> int:
        return len(self._hello.received) if self._hello is not None else 0

    def _take(self, data: bytes) -> None:
        hello = self._hello
        if hello is None or self._done:
            return
        result = hello.feed(data)  # keeps all bytes, whatever the protocol turns out to be
        start = classify(hello.received)
        if start is Start.TLS:
            if self._claim.protocol is Protocol.TCP:
                self._claim.protocol = Protocol.TLS
            if isinstance(result, ClientHello):
                self._judge_hello(result)
            elif isinstance(result, Malformed):
                self._deny(Verdict.denied(_FAULTS[result.fault]), detail=result.detail)
        elif start is Start.NEED_MORE:
            pass
        elif self._claim.protocol is Protocol.POSTGRESQL:
            self._deny(Verdict.denied(Reason.HELLO_INVALID), detail="no TLS behind the SSLRequest")
        elif start is Start.HTTP:
            self._hand_over(bytes(hello.received))
        elif start is Start.POSTGRESQL and hello.received == SSL_REQUEST:
            self._accept_ssl_request()
        else:
            # Also an SSLRequest with bytes behind it: no client goes on before it is answered, and what came
            # in the clear must not be taken for the start of what is encrypted (CVE-2021-23214).
            detail = f"starts with {escape_name(bytes(hello.received[:16]))}"
            self._deny(Verdict.denied(Reason.PROTOCOL_UNKNOWN), detail=detail)

    def _accept_ssl_request(self) -> None:
        """PostgreSQL's client has to hear that there will be TLS before it says to whom. The upstream is
        asked for the same before anything else is sent there."""
        self._claim.protocol = Protocol.POSTGRESQL
        self._hello = ClientHelloReader()
        try:
            self._sock.send(ACCEPTED)  # one byte into an empty buffer
        except OSError:
            self._end(Verdict.denied(Reason.CLIENT_GONE))

    def _judge_hello(self, hello: ClientHello) -> None:
        claim = self._claim
        claim.hello = hello
        claim.ech = hello.ech
        claim.name_as_sent = hello.server_name
        if hello.server_name is None:
            self._deny(Verdict.denied(Reason.NO_NAME))
            return
        claim.name = name_from_wire(hello.server_name)
        if claim.name is None:
            self._deny(Verdict.denied(Reason.NAME_INVALID))
            return
        policy = claim.box.policy
        verdict = policy.judge_name(claim.name)
        if verdict.allowed and hello.ech and policy.operator.deny_ech:
            verdict = Verdict.denied(Reason.ECH_DENIED, verdict.rule)
        if not verdict.allowed:
            self._deny(verdict)
            return
        self._resolving = True
        self._lane.resolve(claim.name, self._resolved, self._may_ask, claim.box.id)
        if not self._done:
            claim.box.poller.watch(self._sock.fileno(), QUIET, self)

    def _may_ask(self) -> bool:
        claim = self._claim
        return not self._done and claim.name is not None and claim.box.policy.judge_name(claim.name).allowed

    def _resolved(self, resolution: Resolution) -> None:
        """Called by the resolver, so whatever goes wrong has to end here."""
        attempt(self, self._judge_resolution, resolution)

    def _judge_resolution(self, resolution: Resolution) -> None:
        claim = self._claim
        if self._done or claim.name is None or self._hello is None:
            return
        if resolution.failed:
            self._end(FAILED, resolution.error)
            return
        claim.resolved = resolution.addresses
        # Judged from the start again: the policy may have changed while the answer was awaited.
        verdict = claim.box.policy.judge_resolution(claim.name, resolution.addresses)
        if verdict.allowed:
            self._dial(verdict, bytes(self._hello.received))
        elif verdict.reason is Reason.RESOLUTION_FAILED:
            self._deny(verdict, alert=INTERNAL_ERROR, detail=resolution.error)
        else:
            self._deny(verdict)

    # Ways out. Each is taken once. All but the hand-over leave one record; there the HTTP side does.

    def _dial(self, verdict: Verdict, received: bytes) -> None:
        dial = Dial(self._lane, self._sock, self._claim, verdict, received)
        self._lane.audit(self._claim.decision(verdict, dialled=dial.first))
        attempt(dial, self._leave_to, dial)

    def _leave_to(self, dial: Dial) -> None:
        self._leave(watched=True)
        dial.begin()

    def _hand_over(self, received: bytes) -> None:
        self._claim.protocol = Protocol.HTTP
        try:
            self._leave()
            self._lane.hand_over(HandedOver(self._sock, received, self._claim))
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
            reset(self._sock)
            self._lane.audit.note(lambda: self._claim.decision(FAILED))

    def _deny(self, verdict: Verdict, *, alert: int = ACCESS_DENIED, detail: str = "") -> None:
        """Say no in the client's own protocol, as far as that is known."""
        if self._done:
            return
        if self._claim.speaks_tls and verdict.reason is not Reason.CLIENT_GONE:
            farewell = Farewell(self._lane, self._sock, self._claim.box, fatal_alert(alert))
            self._end(verdict, detail, farewell)
        else:
            self._end(verdict, detail)

    def _end(self, verdict: Verdict, detail: str = "", farewell: Farewell | None = None) -> None:
        """Reset, if there is no farewell: it is what is left when something else has failed."""
        if self._done:
            return
        close = partial(reset, self._sock)
        if farewell is not None:
            close = partial(attempt, farewell, farewell.begin)
        every(
            self._leave,
            close,
            lambda: self._lane.audit.note(lambda: self._claim.decision(verdict, detail=detail)),
        )

    def _leave(self, *, watched: bool = False) -> None:
        """Leave every register; but that of the poller if the next owner takes it over."""
        self._done = True
        self._claim.box.live.discard(self)
        self._claim.box.pending -= 1
        every(partial(self._lane.arriving.stop, self))
        if not watched:
            every(partial(self._claim.box.poller.unregister, self._sock.fileno()))


def _destination(sock: socket.socket) -> Destination:
    try:
        return original_destination(sock)
    except OSError:
        # It was not redirected, but connected to the listener itself: one of the gate's own addresses.
        host, port = sock.getsockname()[:2]
        return Destination(ip_address(host.partition("%")[0]), port)
