"""The HTTP request head: what goes upstream is the one request that was judged, however it is read."""

import re
import zlib
from ipaddress import IPv4Address
from random import Random
from typing import Final

import h11

from tests.fuzz.http_conversation import Conversation, Judged
from tests.fuzz.target import Target

_ADDRESS: Final = IPv4Address("51.81.10.10")
_PORT: Final = 80

_ANY_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_ANY_SPACE: Final = re.compile(rb"[\x00-\x20\x7f]+")
_ORIGIN_FORM: Final = re.compile(rb"/.*|\*")


def one(data: bytes) -> None:
    """Send it to the gate whole and in pieces, and read what the gate sends upstream."""
    whole = converse([data])
    answered = check(whole)
    if whole.judged:
        others = check(converse(_pieces(data)))
        # How many empty lines are ignored between requests depends on when they come: one splitting may lead
        # to fewer requests, never to others.
        both = min(len(answered), len(others))
        assert others[:both] == answered[:both], "the splitting matters"


def converse(pieces: list[bytes]) -> Conversation:
    conversation = Conversation(_ADDRESS, _PORT)
    for piece in pieces:
        conversation.send(piece)
    conversation.hang_up()
    return conversation


def check(conversation: Conversation) -> list[tuple[bytes, bytes]]:
    """Each upstream reads exactly what was judged. Returns the requests that are complete: head and body."""
    answered = []
    judged = iter(conversation.judged)
    for upstream in conversation.upstreams.values():
        assert len(upstream.heads) == len(upstream.requests), "a head holds no request, or several"
        assert len(upstream.requests) - upstream.complete <= 1, "a request within another"
        for head, (request, body) in zip(upstream.heads, upstream.requests, strict=True):
            verdict = next(judged, None)
            assert verdict is not None, "a request was sent that nobody has judged"
            check_request(request, verdict)
            check_lenient_reading(head, request)
            answered.append((head, bytes(body)))
        del answered[len(answered) - (len(upstream.requests) - upstream.complete) :]
    return answered


def check_request(request: h11.Request, judged: Judged) -> None:
    """What a strict server reads."""
    assert request.method == judged.method
    assert _ORIGIN_FORM.fullmatch(request.target), "another form of target"
    values: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        values.setdefault(name, []).append(value)
    (host,) = values[b"host"]
    assert host.lower().removesuffix(b":%d" % _PORT).removesuffix(b".") == judged.name.encode("ascii")
    assert len(values.get(b"content-length", []) + values.get(b"transfer-encoding", [])) <= 1
    assert {value.lower() for value in values.get(b"upgrade", [])} <= {b"websocket"}, "another protocol"
    for value in values.get(b"connection", []):
        dropped = {option.strip() for option in value.lower().split(b",")}
        assert not dropped & {b"host", b"content-length", b"transfer-encoding"}, "the next hop has to drop it"


def check_lenient_reading(head: bytes, request: h11.Request) -> None:
    """A server that takes anything for the end of a line, and for space, reads the same."""
    request_line, *lines, last, behind = _ANY_LINE_END.split(head)
    assert last == behind == b"", "the head goes on behind its end"
    assert len(_ANY_SPACE.split(request_line)) == 3
    read = []
    for line in lines:
        name, colon, value = line.partition(b":")
        assert colon and not _ANY_SPACE.search(name), "a line that is no header"
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value), "a control character"
        read.append((name.lower(), value.strip(b" \t").lower()))
    assert read == [(name, value.lower()) for name, value in request.headers]


def _pieces(data: bytes) -> list[bytes]:
    """The same bytes always come in the same pieces."""
    random = Random(zlib.crc32(data))
    cuts = sorted(random.randint(0, len(data)) for _ in range(random.randint(1, 6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


HOST: Final = b"Host: allowed.test\r\n"
SEEDS: Final = (
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET / HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n",
    b"GET http://allowed.test/a?b HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET http://evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET http://allowed.test HTTP/1.1\r\nHost: ALLOWED.test.:80\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: allowed.test:80\r\n\r\n",
    b"CONNECT allowed.test:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.test\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 51.81.10.10\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\nHost:allowed.test\n\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\n"
    + HOST
    + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websoc\xe2\x84\xaaet\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
)
DICTIONARY: Final = (
    b"GET",
    b"HEAD",
    b"POST",
    b"CONNECT",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/0.9\r\n",
    b"http://",
    b"http://allowed.test",
    b"https://",
    b"allowed.test",
    b"evil.test",
    b"user@allowed.test",
    b"Host: evil.test\r\n",
    b"Host : evil.test\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: ",
    b"Connection: x, host\r\n",
    b"keep-alive",
    b"close",
    b"Upgrade: ",
    b"websocket",
    b"websoc\xe2\x84\xaaet",  # KELVIN SIGN, of which lower() makes a k
    b"HTTP2-Settings",
    b"Expect: 100-continue\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r",
    b"\n ",
    b"\0",
    b"\x0b",
    b"\xc2\xa0",
    b"\xff",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
)

TARGET: Final = Target(one, SEEDS, DICTIONARY, max_length=2048)
