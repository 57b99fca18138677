"""What one HTTP request asks for: exactly one host, said in one way."""

import json
import re
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
_NOT_IN_A_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110 section 5.5
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VERSIONS: Final = (b"HTTP/1.0", b"HTTP/1.1")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 9.1
_REFUSED_METHODS: Final = (b"CONNECT", b"PRI")


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


def read_request(lines: list[bytes]) -> Request:
    """Read a request head. Raises Refused for one that not every server would read in the same way."""
    if not lines:
        raise Refused(400, Reason.HTTP_INVALID, "no request line")
    try:
        request = http1.read_request_head(lines)
        validate_headers(request)
        http1.expected_http_body_size(request)
    except ValueError as error:
        raise Refused(400, Reason.HTTP_INVALID, escape_name(str(error))) from None
    data = request.data
    if data.http_version not in _VERSIONS:
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "HTTP version")
    if not _METHOD.fullmatch(data.method):
        raise Refused(400, Reason.HTTP_INVALID, "method")
    if data.method.upper() in _REFUSED_METHODS:
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "method")
    if data.scheme not in (b"", b"http"):
        raise Refused(400, Reason.HTTP_NOT_SUPPORTED, "scheme of the request target")
    if not _TARGET.fullmatch(data.path):
        raise Refused(400, Reason.HTTP_INVALID, "request target")
    for _, value in data.headers.fields:
        if _NOT_IN_A_VALUE.search(value):
            raise Refused(400, Reason.HTTP_INVALID, "control character or folding in a header")
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

    The target becomes origin-form. Any other upgrade than websocket is taken out, as a server that does
    not know it would do (RFC 9110 section 7.8): what follows an upgrade could not be judged.
    """
    request.data.authority = b""
    upgrades = request.headers.get_all("upgrade")
    if not upgrades:
        return False
    if len(upgrades) == 1 and upgrades[0].lower() == "websocket":
        return True
    request.headers.pop("upgrade")
    request.headers.pop("http2-settings", None)
    if "connection" in request.headers:
        kept = [
            token.strip()
            for token in request.headers["connection"].split(",")
            if token.strip().lower() not in ("upgrade", "http2-settings")
        ]
        request.headers["connection"] = ", ".join(kept) or "keep-alive"
    return False


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
