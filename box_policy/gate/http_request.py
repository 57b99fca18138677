"""What one HTTP request asks for: exactly one host, said in one way."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from mitmproxy.http import Request
from mitmproxy.net.http import http1, status_codes
from mitmproxy.net.http.validate import validate_headers

from box_policy.audit.records import escape_name
from box_policy.gate.destination import Destination
from box_policy.policy.domains import name_from_wire
from box_policy.policy.reasons import Reason

_HTTP_PORT: Final = 80
_HOST: Final = re.compile(rb"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?")  # RFC 9110 section 7.2
# RFC 9112 section 3; but methods are letters and hyphens, as all registered ones are. "head" would be another
# method to a server, and mitmproxy reads it as HEAD.
_REQUEST_LINE: Final = re.compile(rb"([A-Z][A-Z-]{0,23}) [\x21-\x7e\x80-\xff]+ (HTTP/[0-9]\.[0-9])")
_VERSIONS: Final = (b"HTTP/1.0", b"HTTP/1.1")
_REFUSED_METHODS: Final = (b"CONNECT", b"PRI")
_FIELD_LINE: Final = re.compile(  # RFC 9110 sections 5.1 and 5.5; without folding
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*"
)
_NEEDED: Final = {b"host", b"content-length", b"transfer-encoding"}
_MAX_LENGTH_DIGITS: Final = 18  # what fits in 63 bits: beyond, servers differ


class Refused(Exception):
    """The request is not passed on."""

    def __init__(self, status: int, reason: Reason, detail: str = "", *, host: bytes | None = None) -> None:
        super().__init__(detail or reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.host = host


@dataclass(frozen=True, slots=True)
class Target:
    """The one host that a request is for."""

    name: str
    """Canonical."""
    as_sent: bytes


def check_request_line(line: bytes) -> None:
    """Raises Refused if a request can't start with this line. It may be all there is so far of the head."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(400, Reason.HTTP_INVALID, "request line")
    if match[2] not in _VERSIONS:
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "HTTP version")
    if match[1] in _REFUSED_METHODS:
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "method")


def read_request(lines: list[bytes]) -> Request:
    """Read a request head. Raises Refused for one that not every server would read in the same way.

    What mitmproxy says of an error is not passed on: it quotes the line, and what is secret in it.
    """
    if not lines:
        raise Refused(400, Reason.HTTP_INVALID, "no request line")
    check_request_line(lines[0])
    if not all(map(_FIELD_LINE.fullmatch, lines[1:])):
        raise Refused(400, Reason.HTTP_INVALID, "header line")
    try:
        request = http1.read_request_head(lines)
    except ValueError:
        raise Refused(400, Reason.HTTP_INVALID, "request target") from None
    if request.data.scheme not in (b"", b"http"):
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "scheme of the request target")
    try:
        validate_headers(request)
        http1.expected_http_body_size(request)
    except ValueError:
        raise Refused(400, Reason.HTTP_INVALID, "length or coding of the body") from None
    # A server that overlooks either reads what is body here as a request that nobody has judged.
    if any(value != b"chunked" for value in _values(request, b"transfer-encoding")):
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "transfer coding")
    if any(len(value) > _MAX_LENGTH_DIGITS for value in _values(request, b"content-length")):
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "content length")
    if not _NEEDED.isdisjoint(_connection_options(request)):
        # The next proxy would take them out (RFC 9110 section 7.6.1), and choose another host, or end.
        raise Refused(400, Reason.HTTP_INVALID, "Connection names a header that is needed")
    return request


def read_target(request: Request, destination: Destination) -> Target:
    """The one host that a request names. Raises Refused if it names none, several, or anything but a host:
    what one server takes for a mistake, another may take for a second opinion."""
    data = request.data
    hosts = [value for name, value in data.headers.fields if name.lower() == b"host"]
    if not hosts or hosts == [b""]:
        raise Refused(400, Reason.NO_NAME, "no Host header")
    if len(hosts) > 1:
        raise Refused(400, Reason.HOST_MISMATCH, "more than one Host header", host=b", ".join(hosts))
    host = hosts[0]
    match = _HOST.fullmatch(host)
    if match is None:
        raise Refused(400, Reason.NAME_INVALID, "Host header", host=host)
    name, port = match[1], int(match[2] or _HTTP_PORT)
    if data.authority and data.authority.lower() != host.lower():
        raise Refused(400, Reason.HOST_MISMATCH, "the request target and the Host header differ", host=host)
    if port != destination.port:
        raise Refused(400, Reason.HOST_MISMATCH, "the Host header's port is not the connection's", host=host)
    canonical = name_from_wire(name)
    if canonical is None:
        if _is_address(name, destination):
            raise Refused(403, Reason.ADDRESS_NOT_ALLOWED, "an address in place of a name", host=host)
        raise Refused(400, Reason.NAME_INVALID, "Host header", host=host)
    return Target(canonical, name)


def _is_address(host: bytes, destination: Destination) -> bool:
    try:
        return ip_address(host.strip(b"[]").decode("ascii")) == destination.address
    except ValueError:
        return False


def make_forwardable(request: Request) -> bool:
    """Put a judged request into the form in which it goes upstream. True if it asks for a WebSocket.

    The target becomes origin-form. What is meant for the next hop alone is taken out, as by any
    intermediary (RFC 9110 section 7.6.1), and so is any other upgrade than websocket, as a server that does
    not know it would do (section 7.8): what follows an upgrade could not be judged.
    """
    request.data.authority = b""
    headers = request.headers
    options = _connection_options(request)
    stays = {b"close", b"keep-alive"}
    if asks_for_websocket := _asks_for_websocket(request, options):
        stays.add(b"upgrade")
    taken_out = {*options, b"upgrade", b"http2-settings"} - stays
    headers.fields = tuple(field for field in headers.fields if field[0].lower() not in taken_out)
    kept = [option for option in options if option in stays]
    if kept:
        headers[b"connection"] = b", ".join(kept)
    else:
        headers.pop(b"connection", None)
    if b"transfer-encoding" in headers:
        headers[b"transfer-encoding"] = b"chunked"  # whatever its case was
    return asks_for_websocket


def _asks_for_websocket(request: Request, options: Collection[bytes]) -> bool:
    """RFC 6455 section 4.1. A body would still be under way when the protocol changes."""
    return (
        request.data.method == b"GET"
        and request.data.http_version == b"HTTP/1.1"
        and b"upgrade" in options
        and _values(request, b"upgrade") == [b"websocket"]
        and http1.expected_http_body_size(request) == 0
    )


def _connection_options(request: Request) -> dict[bytes, None]:
    """What the Connection header names (RFC 9110 section 7.6.1), lower case, in order."""
    named = b",".join(_values(request, b"connection")).split(b",")
    return dict.fromkeys(option for part in named if (option := part.strip()))


def _values(request: Request, name: bytes) -> list[bytes]:
    """The values of a header, lower case. As bytes: lower() of a str makes a "k" of more than "K"."""
    return [value.lower() for key, value in request.data.headers.fields if key.lower() == name]


def error_response(
    status: int, reason: Reason, *, host: str | None = None, rule: str = "", generation: int | None = None
) -> bytes:
    """A whole response with a JSON body that says why."""
    error = {"reason": reason, "host": host, "rule": rule or None, "generation": generation}
    body = json.dumps({"error": error}).encode("ascii") + b"\n"
    head = (
        f"HTTP/1.1 {status} {status_codes.RESPONSES.get(status, 'Error')}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def recorded_host(host: bytes | None) -> str | None:
    """A host as claimed, for a record or an answer."""
    return escape_name(host) if host is not None else None
