"""Which protocol a client starts with, told from the first bytes it sends.

The answer never depends on how the bytes were split into segments: every proper prefix of a
decidable start is ``NEED_MORE``. Nothing falls through to "some TCP protocol": what is not
recognised is ``OTHER``, which names no host and can therefore not be allowed by name.
"""

import re
from enum import Enum

from box_policy.wire.postgresql import SSL_REQUEST

MAX_FIRST_BYTES = 512
"""No start needs more bytes than this to be told."""

_TLS_HANDSHAKE = 0x16
_TLS_MAJOR_VERSION = 3

# The registered methods are upper-case letters and hyphens (RFC 9110 section 16.1.1). Tokens may hold
# more, but a banner such as "SSH-2.0-x y" must not be taken for a request.
_METHOD = rb"[A-Z][A-Z-]{0,23}"
# A path or a URL tells a request. Behind any other target HTTP's version has to follow: "EHLO mail.test" and
# "OPTIONS rtsp://a.test/ RTSP/1.0" are no requests, and whoever sends them waits for an answer.
_LINE_SO_FAR = rb"[!-~][\x20-\x7e\x80-\xff]*"
_HTTP_START = re.compile(_METHOD + rb" (?:/|(?i:https?://)|" + _LINE_SO_FAR + rb" HTTP/[0-9]\.[0-9]\r?\n)")
_HTTP_START_SO_FAR = re.compile(_METHOD + rb"(?: (?:" + _LINE_SO_FAR + rb"\r?)?)?\Z")


class Start(Enum):
    """How a connection starts."""

    NEED_MORE = "need more"
    TLS = "tls"
    HTTP = "http"
    POSTGRESQL = "postgresql"
    OTHER = "other"


def classify(data: bytes | bytearray | memoryview) -> Start:
    """Tell the protocol from everything received so far.

    TLS is any handshake record of major version 3: the minor version of the first record means nothing
    (RFC 8446 section 5.1) and must not decide who looks at the hello.
    """
    start = bytes(data[:MAX_FIRST_BYTES])
    if not start:
        return Start.NEED_MORE
    if start[0] == _TLS_HANDSHAKE:
        if len(start) == 1:
            return Start.NEED_MORE
        return Start.TLS if start[1] == _TLS_MAJOR_VERSION else Start.OTHER
    if _HTTP_START.match(start):
        return Start.HTTP
    if start.startswith(SSL_REQUEST):
        return Start.POSTGRESQL
    if SSL_REQUEST.startswith(start):
        return Start.NEED_MORE
    if len(start) < MAX_FIRST_BYTES and _HTTP_START_SO_FAR.match(start):
        return Start.NEED_MORE
    return Start.OTHER
