"""mitmproxy's HTTP/1 layers, made strict where a gate must not be lenient.

The parsing, framing and re-serialising are mitmproxy's. What differs: heads and whatever else is
collected are bounded on both sides, errors are JSON and reach a client that is still sending, trailers
and interim responses are left out, and after a WebSocket handshake the bytes are carried without being
collected.
"""

from typing import Final

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tcp
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server, make_body_reader

from box_policy.gate.http_request import Refused, read_request
from box_policy.policy.reasons import Reason

SWITCHING_PROTOCOLS: Final = 101
_MAX_FIELDS: Final = 256


class HttpWatch:
    """What the layer tells its connection handler."""

    def head_started(self) -> None:
        """The client has begun, and not finished, a request head."""
        raise NotImplementedError

    def head_complete(self) -> None:
        raise NotImplementedError

    def head_abandoned(self) -> None:
        """The client has gone in the middle of a request head."""
        raise NotImplementedError

    def refused_head(self, refused: Refused) -> bytes:
        """A request head can't be read. Returns the response."""
        raise NotImplementedError

    def is_usable(self, server: Server) -> bool:
        """May this open connection to an upstream serve another request?"""
        raise NotImplementedError

    def response_for(self, status: int, message: str) -> bytes | None:
        """The response to a request that fails with this status. None: close without a word."""
        raise NotImplementedError


def _read_bounded_body(
    side: Http1Connection, body: layer.CommandGenerator[None], is_request: bool
) -> layer.CommandGenerator[None]:
    """mitmproxy's reading of a body, but trailers end it in order: it can't pass them on, and raises. An
    intermediary may leave them out (RFC 9110 section 6.5.1)."""
    try:
        yield from body
    except NotImplementedError:
        yield ReceiveHttp(side.ReceiveEndOfMessage(side.stream_id or 0))
        yield from side.mark_done(request=is_request, response=not is_request)


class StrictHttp1Server(Http1Server):
    """The side that faces the box."""

    def __init__(self, context: Context, watch: HttpWatch, max_head: int) -> None:
        super().__init__(context)
        self._watch = watch
        self._max_head = max_head

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            if self.buf:
                self._watch.head_abandoned()
            yield commands.CloseConnection(self.conn)
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
        if sum(map(len, lines)) > self._max_head or len(lines) > _MAX_FIELDS:
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
        yield from _read_bounded_body(self, super().read_body(event), is_request=True)
        if self.state == self.read_body and len(self.buf) > self._max_head:
            # What isn't body is still waiting for its end: a chunk's extension, a trailer.
            yield from self._refuse(Refused(400, Reason.HTTP_INVALID, "framing of the body"))
            yield ReceiveHttp(
                RequestProtocolError(self.stream_id, "framing of the body", ErrorCode.GENERIC_CLIENT_ERROR)
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


class StrictHttp1Client(Http1Client):
    """The side that faces the upstream."""

    def __init__(self, context: Context, max_head: int) -> None:
        super().__init__(context)
        self._max_head = max_head

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived) or self.request is None or self.stream_id is None:
            yield from super().read_headers(event)
            return
        while True:
            lines = self.buf.maybe_extract_lines()
            if not lines:
                if len(self.buf) > self._max_head:
                    yield from self._fail("the response head is too large")
                return
            try:
                response = http1.read_response_head([bytes(line) for line in lines])
                body_size = http1.expected_http_body_size(self.request, response)
            except ValueError:
                yield from self._fail("the response head can't be read")
                return
            # mitmproxy would take an interim response for the final one, and the final one for the answer
            # to the next request. A client has to do without interim ones (RFC 9110 section 15.2).
            if not 100 <= response.status_code < 200 or response.status_code == SWITCHING_PROTOCOLS:
                break
        self.response = response
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, body_size == 0))
        self.body_reader = make_body_reader(body_size)
        self.state = self.read_body
        yield from self.state(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from _read_bounded_body(self, super().read_body(event), is_request=False)
        if self.state == self.read_body and len(self.buf) > self._max_head:
            yield from self._fail("the framing of the response body is too large")

    def _fail(self, message: str) -> layer.CommandGenerator[None]:
        self.buf.maybe_extract_at_most(len(self.buf))
        yield commands.CloseConnection(self.conn)
        yield ReceiveHttp(ResponseProtocolError(self.stream_id or 0, message, ErrorCode.GENERIC_SERVER_ERROR))


class HttpUpstream(layer.Layer):
    """Opens one connection to an upstream, and speaks HTTP/1 on it."""

    def __init__(self, context: Context, max_head: int) -> None:
        super().__init__(context)
        self._max_head = max_head

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        error = yield commands.OpenConnection(self.context.server)
        if not error:
            client = StrictHttp1Client(self.context, self._max_head)
            self._handle_event = client.handle_event  # type: ignore[method-assign]
            yield from client.handle_event(event)
        yield RegisterHttpConnection(self.context.server, error)


class StreamedHttpStream(HttpStream):
    """One request and its response."""

    def flow_done(self) -> layer.CommandGenerator[None]:
        response = self.flow.response
        if response is None or response.status_code != SWITCHING_PROTOCOLS:
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
        self._watch = watch
        self._max_head = max_head
        self.connections[context.client] = StrictHttp1Server(context.fork(), watch, max_head)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams[stream_id] = stream = StreamedHttpStream(self.context.fork(), stream_id)
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Plain HTTP/1, one request at a time, to the judged address and no other way."""
        if event.tls or event.via:
            yield from self._reply(event, None, "not plain HTTP to an address")
            return
        for connection in list(self.connections):
            if isinstance(connection, Server):
                if (
                    connection.connected
                    and self._watch.is_usable(connection)
                    and event.connection_spec_matches(connection)
                ):
                    yield from self._reply(event, connection, None)
                    return
                if connection.state is ConnectionState.CLOSED:
                    del self.connections[connection]
        context = self.context.fork()
        context.server = Server(address=event.address, transport_protocol="tcp")
        upstream = HttpUpstream(context, self._max_head)
        self.connections[context.server] = upstream
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(upstream, events.Start())

    def _reply(
        self, event: GetHttpConnection, connection: Connection | None, error: str | None
    ) -> layer.CommandGenerator[None]:
        stream = self.command_sources.pop(event)
        reply = GetHttpConnectionCompleted(event, (connection, error))  # type: ignore[arg-type]
        yield from self.event_to_child(stream, reply)
