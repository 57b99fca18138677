"""The gate's HTTP layer without I/O: what it sends upstream of what a client sends, and the other way."""

from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpResponseHeadersHook
from mitmproxy.test import taddons

from box_policy.gate.destination import Destination
from box_policy.gate.http_layer import GateHttpLayer, HttpWatch
from box_policy.gate.http_request import Refused, make_forwardable, read_target
from box_policy.gate.http_response import SWITCHING_PROTOCOLS
from tests.gate.http_readers import Message, h11_reads

ALLOWED: Final = ("allowed.test", "other.test")
MAX_HEAD: Final = 4096
BAD_GATEWAY: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_DESTINATION: Final = Destination(IPv4Address("51.81.10.10"), 80)
_ADDRESS: Final = ("51.81.10.10", 80)
_OPTIONS: Final = taddons.context(Proxyserver()).options
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Upstream:
    """One connection to the upstream."""

    sent: bytes = b""
    judged: list[Message] = field(default_factory=list)
    """The requests that were let through to it, without their bodies."""
    answered: int = 0


class Forwarding(HttpWatch):
    """A client's connection. The upstream answers every request that h11 can read to its end, or none."""

    def __init__(self, *, answers: bool = True) -> None:
        client = Client(peername=("10.0.2.15", 1), sockname=_ADDRESS, state=ConnectionState.OPEN)
        context = Context(client, _OPTIONS)
        context.server.address = _ADDRESS
        self._client = client
        self._answers = answers
        self._layer = GateHttpLayer(context, self, MAX_HEAD)
        self._judged: list[Message] = []
        self.upstreams: dict[Connection, Upstream] = {}
        self.refused: list[Refused] = []
        self.told = b""
        """What the client is sent."""
        self.held = False
        self._handle(events.Start())

    def send(self, *pieces: bytes) -> None:
        """Bytes from the client."""
        for piece in pieces:
            if piece and self._client.state & ConnectionState.CAN_READ:
                self._handle(events.DataReceived(self._client, piece))

    def end(self) -> None:
        """FIN from the client."""
        if self._client.state & ConnectionState.CAN_READ:
            self._client.state &= ~ConnectionState.CAN_READ
            self._handle(events.ConnectionClosed(self._client))

    def answer(self, *pieces: bytes, end: bool = False) -> None:
        """The upstream answers: with 200, or with bytes, and with FIN behind them."""
        for server in list(self.upstreams):
            for piece in pieces or (_OK,):
                if piece and server.state & ConnectionState.CAN_READ:
                    self._handle(events.DataReceived(server, piece))
            if end and server.state & ConnectionState.CAN_READ:
                server.state &= ~ConnectionState.CAN_READ
                self._handle(events.ConnectionClosed(server))

    def _handle(self, event: events.Event) -> None:
        waiting = deque([event])
        while waiting:
            for command in self._layer.handle_event(waiting.popleft()):
                waiting += self._obey(command)

    def _obey(self, command: commands.Command) -> list[events.Event]:
        match command:
            case commands.StartHook():
                if isinstance(command, HttpRequestHeadersHook):
                    self._judge(command.flow)
                elif isinstance(command, HttpResponseHeadersHook):
                    self._check_response(command.flow)
                return [events.HookCompleted(command)] if command.blocking else []
            case commands.OpenConnection():
                assert command.connection.address == _ADDRESS
                command.connection.state = ConnectionState.OPEN
                self.upstreams[command.connection] = Upstream()
                return [events.OpenConnectionCompleted(command, None)]
            case commands.SendData(connection=Server() as server, data=data):
                return self._carry(server, data)
            case commands.SendData(data=data):
                self.told += data
            case commands.CloseTcpConnection(connection=connection, half_close=True):
                connection.state &= ~ConnectionState.CAN_WRITE
            case commands.CloseConnection(connection=connection):
                connection.state = ConnectionState.CLOSED
        return []

    def _judge(self, flow: HTTPFlow) -> None:
        """As the connection handler does it, with names instead of a policy."""
        data = flow.request.data
        try:
            target = read_target(flow.request, _DESTINATION)
            if target.name not in ALLOWED:
                raise Refused(403, "name_not_allowed")  # type: ignore[arg-type]
        except Refused as refused:
            self.refused.append(refused)
            flow.kill()
            return
        make_forwardable(flow.request)
        data.host, data.port = _ADDRESS
        flow.request.stream = True
        hosts = tuple(value for name, value in data.headers.fields if name.lower() == b"host")
        self._judged.append(Message(data.method, data.path, hosts, b""))

    def _check_response(self, flow: HTTPFlow) -> None:
        if flow.response is not None:
            flow.response.stream = True
            if flow.response.status_code == SWITCHING_PROTOCOLS:
                flow.kill()

    def _carry(self, server: Server, data: bytes) -> list[events.Event]:
        upstream = self.upstreams[server]
        upstream.judged += self._judged  # of each, the head is sent before anything else is judged
        self._judged.clear()
        upstream.sent += data
        if not self._answers or len(h11_reads(upstream.sent).messages) <= upstream.answered:
            return []
        upstream.answered += 1
        return [events.DataReceived(server, _OK)]

    # What the layer tells.

    def head_started(self) -> None:
        pass

    def head_complete(self) -> None:
        pass

    def head_abandoned(self) -> None:
        pass

    def refused_request(self, refused: Refused) -> bytes:
        self.refused.append(refused)
        return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def is_usable(self, server: Server) -> bool:
        return True

    def response_for(self, status: int, message: str) -> bytes | None:
        return BAD_GATEWAY

    def hung_up(self) -> None:
        pass

    def hold(self, on: bool) -> None:
        self.held = on

    def failed(self) -> None:
        raise AssertionError("the layer has failed")
