"""An allowed connection from verdict to upstream, and the relayed pair that comes of it."""

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from box_policy.audit.records import Protocol, escape_name
from box_policy.gate.claim import FAILED, Claim
from box_policy.gate.failures import attempt, every
from box_policy.gate.farewell import Farewell
from box_policy.gate.overheard import Overheard
from box_policy.gate.own_addresses import address_family
from box_policy.gate.poller import ERROR, HANG_UP, QUIET, READ, WRITE
from box_policy.gate.relay import Pair
from box_policy.gate.reset import reset
from box_policy.policy.addresses import Address
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict
from box_policy.wire.alerts import INTERNAL_ERROR, fatal_alert
from box_policy.wire.client_hello import Fault
from box_policy.wire.postgresql import ACCEPTED, SSL_REQUEST
from box_policy.wire.second_hello import SecondHelloReader

if TYPE_CHECKING:
    from box_policy.gate.lane import Lane

MAX_TRIED: Final = 4
"""Addresses of one name that are tried before it counts as unreachable."""


class Dial:
    """Connects to the addresses of a verdict, one after the other, as literals. Owns both sockets."""

    __slots__ = (
        "_addresses", "_asked_for_tls", "_began", "_begun", "_claim", "_client", "_done", "_error", "_lane",
        "_received", "_server", "_watcher", "first", "target",
    )  # fmt: skip

    def __init__(
        self, lane: "Lane", client: socket.socket, claim: Claim, verdict: Verdict, received: bytes
    ) -> None:
        if not verdict.allowed or not verdict.addresses:
            raise PermissionError("a dial needs a verdict that allows an address")
        self._lane = lane
        self._client = client
        self._claim = claim
        self._received = received
        self._addresses = in_dialling_order(verdict.addresses, claim.destination.address)[:MAX_TRIED]
        self._server: socket.socket | None = None
        self._asked_for_tls = False
        self._error = ""
        self._watcher = _ClientWatcher(self)
        self._begun = False
        self._done = False
        self._began = lane.poller.now
        self.first = self._addresses[0]
        self.target = self.first

    def begin(self) -> None:
        """To be attempted: nobody else owns the sockets any more."""
        self._claim.box.live.add(self)
        self._claim.box.pending += 1
        self._begun = True
        self._claim.box.poller.watch(self._client.fileno(), QUIET, self._watcher)
        self._next()

    def ready(self, events: int) -> None:
        """The upstream has answered, one way or the other."""
        server = self._server
        if self._done or server is None:
            return
        code = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._give_up_address(code)
        elif self._asked_for_tls:
            self._hear_about_tls(server)
        elif events & WRITE and self._claim.protocol is Protocol.POSTGRESQL:
            self._ask_for_tls(server)
        elif events & WRITE:
            self._connected(server)

    def overdue(self) -> None:
        self._give_up_address(errno.ETIMEDOUT)

    def failed(self, error: Exception) -> None:
        self._end(FAILED)

    def cut(self, reason: Reason) -> None:
        self._end(Verdict.denied(reason))

    def judge_again(self) -> bool:
        verdict = self._claim.judge_again(self.target)
        self._addresses = [address for address in self._addresses if self._claim.judge_again(address).allowed]
        if verdict.allowed:
            return False
        if self._addresses:
            self._give_up_address(errno.EACCES)
            return False
        self._end(Verdict.denied(Reason.POLICY_CHANGED, verdict.rule))
        return True

    def buffered(self) -> int:
        return len(self._received)

    def _end(self, verdict: Verdict, farewell: Farewell | None = None) -> None:
        """Close both sides, unless the client is told why before."""
        if self._done:
            return
        self._done = True
        self._claim.box.live.discard(self)
        self._claim.box.pending -= self._begun
        client, server, poller = self._client, self._server, self._claim.box.poller
        steps: list[Callable[[], object]] = [
            partial(self._lane.connecting.stop, self),
            partial(poller.unregister, client.fileno()),
        ]
        if server is not None:
            steps += [partial(poller.unregister, server.fileno()), partial(reset, server)]
        if farewell is None:
            steps.append(partial(reset, client))
        else:
            steps.append(partial(attempt, farewell, farewell.begin))
        every(*steps, partial(self._record_end, verdict))

    def _next(self) -> None:
        while self._addresses and self._lane.poller.now < self._began + self._lane.limits.dial_timeout:
            self.target = self._addresses.pop(0)
            try:
                server = self._lane.egress.socket(address_family(self.target), socket.SOCK_STREAM)
            except (
                OSError
            ) as error:  # this host lacks the address family, descriptors, or the mark's capability
                self._error = f"{self.target}: {error.strerror}"
                continue
            if not self._lane.descriptors.enough(server.fileno()):
                self._error = f"{self.target}: {os.strerror(errno.EMFILE)}"
                server.close()
                break
            self._server = server
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = server.connect_ex((str(self.target), self._claim.destination.port))
            if code in (0, errno.EINPROGRESS):
                self._claim.box.poller.watch(server.fileno(), WRITE, self)
                self._lane.connecting.start(self, self._lane.poller.now)
                return
            self._error = f"{self.target}: {os.strerror(code)}"
            server.close()
            self._server = None
        self._fail()

    def _ask_for_tls(self, server: socket.socket) -> None:
        """PostgreSQL: the client's hello goes up only behind an answer that there will be TLS."""
        self._asked_for_tls = True
        server.send(SSL_REQUEST)  # a few bytes into an empty buffer: taken whole, or the connection is broken
        self._claim.box.poller.watch(server.fileno(), READ, self)
        self._lane.connecting.stop(self)
        self._lane.connecting.start(self, self._lane.poller.now)

    def _hear_about_tls(self, server: socket.socket) -> None:
        try:
            answer = server.recv(len(ACCEPTED) + 1)  # behind the answer there must be nothing yet
        except BlockingIOError:
            return
        if answer == ACCEPTED:
            self._connected(server)
            return
        self._addresses.clear()  # it was reached, and it has answered
        said = f"answered the SSLRequest with {escape_name(answer)}" if answer else "closed the connection"
        self._give_up_address(errno.EPROTO, f"the server {said}")

    def _give_up_address(self, code: int, error: str = "") -> None:
        if self._done:
            return
        self._error = f"{self.target}: {error or os.strerror(code)}"
        self._asked_for_tls = False
        self._lane.connecting.stop(self)
        if self._server is not None:
            self._claim.box.poller.unregister(self._server.fileno())
            reset(self._server)
            self._server = None
        self._next()

    def _connected(self, server: socket.socket) -> None:
        try:
            Relayed(self._lane, self._claim, self.target).begin(self._client, server, self._received)
        except OSError as error:
            self._error = f"{self.target}: {error.strerror}"
            self._fail()
        else:
            self._done = True
            self._claim.box.live.discard(self)
            self._claim.box.pending -= self._begun
            every(partial(self._lane.connecting.stop, self))

    def _fail(self) -> None:
        """No address is left: the client is told that it isn't the policy's doing."""
        farewell = None
        if self._claim.speaks_tls:
            farewell = Farewell(self._lane, self._client, self._claim.box, fatal_alert(INTERNAL_ERROR))
        self._end(Verdict.denied(Reason.UPSTREAM_FAILED), farewell)

    def _record_end(self, verdict: Verdict) -> None:
        self._lane.audit.note(
            lambda: self._claim.end(verdict, dialled=self.target, up=0, down=0, detail=self._error)
        )


class _ClientWatcher:
    """The client's descriptor while its upstream is being dialled."""

    __slots__ = ("_dial",)

    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    def ready(self, events: int) -> None:
        if events & (HANG_UP | ERROR):
            self._dial.cut(Reason.CLIENT_GONE)

    def failed(self, error: Exception) -> None:
        self._dial.failed(error)


class Relayed:
    """A relayed connection, as the box's list of live ones sees it."""

    __slots__ = ("_claim", "_detail", "_lane", "_overheard", "_pair", "_rule", "_second", "_target")

    def __init__(self, lane: "Lane", claim: Claim, target: Address) -> None:
        self._lane = lane
        self._claim = claim
        self._target = target
        self._pair: Pair | None = None
        self._overheard: Overheard | None = None
        self._second: SecondHelloReader | None = None
        self._rule = ""
        self._detail = ""

    def begin(self, client: socket.socket, server: socket.socket, received: bytes) -> None:
        """If this raises, the sockets are still the caller's."""
        listener: Callable[[memoryview], bool] | None = None
        if self._claim.name is None:
            self._overheard = Overheard(self._claim, self._lane.resolve)
            if not received or self._overheard.read(received):
                listener = self._overheard.read
        elif self._claim.hello is not None:
            hello, self._claim.hello = self._claim.hello, None
            self._second = SecondHelloReader(hello)
            self._second.from_client(received[hello.size :])
            if self._second.fault is not None:
                received = b""
            listener = self._hear_client
        box = self._claim.box
        roomy = box.roomy < self._lane.limits.roomy
        self._pair = self._lane.relay.start(
            client, server, received, self._closed, listener, poller=box.poller, roomy=roomy
        )
        box.roomy += roomy
        box.live.add(self)
        attempt(self, self._listen, self._pair)

    def _listen(self, pair: Pair) -> None:
        if self._second is not None:
            pair.down.listener = self._hear_server
            self._hear_client(memoryview(b""))
        elif pair.up.listener is not None:
            self._lane.overhearing.start(self, self._lane.poller.now)

    def cut(self, reason: Reason) -> None:
        if self._pair is not None:
            self._pair.close(reason)

    def judge_again(self) -> bool:
        verdict = self._claim.judge_again(self._target)
        if verdict.allowed:
            return False
        self._rule = verdict.rule
        self.cut(Reason.POLICY_CHANGED)
        return True

    def overdue(self) -> None:
        """Whoever hasn't said a name by now isn't listened to any longer."""
        self._lane.overhearing.stop(self)
        if self._pair is not None and self._overheard is not None:
            self._pair.up.listener = None
            self._overheard.forget()

    def failed(self, error: Exception) -> None:
        self.cut(Reason.INTERNAL_ERROR)

    def _hear_client(self, data: memoryview) -> bool:
        """It was let through by name: if it sends another hello, it has to be under the same."""
        second = self._second
        if second is None or second.from_client(data):
            return second is not None
        self._second = None
        if second.fault is not None:
            self._detail = second.fault.detail
            differs = second.fault.fault is Fault.NAME_AMBIGUOUS
            self.cut(Reason.HOST_MISMATCH if differs else Reason.HELLO_INVALID)
        return False

    def _hear_server(self, data: memoryview) -> bool:
        second = self._second
        if second is None or second.from_server(data):
            return second is not None
        if second.over:
            self._second = None
        return False

    def buffered(self) -> int:
        kept = self._second.kept if self._second is not None else 0
        return kept + (self._pair.buffered() if self._pair is not None else 0)

    def _closed(self, pair: Pair, reason: Reason) -> None:
        self._claim.box.live.discard(self)
        self._claim.box.roomy -= pair.roomy
        if self._overheard is not None:
            self._overheard.over = True
        every(
            partial(self._lane.overhearing.stop, self),
            partial(self._claim.box.record_end, partial(self._record_end, pair, reason)),
        )

    def _record_end(self, pair: Pair, reason: Reason) -> None:
        self._lane.audit.note(
            lambda: self._claim.end(
                Verdict.denied(reason, self._rule), dialled=self._target,
                up=pair.up.carried, down=pair.down.carried, detail=self._detail,
            )
        )  # fmt: skip


def in_dialling_order(addresses: tuple[Address, ...], claimed: Address) -> list[Address]:
    """The claimed address first, if it is among them, then those of its family, then the rest."""
    return sorted(addresses, key=lambda address: (address != claimed, address.version != claimed.version))
