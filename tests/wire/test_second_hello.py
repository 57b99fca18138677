"""Whoever was judged by one hello can't go on under another, however it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.wire.client_hello import ClientHello, ClientHelloReader, Fault
from box_policy.wire.second_hello import SecondHelloReader
from tests.lab.hellos import client_hello, handshake, records

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
EARLY_DATA = b"\x17\x03\x03\x00\x05early"
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"
WARNING = b"\x15\x03\x03\x00\x02\x01\x70"


def first(*, ech: bool = False) -> ClientHello:
    hello = ClientHelloReader().feed(client_hello(b"allowed.test", ech=ech))
    assert isinstance(hello, ClientHello)
    return hello


def server_hello(random: bytes = RETRY) -> bytes:
    return records(handshake(b"\x03\x03" + random + bytes(40), kind=2), version=0x0303)


def fault(reader: SecondHelloReader) -> Fault | None:
    return reader.fault.fault if reader.fault is not None else None


def test_the_size_of_a_hello_is_told() -> None:
    for hello in (client_hello(), client_hello(fragment=1), client_hello(padding=17_000)):
        read = ClientHelloReader().feed(hello + EARLY_DATA)
        assert isinstance(read, ClientHello)
        assert read.size == len(hello)


@pytest.mark.parametrize("before", [b"", CHANGE_CIPHER_SPEC, CHANGE_CIPHER_SPEC + EARLY_DATA * 3])
@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "sent in advance"])
@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("fragment", [None, 1, 100])
def test_another_name_is_a_fault(before: bytes, asked: bool, size: int, fragment: int | None) -> None:
    reader = SecondHelloReader(first())
    if asked:
        assert not reader.from_server(server_hello())
    data = before + client_hello(b"evil.test", fragment=fragment)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    goes_on = [reader.from_client(memoryview(piece)) for piece in pieces]
    # Known with the last byte, no later: this piece is not passed on.
    assert goes_on == [True] * (len(pieces) - 1) + [False]
    assert fault(reader) is Fault.NAME_AMBIGUOUS


def test_the_same_name_is_none() -> None:
    reader = SecondHelloReader(first())
    assert reader.from_client(CHANGE_CIPHER_SPEC)
    assert not reader.from_server(server_hello())
    assert not reader.from_client(client_hello(b"allowed.test"))
    assert not reader.from_client(b"anything")
    assert reader.fault is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (client_hello(None), Fault.NAME_AMBIGUOUS),
        (client_hello(b"ALLOWED.test"), Fault.NAME_AMBIGUOUS),
        (client_hello(b"allowed.test", duplicate_sni=b"evil.test"), Fault.NAME_AMBIGUOUS),
        (client_hello(b"allowed.test", ech=True), Fault.INVALID),
        (records(handshake(b"", kind=2)), Fault.INVALID),
        (client_hello(fragment=20)[:25] + EARLY_DATA, Fault.INVALID),
        (b"\x16\x02", Fault.INVALID),
        (b"\x18\x03\x03\x00\x01\x01", Fault.INVALID),
        (b"GET / HTTP/1.1\r\n", Fault.INVALID),
    ],
)
def test_whatever_else_could_be_taken_for_another_hello_is_a_fault(data: bytes, expected: Fault) -> None:
    reader = SecondHelloReader(first())
    reader.from_server(server_hello())
    assert not reader.from_client(data)
    assert fault(reader) is expected


def test_an_encrypted_hello_may_be_repeated() -> None:
    reader = SecondHelloReader(first(ech=True))
    assert not reader.from_client(client_hello(b"allowed.test", ech=True))
    assert reader.fault is None


@pytest.mark.parametrize(
    "answer",
    [
        server_hello(bytes(32)),
        WARNING + server_hello(bytes(32)),
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 200,  # HelloRequest for ever
        WARNING * 1000,
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_behind_any_other_answer_nothing_is_read(answer: bytes, size: int) -> None:
    reader = SecondHelloReader(first())
    for start in range(0, len(answer), size):
        reader.from_server(answer[start : start + size])
    # In TLS 1.2 what follows is encrypted, and may look like anything.
    assert not reader.from_client(client_hello(b"evil.test"))
    assert reader.fault is None


@pytest.mark.parametrize(
    "answer",
    [server_hello(), WARNING + server_hello(), records(handshake(b"\x03\x03" + RETRY + bytes(9), kind=2), 7)],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_retry_is_told_however_it_comes(answer: bytes, size: int) -> None:
    reader = SecondHelloReader(first())
    for start in range(0, len(answer), size):
        reader.from_server(answer[start : start + size])
    assert not reader.from_client(client_hello(b"evil.test"))
    assert fault(reader) is Fault.NAME_AMBIGUOUS


def test_early_data_is_not_kept() -> None:
    reader = SecondHelloReader(first())
    for _ in range(1000):
        assert reader.from_client(b"\x17\x03\x03\x40\x00" + bytes(1 << 14))
    assert reader._second is None
    assert len(reader._header) == 0


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60))))
def test_no_bytes_raise(sent: list[tuple[bool, bytes]]) -> None:
    reader = SecondHelloReader(first())
    for by_client, data in sent:
        if by_client:
            reader.from_client(data)
        else:
            reader.from_server(data)
