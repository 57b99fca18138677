"""One request ends where everybody sees it end: nothing is smuggled behind it, in it, or in a response.

In most of these the secret is in a request for a hidden host that only a server which reads the framing in
another way than the gate would see.
"""

from typing import Final

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Attack
from tests.adversary.http_wire import WEBSOCKET, each, front, pipelines, refused, with_nonce

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "HTTP: framing"

POST: Final = b"POST /echo HTTP/1.1"
CHUNKED: Final = b"Transfer-Encoding: chunked"
SMUGGLED: Final = b"GET /NONCE HTTP/1.1\r\nHost: hidden.othercdn.test\r\n\r\n"


def posted(*fields: bytes, body: bytes = b"0\r\n\r\n" + SMUGGLED) -> bytes:
    """A POST to the allowed host, with another request behind what may be its body."""
    return front(*fields, line=POST, body=body)


def chunks(body: bytes) -> bytes:
    return posted(CHUNKED, body=body)


ATTACKS = [
    refused(
        "a body with a length and in chunks",
        each(
            posted(b"Content-Length: 6", CHUNKED),
            posted(CHUNKED, b"Content-Length: 4", body=b"5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n"),
            posted(CHUNKED, b"Content-Length: 0"),
        ),
        Reason.HTTP_INVALID,
        3,
    ),
    refused(
        "a transfer coding that not every server reads as chunked",
        each(
            *(
                posted(coding)
                for coding in (
                    b"Transfer-Encoding: \x0bchunked",
                    b"Transfer-Encoding: chunked\x0c",
                    b"Transfer-Encoding: chunked\0",
                    b"Transfer-Encoding: xchunked",
                    b"Transfer-Encoding: chunked, identity",
                    b"Transfer-Encoding: identity, chunked",
                    b"Transfer-Encoding: chunked, chunked",
                    b"Transfer-Encoding: chunked;q=1",
                    b'Transfer-Encoding: "chunked"',
                    b"Transfer-Encoding: chun\xe2\x84\xaaed",
                    b"Transfer-Encoding: identity",
                    b"Transfer-Encoding: gzip",
                    b"Transfer-Encoding:",
                    b"Transfer-Encoding : chunked",
                    b"Transfer-Encoding\t: chunked",
                    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                    b"Transfer-Encoding:\r\n chunked",
                    b"X: 1\rTransfer-Encoding: chunked",
                )
            ),
            front(CHUNKED, line=b"POST / HTTP/1.0", body=b"0\r\n\r\n" + SMUGGLED),
        ),
        Reason.HTTP_INVALID,
        20,
    ),
    refused(
        "a transfer coding beside chunked",
        each(posted(b"Transfer-Encoding: gzip, chunked"), posted(b"Transfer-Encoding: deflate,chunked")),
        Reason.HTTP_NOT_SUPPORTED,
        2,
    ),
    refused(
        "a length that servers read in different ways",
        each(
            *(
                posted(length)
                for length in (
                    b"Content-Length: 0\r\nContent-Length: 5",
                    b"Content-Length: 5\r\nContent-Length: 5",
                    b"Content-Length: 5, 5",
                    b"Content-Length: +5",
                    b"Content-Length: -5",
                    b"Content-Length: 0x5",
                    b"Content-Length: 05",
                    b"Content-Length: 5 5",
                    b"Content-Length: 5.0",
                    b"Content-Length: 1e1",
                    b"Content-Length: 1_0",
                    b"Content-Length: \xb2",
                    b"Content-Length:",
                    b"Content-Length : 5",
                    b"Content-Length: 5\x0b",
                    b"Content-Length: 5\r\n 6",
                )
            )
        ),
        Reason.HTTP_INVALID,
        16,
    ),
    refused(
        "a length that does not fit into 63 bits",
        each(
            posted(b"Content-Length: 9223372036854775813"),
            posted(b"Content-Length: 18446744073709551621"),
            posted(b"Content-Length: " + b"9" * 100),
        ),
        Reason.HTTP_NOT_SUPPORTED,
        3,
    ),
    refused(
        "a length or coding that the next proxy is told to take out",
        each(
            posted(b"Content-Length: 5", b"Connection: Content-Length"),
            posted(CHUNKED, b"Connection: close, transfer-encoding"),
        ),
        Reason.HTTP_INVALID,
        2,
    ),
    refused(
        "chunks that are none",
        each(
            chunks(b"2;\nxx\r\n4c\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"2\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"2\rhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"0x2\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"+2\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b" 2\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"-1\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"2\r\nhi!\r\n0\r\n\r\n" + SMUGGLED),
            chunks(b"2\r\nhi0\r\n\r\n" + SMUGGLED),
            chunks(b"2\r\nhi\n\n0\r\n\r\n" + SMUGGLED),
            chunks(b"2\r\nhi\r\n0\r\nX-A : 1\r\n\r\n" + SMUGGLED),
            chunks(b"f" * 21 + b"\r\nhi\r\n0\r\n\r\n" + SMUGGLED),
            chunks(SMUGGLED),
        ),
        Reason.HTTP_INVALID,
        14,
    ),
    refused(
        "a hidden host behind an upgrade to HTTP/2",
        pipelines(
            lambda box: with_nonce(
                box,
                front(
                    b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ",
                    body=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nNONCE",
                ),
            )
        ),
        Reason.HTTP_NOT_SUPPORTED,
    ),
    refused(
        "a hidden host behind a WebSocket's handshake that has a body",
        pipelines(
            lambda box: with_nonce(
                box, front(b"Content-Length: 3", WEBSOCKET, line=b"GET /x HTTP/1.1", body=b"abc" + SMUGGLED)
            )
        ),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a hidden host behind a WebSocket's handshake that is answered like any request",
        pipelines(lambda box: with_nonce(box, front(WEBSOCKET, body=SMUGGLED))),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    Attack(
        name="a chunk's extension and trailers that name a hidden host",
        act=each(
            front(
                CHUNKED, b"Trailer: Host", b"X-Secret: NONCE", b"Connection: close", line=POST,
                body=b"2;Host=hidden.othercdn.test\r\nhi\r\n0\r\nHost: hidden.othercdn.test\r\n\r\n",
            )
        ),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
    Attack(
        name="lines that end in LF alone",
        act=each(b"PUT / HTTP/1.1\nHost: front.cdn.test\nX: NONCE\nConnection:close\nContent-Length:2\n\nhi"),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
