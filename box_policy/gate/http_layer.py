"""mitmproxy's HTTP/1 layers, made strict where a gate must not be lenient.

The framing and re-serialising are mitmproxy's. What differs: heads and whatever else is collected are
bounded on both sides, what could be read in two ways is refused, errors are JSON and reach a client that is
still sending, trailers and interim responses are left out, and after a WebSocket handshake the bytes are
carried without being collected.
"""

import logging
import re
from typing import Final

import h11
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

from box_policy.gate.http_request import Refused, check_request_line, read_request
from box_policy.gate.http_response import CONTINUE, SWITCHING_PROTOCOLS, is_interim, read_response
from box_policy.policy.reasons import Reason

log = logging.getLogger(__name__)

_MAX_FIELDS: Final = 256
_NOT_IN_A_LINE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


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

    def refused_request(self, refused: Refused) -> bytes:
        """A request's head, or the framing of its body, can't be read. Returns the response."""
        raise NotImplementedError

    def is_usable(self, server: Server) -> bool:
        """May this open connection to an upstream serve another request?"""
        raise NotImplementedError

    def response_for(self, status: int, message: str) -> bytes | None:
        """The response to a request that fails with this status. None: close without a word."""
        raise NotImplementedError

    def hung_up(self) -> None:
        """The client has its last answer, and FIN behind it. What it still sends is thrown away."""
        raise NotImplementedError

    def hold(self, on: bool) -> None:
        """Read nothing more from the client (True), until it is told otherwise (False)."""
        raise NotImplementedError

    def failed(self) -> None:
        """The layer itself has failed, and nothing it still does can be relied on."""
        raise NotImplementedError


class _StrictHttp1(Http1Connection):
    """What both sides have in common: the reading of bodies."""

    _max_head: int

    def body_broken(self, event: events.Event) -> layer.CommandGenerator[None]:
        """The body doesn't end, or not as its head has announced."""
        raise NotImplementedError

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """As mitmproxy's, but errors are the side's to answer, and trailers end a body in order: mitmproxy
        can't pass them on, and raises. An intermediary may leave them out (RFC 9110 section 6.5.1).

        What has come together goes on together: a chunk of a byte would cost as much as a large one.
        """
        pieces = []
        is_broken, end = False, None
        try:
            while isinstance(end := self._next_piece(event), h11.Data):
                pieces.append(end.data)
        except h11.ProtocolError:
            is_broken = True
        if data := b"".join(pieces):
            yield ReceiveHttp(self.ReceiveData(self.stream_id or 0, data))
        if self.state != self.read_body:
            return  # the exchange has ended over it
        # What isn't body may still be waiting for its end: a chunk's extension, a trailer.
        if is_broken or (end is None and len(self.buf) > self._max_head):
            yield from self.body_broken(event)
        elif end is not None:
            yield ReceiveHttp(self.ReceiveEndOfMessage(self.stream_id or 0))
            is_request = isinstance(self, Http1Server)
            yield from self.mark_done(request=is_request, response=not is_request)

    def _next_piece(self, event: events.Event) -> h11.Data | h11.EndOfMessage | None:
        if isinstance(event, events.DataReceived):
            return self.body_reader(self.buf)
        return self.body_reader.read_eof()


class StrictHttp1Server(_StrictHttp1, Http1Server):
    """The side that faces the box."""

    def __init__(self, context: Context, watch: HttpWatch, max_head: int) -> None:
        super().__init__(context)
        self._watch = watch
        self._max_head = max_head
        self._line_checked = False

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.DataReceived):
            if self.buf:
                self._watch.head_abandoned()
            yield commands.CloseConnection(self.conn)
            return
        lines = self.buf.maybe_extract_lines()
        while lines is not None and not lines:
            # Empty lines before the request line are to be ignored (RFC 9112 section 2.2).
            lines = self.buf.maybe_extract_lines()
        try:
            if lines is None:
                self._check_so_far(event.data)
                return
            if sum(map(len, lines)) > self._max_head or len(lines) > _MAX_FIELDS:
                raise Refused(431, Reason.HTTP_INVALID, "the request head is too large")
            self.request = request = read_request([bytes(line) for line in lines])
        except Refused as refused:
            self._watch.head_complete()
            yield from self._refuse(refused)
            return
        self._watch.head_complete()
        self._line_checked = False
        body_size = http1.expected_http_body_size(request)
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, body_size == 0))
        self.body_reader = make_body_reader(body_size)
        self.state = self.read_body
        yield from self.state(event)

    def _check_so_far(self, data: bytes) -> None:
        """Look at a head that isn't complete. Raises Refused if nothing that still comes can mend it: whoever
        speaks another protocol sends one line, and waits."""
        if len(self.buf) > self._max_head:
            raise Refused(431, Reason.HTTP_INVALID, "the request head is too large")
        if not self.buf:
            self._watch.head_complete()
            return
        self._watch.head_started()
        if self._line_checked:
            return
        if data and b"\n" not in data:
            if _NOT_IN_A_LINE.search(data):
                raise Refused(400, Reason.HTTP_INVALID, "request line")
            return
        line, end, _ = bytes(self.buf).partition(b"\n")
        if end:
            check_request_line(line.removesuffix(b"\r"))
            self._line_checked = True

    def body_broken(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            response = self._watch.refused_request(Refused(400, Reason.HTTP_INVALID, "framing of the body"))
            yield from self._hang_up(b"" if self._answer_begun else response)
            code = ErrorCode.GENERIC_CLIENT_ERROR
        else:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            code = ErrorCode.CLIENT_DISCONNECTED
        yield ReceiveHttp(RequestProtocolError(self.stream_id, "the body is broken", code))

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from super().wait(event)
        self._hold_if_full()

    def mark_done(self, *, request: bool = False, response: bool = False) -> layer.CommandGenerator[None]:
        yield from super().mark_done(request=request, response=response)
        self._hold_if_full()

    def _hold_if_full(self) -> None:
        """What is pipelined behind a pending request is kept, so it has to be bounded."""
        self._watch.hold(self.state == self.wait and len(self.buf) > self._max_head)

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if not isinstance(event, ResponseProtocolError):
            yield from super().send(event)
        elif self.conn.state & ConnectionState.CAN_WRITE:
            response = None
            if not self._answer_begun:
                response = self._watch.response_for(event.code.http_status_code() or 0, event.message)
            if response is None and self.request_done:
                yield commands.CloseConnection(self.conn)
                self.state = self.done
            else:
                yield from self._hang_up(response or b"")

    @property
    def _answer_begun(self) -> bool:
        return self.response is not None and self.response.status_code != CONTINUE

    def _refuse(self, refused: Refused) -> layer.CommandGenerator[None]:
        yield from self._hang_up(self._watch.refused_request(refused))

    def _hang_up(self, response: bytes) -> layer.CommandGenerator[None]:
        """Answer and send FIN, then ignore what still comes: closing with bytes unread would reset the
        connection, and the answer with it. The handler ends it after a short while."""
        if self.conn.state & ConnectionState.CAN_WRITE:
            if response:
                yield commands.SendData(self.conn, response)
            yield commands.CloseTcpConnection(self.conn, half_close=True)
            self._watch.hung_up()
        self._watch.hold(False)
        self.state = self.discard

    def discard(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            self.buf.maybe_extract_at_most(len(self.buf))
        yield from ()


class StrictHttp1Client(_StrictHttp1, Http1Client):
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
            if lines is None:
                if len(self.buf) > self._max_head:
                    yield from self._fail("the response head is too large")
                return
            if not lines:
                continue  # the end of a line behind the last body, of servers that send one too many
            try:
                response, body_size = read_response([bytes(line) for line in lines], self.request)
            except ValueError:
                yield from self._fail("the response head can't be read")
                return
            # mitmproxy would take an interim response for the final one, and the final one for the answer
            # to the next request. A client has to do without interim ones (RFC 9110 section 15.2).
            if not is_interim(response):
                break
        self.response = response
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, body_size == 0))
        self.body_reader = make_body_reader(body_size)
        self.state = self.read_body
        yield from self.state(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.response_done:  # and the request isn't: what comes now answers nothing
            yield from self._fail("the upstream ended the exchange before the request was complete")
        else:
            yield from super().read_body(event)

    def body_broken(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self._fail("the response body is broken")

    def _fail(self, message: str) -> layer.CommandGenerator[None]:
        self.buf.maybe_extract_at_most(len(self.buf))
        self.state = self.done
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

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """mitmproxy would log what is raised here, and leave the connection as it is."""
        try:
            yield from super().handle_event(event)
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
            self._watch.failed()

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
