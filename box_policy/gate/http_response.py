"""What an upstream answers, read so that the box can't read it otherwise."""

import re
from typing import Final

from mitmproxy.http import Request, Response
from mitmproxy.net.http import http1
from mitmproxy.net.http.validate import validate_headers

CONTINUE: Final = 100
SWITCHING_PROTOCOLS: Final = 101
_FINAL: Final = 200
_NOT_MODIFIED: Final = 304

# RFC 9112 section 4. mitmproxy reads the status with int(), which takes "2_00" too.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] +[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
_NOT_IN_A_VALUE: Final = re.compile(rb"[\x00\r\n]")
_FOLDED: Final = b"\r\n "  # what mitmproxy makes of a line's folding


def is_interim(response: Response) -> bool:
    """Another response follows this one, to the same request."""
    return response.status_code < _FINAL and response.status_code != SWITCHING_PROTOCOLS


def read_response(lines: list[bytes], request: Request) -> tuple[Response, int | None]:
    """Read a response's head: the response, and the size of its body as of ``expected_http_body_size``.

    Raises ValueError for one whose end the box might see elsewhere.
    """
    if not _STATUS_LINE.fullmatch(lines[0]):
        raise ValueError("status line")
    response = http1.read_response_head(lines)
    # A line that is folded can be taken for two (RFC 9112 section 5.2).
    response.headers.fields = tuple(
        (name, value.replace(_FOLDED, b" ")) for name, value in response.headers.fields
    )
    if any(_NOT_IN_A_VALUE.search(value) for _, value in response.headers.fields):
        raise ValueError("control character in a header")
    validate_headers(response)
    size = http1.expected_http_body_size(request, response)
    if response.status_code == _NOT_MODIFIED:
        # Allowed (RFC 9112 section 6.1), and mitmproxy would send a last chunk, which nobody expects.
        response.headers.pop("transfer-encoding", None)
    return response, size
