"""The ClientHellos that the tests send are ones that a real server takes, unless they mean not to be."""

import ssl
from collections.abc import Sequence
from typing import Any

import pytest
import trustme

from tests.lab.hellos import HOST_NAME, client_hello, handshake, records, server_name

SERVER_HELLO = b"\x16\x03\x03"


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    trustme.CA().issue_cert("allowed.test").configure_cert(context)
    return context


def answer(context: ssl.SSLContext, hello: bytes) -> tuple[bytes, list[str | None]]:
    """What OpenSSL's server sends back, and the names it has seen."""
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(hello)
    try:
        server.do_handshake()
    except ssl.SSLError:
        pass
    return outgoing.read(), names


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"fragment": 1},
        {"fragment": 64},
        {"fragment": [4, 100]},
        {"grease": True},
        {"ech": True},
        {"alpn": [b"h2", b"http/1.1"]},
        {"padding": 0},
        {"padding": 20_000},
        {"versions": [0x0304]},
        {"versions": ()},
        {"session_id": b""},
        {"record_version": 0x0303},
        {"random": b"nonce".ljust(32, b".")},
        {"extra_extensions": [(0x5A5A, b"anything")]},
        {"names": [(HOST_NAME, b"allowed.test")]},
    ],
    ids=str,
)
def test_openssl_accepts(context: ssl.SSLContext, knobs: dict[str, Any]) -> None:
    reply, names = answer(context, client_hello(**knobs))
    assert reply.startswith(SERVER_HELLO)
    assert names == ["allowed.test"]


def test_without_a_name_openssl_sees_none(context: ssl.SSLContext) -> None:
    reply, names = answer(context, client_hello(None))
    assert reply.startswith(SERVER_HELLO)
    assert names == [None]


@pytest.mark.parametrize(
    "knobs",
    [
        {"duplicate_sni": b"evil.test"},
        {"names": [(HOST_NAME, b"allowed.test"), (HOST_NAME, b"evil.test")]},
        {"names": []},
        {"sni": b"nul\0.test"},
        {"versions": [0x0302]},
    ],
    ids=str,
)
def test_openssl_refuses(context: ssl.SSLContext, knobs: dict[str, Any]) -> None:
    reply, _ = answer(context, client_hello(**knobs))
    assert reply[:1] == b"\x15"


def test_half_a_hello_has_no_answer(context: ssl.SSLContext) -> None:
    assert answer(context, client_hello()[:-1]) == (b"", [])


@pytest.mark.parametrize(
    ("fragment", "lengths"),
    [(None, [300]), (100, [100, 100, 100]), (7, [7] * 42 + [6]), ([4, 4, 10], [4, 0, 6, 290])],
)
def test_records_are_cut_as_asked(fragment: int | Sequence[int] | None, lengths: list[int]) -> None:
    data, found, message = records(bytes(300), fragment, version=0x0302, content_type=23), [], b""
    while data:
        assert data[:3] == b"\x17\x03\x02"
        length = int.from_bytes(data[3:5])
        found.append(length)
        message += data[5 : 5 + length]
        data = data[5 + length :]
    assert found == lengths
    assert message == bytes(300)


def test_a_long_message_takes_several_records() -> None:
    assert records(bytes(40_000))[3:5] == (1 << 14).to_bytes(2)


def test_the_parts_are_what_the_rfcs_say() -> None:
    assert handshake(b"body") == b"\x01\0\0\x04body"
    assert server_name([(0, b"a.test")]) == (0, b"\0\x09\0\0\x06a.test")
