"""Whatever a client sends: what goes upstream is, to every server, the requests that were judged, no more."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.gate.http_forwarding import Forwarding
from tests.gate.http_readers import Llhttp, Message, Reader, Reading, h11_reads, http_server_reads


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, Reader]]:
    """Servers that read as they do, by name."""
    readers: dict[str, Reader] = {"h11": h11_reads, "http.server": http_server_reads}
    node = [Llhttp(mode) for mode in ("strict", "lenient")] if shutil.which("node") else []
    yield readers | dict(zip(("llhttp", "llhttp, lenient"), node, strict=False))
    for reader in node:
        reader.close()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n"

SOUND: dict[str, list[bytes]] = {
    "method": [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"M-SEARCH"],
    "space": [b" "],
    "target": [b"/", b"/a?b=c", b"*", b"//evil.test/"],
    "version": [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"],
    "line end": [b"\r\n"],
    "host": [b"Host: allowed.test", b"hOST:allowed.test:80", b"Host: ALLOWED.test.\t", b"Host: other.test"],
    "field": [
        b"X: y", b"X:", b"Connection: close", b"Connection: keep-alive, X", b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Upgrade: h2c", b"Expect: 100-continue", b"Trailer: Host", b"X: \xff", b"Cookie: a=b; c",
    ],
    "body": [b"", b"abc", b"0\r\n\r\n", SMUGGLED, b"3\r\nabc\r\n0\r\n\r\n" + SMUGGLED],
    "coding": [b"Transfer-Encoding: chunked", b"transfer-encoding:\tChunked "],
    "length": [b"Content-Length: %d", b"content-length:%d"],
    "size": [b"%x", b"%X", b"00%x", b"%x;a=b", b"%x "],
    "chunk end": [b"\r\n"],
    "last chunk": [b"0\r\n\r\n", b"0\r\nHost: evil.test\r\n\r\n", b"00\r\n\r\n", b"0;x\r\n\r\n"],
}  # fmt: skip
"""What the parts of a request may be."""

ODD: dict[str, list[bytes]] = {
    "method": [b"get", b"G@T", b"PRI", b"CONNECT", b"", b"\r\nGET", b"GET\0", b"X" * 30],
    "space": [b"\t", b"  ", b"\x0b", b"\xa0", b"\r", b"\0", b""],
    "target": [
        b"/a b", b"/\xff", b"/\x85x", b"/a\x0bb", b"evil.test:80", b"/a#b", b"", b"http://allowed.test/x",
        b"HTTP://ALLOWED.TEST", b"http://allowed.test:80/", b"http://evil.test/",
        b"http://allowed.test@evil.test/",
        b"http://evil.test\\@allowed.test/", b"http://allowed.test?/", b"https://allowed.test/",
    ],
    "version": [b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/01.1", b"HTTP/1.10", b"", b"HTTP/1.1\x0b"],
    "line end": [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x0b", b"\x85"],
    "host": [
        b"Host: evil.test", b"Host : allowed.test", b"Host: allowed.test\r\nHost: evil.test", b"X: y",
        b"Host:",
        b"Host: evil.test\nHost: allowed.test", b"Host: allowed.test\rHost: evil.test",
        b"Host: allowed.test\r\n evil.test",
        b"Host: allowed.test\0evil.test", b"Host: allowed.test, evil.test",
        b"Host: allowed.test\x85Host: evil.test",
    ],
    "field": [
        b"Connection: Host", b"Connection: te, Content-Length", b"X: 1\r\n 2",
        b"X: a\x85Transfer-Encoding: chunked",
        b"X: a\rContent-Length: 3", b": y", b"X", b"X Y: z", b"X: \0", b"Transfer-Encoding: chunked",
        b"Content-Length: 3",
    ],
    "body": [b"\r\n", b"\0", SMUGGLED * 2],
    "coding": [
        b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: chunked, chunked", b"transfer-encoding:\x0bchunked",
        b"Transfer-Encoding:\r\n chunked", b"X: y",
    ],
    "length": [
        b"Content-Length: +%d", b"Content-Length: %d, 1", b"Content-Length: 0x%x", b"content-length:0%d",
        b"X: y",
        b"Content-Length: %d\r\nContent-Length: 1", b"Content-Length: %d_0", b"Content-Length: 1%d",
        b"Content-Length: 0",
    ],
    "size": [b"%x;\nx", b"0x%x", b"+%x", b"%x\n", b"-%x", b"%x\r", b"\t%x", b"f%x", b"%x\0"],
    "chunk end": [b"\n", b"", b"\r", b"!\r\n"],
    "last chunk": [b"0\n\n", b"0\r\nX\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\n", b"", b"0\r\n\r", b"0\r\n\n"],
}  # fmt: skip
"""What they may be as well, at most two of them in one request."""


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is sound but for something, or altogether."""
    odd = draw(st.sets(st.sampled_from(sorted(ODD)), max_size=2))

    def part(name: str) -> bytes:
        return draw(st.sampled_from((ODD if name in odd else SOUND)[name]))

    fields = [part("host"), *(part("field") for _ in range(draw(st.integers(0, 2))))]
    body = part("body")
    match draw(st.sampled_from(["length", "chunks", "none"])):
        case "length":
            fields.append(part("length").replace(b"%d", b"%d" % len(body)).replace(b"%x", b"%x" % len(body)))
        case "chunks":
            fields.append(part("coding"))
            chunks = []
            while body:
                size = draw(st.integers(1, len(body)))
                number = part("size").lower().replace(b"%x", b"%x" % size)
                chunks.append(number + b"\r\n" + body[:size] + part("chunk end"))
                body = body[size:]
            body = b"".join(chunks) + part("last chunk")
    line = part("method") + part("space") + part("target") + part("space") + part("version")
    return b"".join(text + part("line end") for text in (line, *draw(st.permutations(fields)), b"")) + body


STREAMS = st.lists(requests(), min_size=1, max_size=3).map(b"".join)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=STREAMS, cuts=st.lists(st.integers(0, 400), max_size=4))
@example(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n" * 2, [])
@example(
    b"POST / HTTP/1.1\nHost:allowed.test\nTransfer-Encoding: CHUNKED\n\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n", [70]
)
@example(
    b"POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    [],
)
@example(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Host\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: a\rHost: evil.test\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: a\r\n b\r\n\r\n", [])
@example(b"GET http://allowed.test/x HTTP/1.1\r\nHost: allowed.test\r\n\r\n", [])
@example(
    b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 18446744073709551616\r\n\r\n" + SMUGGLED, []
)
def test_every_server_reads_what_was_judged(readers: dict[str, Reader], data: bytes, cuts: list[int]) -> None:
    forwarding = Forwarding()
    forwarding.send(*pieces(data, cuts))
    forwarding.end()
    for upstream in forwarding.upstreams.values():
        readings = {name: reader(upstream.sent) for name, reader in readers.items()}
        for name, reading in readings.items():
            assert_judged(name, reading, upstream.judged)
        assert_agreed(readings)
    event(f"{len(forwarding.upstreams)} upstreams, {len(forwarding.refused)} refused")
    assert_bodies_arrived(data, forwarding)


def assert_judged(name: str, reading: Reading, judged: list[Message]) -> None:
    """Of the last one the body may be missing; but nothing was sent that nobody has judged."""
    assert len(reading.messages) <= len(judged), name
    assert reading.refused or len(judged) - len(reading.messages) <= 1, name
    for seen, wanted in zip(reading.messages, judged, strict=False):
        assert replace(seen, body=b"") == wanted, name


def assert_agreed(readings: dict[str, Reading]) -> None:
    """A server may refuse what it doesn't know (a method, a byte of the target), not read another thing."""
    agreed = max((reading.messages for reading in readings.values()), key=len)
    for name, reading in readings.items():
        assert reading.messages == agreed[: len(reading.messages)], name
        assert reading.refused or len(reading.messages) == len(agreed), name


def assert_bodies_arrived(data: bytes, forwarding: Forwarding) -> None:
    """Where a strict server could read what the client has sent, it reads the same of what the gate sends."""
    received = [
        message for upstream in forwarding.upstreams.values() for message in h11_reads(upstream.sent).messages
    ]
    for sent, arrived in zip(h11_reads(data).messages, received, strict=False):
        assert (arrived.method, arrived.hosts, arrived.body) == (sent.method, sent.hosts, sent.body)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]
