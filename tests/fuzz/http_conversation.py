"""The gate's HTTP layer without I/O, between a client that may send anything and a strict upstream."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import h11
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpResponseHeadersHook
from mitmproxy.test import taddons

from box_policy.gate.destination import Destination
from box_policy.gate.http_layer import GateHttpLayer, HttpWatch
from box_policy.gate.http_request import Refused, error_response, make_forwardable, read_target
from box_policy.policy.addresses import Address

MAX_HEAD: Final = 64 * 1024
_OPTIONS: Final = taddons.context(Proxyserver()).options


@dataclass
class Judged:
    """A request that the gate has let through."""

    method: bytes
    name: str


@dataclass
class Upstream:
    """One connection to an upstream, and what its server reads there."""

    parser: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))
    heads: list[bytes] = field(default_factory=list)
    """As sent."""
    requests: list[tuple[h11.Request, bytearray]] = field(default_factory=list)
    """As read: each with its body."""
    complete: int = 0
    """How many of them have come to their end."""

    def receive(self, data: bytes) -> bool:
        """Take bytes. True: they end a request, and it is to be answered."""
        if self.parser.their_state is h11.IDLE:
            self.heads.append(data)
            line, _, rest = data.partition(b"\r\n")
            # Many servers take a target that isn't ASCII; h11 doesn't.
            data = bytes(byte if byte < 0x80 else ord("~") for byte in line) + b"\r\n" + rest
        self.parser.receive_data(data)
        while True:
            event = self.parser.next_event()
            if isinstance(event, h11.Request):
                self.requests.append((event, bytearray()))
            elif isinstance(event, h11.Data):
                self.requests[-1][1].extend(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert not self.parser.trailing_data[0], "more than one request was sent"
                self.complete += 1
                return True
            else:
                return False

    def answer(self) -> tuple[bytes, bool]:
        """A response, and whether the server then closes."""
        head = h11.Response(status_code=200, headers=[("Content-Length", "0")])
        answer = (self.parser.send(head) or b"") + (self.parser.send(h11.EndOfMessage()) or b"")
        if self.parser.our_state is h11.DONE and self.parser.their_state is h11.DONE:
            self.parser.start_next_cycle()
            return answer, False
        return answer, True


class Conversation(HttpWatch):
    """What a client's bytes come to."""

    def __init__(self, address: Address, port: int) -> None:
        self.destination = Destination(address, port)
        self.client = Client(
            peername=("10.0.2.15", 1), sockname=(str(address), port), state=ConnectionState.OPEN
        )
        context = Context(self.client, _OPTIONS)
        context.server.address = (str(address), port)
        self.layer = GateHttpLayer(context, self, MAX_HEAD)
        self.judged: list[Judged] = []
        self.refused: list[Refused] = []
        self.upstreams: dict[Connection, Upstream] = {}
        self._handle(events.Start())

    def send(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.client.state & ConnectionState.CAN_READ:
            self._handle(events.DataReceived(self.client, data))

    def hang_up(self) -> None:
        """FIN from the client."""
        if self.client.state & ConnectionState.CAN_READ:
            self.client.state &= ~ConnectionState.CAN_READ
            self._handle(events.ConnectionClosed(self.client))

    def _handle(self, event: events.Event) -> None:
        todo = deque([event])
        while todo:
            for command in self.layer.handle_event(todo.popleft()):
                todo += self._obey(command)

    def _obey(self, command: commands.Command) -> list[events.Event]:
        if isinstance(command, commands.StartHook):
            if isinstance(command, HttpRequestHeadersHook):
                self._judge(command.flow)
            elif isinstance(command, HttpResponseHeadersHook) and command.flow.response is not None:
                command.flow.response.stream = True
            return [events.HookCompleted(command)] if command.blocking else []
        if isinstance(command, commands.OpenConnection):
            assert command.connection.address == socket_address(self.destination), (
                "another address is dialled"
            )
            command.connection.state = ConnectionState.OPEN
            self.upstreams[command.connection] = Upstream()
            return [events.OpenConnectionCompleted(command, None)]
        if isinstance(command, commands.SendData) and command.connection in self.upstreams:
            return self._carry(command.connection, command.data)
        if isinstance(command, commands.CloseTcpConnection) and command.half_close:
            command.connection.state &= ~ConnectionState.CAN_WRITE
        elif isinstance(command, commands.CloseConnection):
            command.connection.state = ConnectionState.CLOSED
        return []

    def _judge(self, flow: HTTPFlow) -> None:
        """As the gate's connection handler does it, with a policy that allows every name."""
        try:
            target = read_target(flow.request, self.destination)
        except Refused as refused:
            self.refused.append(refused)
            flow.kill()
            return
        make_forwardable(flow.request)
        flow.request.data.host, flow.request.data.port = socket_address(self.destination)
        flow.request.stream = True
        self.judged.append(Judged(flow.request.data.method, target.name))

    def _carry(self, server: Connection, data: bytes) -> list[events.Event]:
        upstream = self.upstreams[server]
        if not upstream.receive(data):
            return []
        answer, closes = upstream.answer()
        answers: list[events.Event] = [events.DataReceived(server, answer)]
        if closes:
            server.state &= ~ConnectionState.CAN_READ
            answers.append(events.ConnectionClosed(server))
        return answers

    # What the layer tells.

    def head_started(self) -> None:
        pass

    def head_complete(self) -> None:
        pass

    def head_abandoned(self) -> None:
        pass

    def refused_request(self, refused: Refused) -> bytes:
        self.refused.append(refused)
        return error_response(refused.status, refused.reason)

    def hung_up(self) -> None:
        pass

    def hold(self, on: bool) -> None:
        pass

    def failed(self) -> None:
        raise AssertionError("the layer has failed")

    def is_usable(self, server: Server) -> bool:
        return True

    def response_for(self, status: int, message: str) -> bytes | None:
        return None


def socket_address(destination: Destination) -> tuple[str, int]:
    return str(destination.address), destination.port
