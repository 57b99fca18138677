"""Both sides of the HTTP layer, without I/O: bounded, whatever an upstream or a client sends."""

from collections.abc import Iterator

import pytest
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.http import Request
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    RequestEndOfMessage,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from box_policy.gate.http_layer import StrictHttp1Client
from tests.gate import http_forwarding
from tests.gate.http_forwarding import Forwarding

MAX_HEAD = 1024


class Upstream:
    """The client layer, with a request sent and what it makes of the answer."""

    def __init__(self, *, whole: bool = True) -> None:
        self.server = Server(address=("51.81.10.10", 80))
        self.server.state = ConnectionState.OPEN
        client = Client(peername=("10.0.2.15", 1), sockname=("51.81.10.10", 80), state=ConnectionState.OPEN)
        context = Context(client, Options())
        context.server = self.server
        self.layer = StrictHttp1Client(context, MAX_HEAD)
        self.commands: list[commands.Command] = []
        self._handle(events.Start())
        request = Request.make("GET", "http://allowed.test/")
        self._handle(RequestHeaders(1, request, end_stream=whole))
        if whole:
            self._handle(RequestEndOfMessage(1))

    def answers(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.closed:
                self._handle(events.DataReceived(self.server, piece))

    def _handle(self, event: events.Event) -> None:
        self.commands += self.layer.handle_event(event)

    def received(self, kind: type) -> Iterator[object]:
        for command in self.commands:
            if isinstance(command, ReceiveHttp) and isinstance(command.event, kind):
                yield command.event

    @property
    def closed(self) -> bool:
        return any(isinstance(command, commands.CloseConnection) for command in self.commands)


def test_interim_responses_are_left_out() -> None:
    upstream = Upstream()
    upstream.answers(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    (head,) = upstream.received(ResponseHeaders)
    assert isinstance(head, ResponseHeaders)
    assert head.response.status_code == 200
    assert len(list(upstream.received(ResponseEndOfMessage))) == 1


def test_trailers_end_the_response_in_order() -> None:
    upstream = Upstream()
    upstream.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n")
    (data,) = upstream.received(ResponseData)
    assert isinstance(data, ResponseData)
    assert data.data == b"ok"
    assert len(list(upstream.received(ResponseEndOfMessage))) == 1


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["head", "chunk extension", "trailer"],
)
def test_what_never_ends_is_ended(start: bytes) -> None:
    upstream = Upstream()
    upstream.answers(start, *[b"a" * 100] * 50)
    assert upstream.closed
    assert list(upstream.received(ResponseProtocolError))
    assert len(upstream.layer.buf) <= MAX_HEAD + 100


def test_what_comes_behind_an_early_response_ends_the_exchange() -> None:
    upstream = Upstream(whole=False)
    upstream.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(list(upstream.received(ResponseHeaders))) == 1
    assert len(list(upstream.received(ResponseEndOfMessage))) == 1
    assert len(list(upstream.received(ResponseProtocolError))) == 1
    assert upstream.closed


def test_what_is_pipelined_behind_a_pending_request_is_held_back_at_a_bound() -> None:
    forwarding = Forwarding(answers=False)
    request = b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: " + b"y" * 1000 + b"\r\n\r\n"
    held = []
    for _ in range(8):
        forwarding.send(request)
        held.append(forwarding.held)
    assert held == [number * len(request) > http_forwarding.MAX_HEAD for number in range(8)]
    forwarding.answer()
    assert forwarding.held
    for _ in range(3):
        forwarding.answer()
    assert not forwarding.held
    (upstream,) = forwarding.upstreams.values()
    assert len(upstream.judged) == 5
    assert forwarding.refused == []
