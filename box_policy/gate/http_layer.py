"""mitmproxy's HTTP/1 layers, made strict where a gate must not be lenient.

The parsing, framing and re-serialising are mitmproxy's. What differs: the request head is bounded, errors
are JSON and reach a client that is still sending, request trailers end the connection in order, and after
a WebSocket handshake the bytes are carried without being collected.
"""

from typing import Final

from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tcp
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader

from box_policy.gate.http_request import Refused, read_request
from box_policy.policy.reasons import Reason

_SWITCHING_PROTOCOLS: Final = 101


class HttpWatch:
    """What the layer tells its connection handler."""

    def head_started(self) -> None:
        """The client has begun, and not finished, a request head."""
        raise NotImplementedError

    def head_complete(self) -> None:
        raise NotImplementedError

    def refused_head(self, refused: Refused) -> bytes:
        """A request head can't be read. Returns the response."""
        raise NotImplementedError

    def response_for(self, status: int, message: str) -> bytes | None:
        """The response to a request that fails with this status. None: close without a word."""
        raise NotImplementedError


class StrictHttp1Server(Http1Server):
    """The side that faces the box."""

    def __init__(self, context: Context, watch: HttpWatch, max_head: int) -> None:
        super().__init__(context)
        self._watch = watch
        self._max_head = max_head

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        lines = self.buf.maybe_extract_lines()
        if lines is not None and not lines:
            # One empty line before the request line is to be ignored (RFC 9112 section 2.2).
            lines = self.buf.maybe_extract_lines()
        if lines is None:
            if len(self.buf) > self._max_head:
                yield from self._refuse(Refused(431, Reason.HTTP_INVALID, "the request head is too large"))
            elif self.buf:
                self._watch.head_started()
            return
        if sum(map(len, lines)) > self._max_head:
            yield from self._refuse(Refused(431, Reason.HTTP_INVALID, "the request head is too large"))
            return
        self._watch.head_complete()
        try:
            self.request = read_request([bytes(line) for line in lines])
        except Refused as refused:
            yield from self._refuse(refused)
            return
        body_size = http1.expected_http_body_size(self.request)
        yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, body_size == 0))
        self.body_reader = make_body_reader(body_size)
        self.state = self.read_body
        yield from self.state(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            yield from super().read_body(event)
        except NotImplementedError:  # trailers behind a chunked body, which the layer can't pass on
            yield from self._refuse(Refused(400, Reason.HTTP_NOT_SUPPORTED, "request trailers"))
            yield ReceiveHttp(
                RequestProtocolError(self.stream_id, "request trailers", ErrorCode.GENERIC_CLIENT_ERROR)
            )

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        # What is pipelined behind a pending request is kept, so it has to be bounded.
        if len(self.buf) > self._max_head:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        yield from super().wait(event)

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, ResponseProtocolError):
            yield from super().send(event)
        elif self.conn.state & ConnectionState.CAN_WRITE:
            status = event.code.http_status_code() or 0
            response = None if self.response else self._watch.response_for(status, event.message)
            if response is None:
                yield commands.CloseConnection(self.conn)
                self.state = self.done
            else:
                yield from self._hang_up(response)

    def _refuse(self, refused: Refused) -> layer.CommandGenerator[None]:
        yield from self._hang_up(self._watch.refused_head(refused))

    def _hang_up(self, response: bytes) -> layer.CommandGenerator[None]:
        """Answer and send FIN, then ignore what still comes: closing with bytes unread would reset the
        connection, and the answer with it. The handler ends it after a short while."""
        if self.conn.state & ConnectionState.CAN_WRITE:
            yield commands.SendData(self.conn, response)
            yield commands.CloseTcpConnection(self.conn, half_close=True)
        self.state = self.discard

    def discard(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            self.buf.maybe_extract_at_most(len(self.buf))
        yield from ()


class StreamedHttpStream(HttpStream):
    """One request and its response."""

    def flow_done(self) -> layer.CommandGenerator[None]:
        response = self.flow.response
        if response is None or response.status_code != _SWITCHING_PROTOCOLS:
            yield from super().flow_done()
            return
        # mitmproxy's WebSocket layer keeps every message, and every part of an unfinished one.
        self.child_layer = tcp.TCPLayer(self.context, ignore=True)
        self._handle_event = self.passthrough
        yield from self.child_layer.handle_event(events.Start())
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


class GateHttpLayer(HttpLayer):
    """An HTTP layer for one connection of a box."""

    def __init__(self, context: Context, watch: HttpWatch, max_head: int) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.connections[context.client] = StrictHttp1Server(context.fork(), watch, max_head)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams[stream_id] = stream = StreamedHttpStream(self.context.fork(), stream_id)
        yield from self.event_to_child(stream, events.Start())
