"""The ClientHello is read strictly, incrementally, and as a real server reads it."""

import ssl
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_policy.wire.client_hello import (
    MAX_EXTENSIONS,
    MAX_HELLO,
    ClientHello,
    ClientHelloReader,
    Fault,
    Malformed,
)
from tests.lab.hellos import HOST_NAME, client_hello, handshake, records, server_name


def read(data: bytes) -> ClientHello | Malformed | None:
    return ClientHelloReader().feed(data)


def read_in_pieces(data: bytes, size: int) -> ClientHello | Malformed | None:
    reader = ClientHelloReader()
    result = None
    for start in range(0, len(data), size):
        result = reader.feed(data[start : start + size])
    return result


def fault_of(data: bytes) -> Fault:
    result = read(data)
    assert isinstance(result, Malformed), result
    return result.fault


def hello_body(data: bytes) -> bytes:
    """The body of an unfragmented hello, behind the record's and the handshake's header."""
    return data[9:]


SOUND = {
    "plain": client_hello(),
    "no SNI": client_hello(None),
    "TLS 1.2 only": client_hello(versions=()),
    "GREASE": client_hello(grease=True),
    "ALPN": client_hello(alpn=[b"h2", b"http/1.1"]),
    "post-quantum size": client_hello(padding=1800),
    "16 KiB over two records": client_hello(padding=17_000),
    "records of 1 byte": client_hello(fragment=1),
    "records of 5 bytes": client_hello(fragment=5),
    "cut inside the name": client_hello(fragment=[client_hello().index(b"allowed") - 5 + 3]),
    "record version 0300": client_hello(record_version=0x0300),
    "record version 0304": client_hello(record_version=0x0304),
    "record version 03ff": client_hello(record_version=0x03FF),
    "ECH or GREASE for it": client_hello(ech=True),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_a_sound_hello_is_read(data: bytes) -> None:
    hello = read(data)
    assert isinstance(hello, ClientHello), hello
    assert hello.server_name in (b"allowed.test", None)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_segments_do_not_matter(data: bytes, size: int) -> None:
    assert read_in_pieces(data, size) == read(data)


@pytest.mark.parametrize("data", [SOUND["plain"], SOUND["records of 5 bytes"]])
def test_every_prefix_needs_more(data: bytes) -> None:
    reader = ClientHelloReader()
    assert [reader.feed(data[i : i + 1]) for i in range(len(data) - 1)] == [None] * (len(data) - 1)
    assert isinstance(reader.feed(data[-1:]), ClientHello)


def test_what_the_hello_says() -> None:
    hello = read(client_hello(b"A-1.Wild.TEST", alpn=[b"h2"], ech=True))
    assert hello == ClientHello(b"A-1.Wild.TEST", (b"h2",), ech=True)


def test_all_bytes_are_kept_for_forwarding() -> None:
    reader = ClientHelloReader()
    early_data = b"\x17\x03\x03\x00\x04data"
    reader.feed(client_hello() + early_data)
    assert reader.received == client_hello() + early_data


MALFORMED = {
    "no record of a handshake": (b"\x17\x03\x03\x00\x05hello", Fault.INVALID),
    "record of another major version": (b"\x16\x02\x00\x00\x05\x01", Fault.INVALID),
    "empty record first": (records(handshake(hello_body(client_hello())), [0]), Fault.INVALID),
    "record over the limit": (b"\x16\x03\x01\x40\x01\x01", Fault.INVALID),
    "alert between the records": (
        client_hello(fragment=20)[:25] + b"\x15\x03\x01\x00\x02\x02\x28",
        Fault.INVALID,
    ),
    "another handshake type": (records(handshake(hello_body(client_hello()), kind=2)), Fault.INVALID),
    "two hellos in a record": (
        records(handshake(hello_body(client_hello())) + handshake(hello_body(client_hello(b"evil.test")))),
        Fault.INVALID,
    ),
    "legacy version of another major": (client_hello(legacy_version=0x0203), Fault.INVALID),
    "long session id": (client_hello(session_id=bytes(33)), Fault.INVALID),
    "16 MiB announced": (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff", Fault.TOO_LARGE),
    "just too large": (records(handshake(bytes(MAX_HELLO - 3))), Fault.TOO_LARGE),
    "too many extensions": (
        client_hello(extra_extensions=[(0x2000 + i, b"") for i in range(MAX_EXTENSIONS)]),
        Fault.TOO_LARGE,
    ),
    "two names": (
        client_hello(names=[(HOST_NAME, b"allowed.test"), (HOST_NAME, b"evil.test")]),
        Fault.NAME_AMBIGUOUS,
    ),
    "a name of another type": (client_hello(names=[(1, b"allowed.test")]), Fault.NAME_AMBIGUOUS),
    "another type behind the name": (
        client_hello(names=[(HOST_NAME, b"allowed.test"), (1, b"evil.test")]),
        Fault.NAME_AMBIGUOUS,
    ),
    "SNI twice": (client_hello(duplicate_sni=b"evil.test"), Fault.NAME_AMBIGUOUS),
    "ALPN twice": (client_hello(alpn=[b"h2"], extra_extensions=[(16, b"\0\x03\x02h2")]), Fault.INVALID),
    "empty name": (client_hello(b""), Fault.NAME_EMPTY),
    "empty list": (client_hello(names=[]), Fault.NAME_EMPTY),
    "list shorter than the extension": (
        client_hello(None, extra_extensions=[(0, server_name([(0, b"allowed.test")])[1] + b"x")]),
        Fault.INVALID,
    ),
    "list longer than the extension": (
        client_hello(None, extra_extensions=[(0, b"\x01\x90" + server_name([(0, b"allowed.test")])[1][2:])]),
        Fault.INVALID,
    ),
    "empty extension": (client_hello(None, extra_extensions=[(0, b"")]), Fault.INVALID),
}


@pytest.mark.parametrize(("data", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_an_unsound_hello_is_refused(data: bytes, fault: Fault) -> None:
    assert fault_of(data) is fault


@pytest.mark.parametrize(("data", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_an_unsound_hello_is_refused_in_segments_too(data: bytes, fault: Fault) -> None:
    result = read_in_pieces(data, 1)
    assert isinstance(result, Malformed)
    assert result.fault is fault


def test_a_slow_hello_costs_no_more_than_a_fast_one() -> None:
    data = client_hello(padding=15_000, fragment=1)[:120_000]
    started = time.process_time()
    read_in_pieces(data, 1)
    # A reader that parses from the start again for each byte would take minutes.
    assert time.process_time() - started < 5


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    read(b"\x16\x03\x01" + data)


@settings(max_examples=300)
@given(st.integers(0, 300), st.binary(min_size=1, max_size=6), st.integers(1, 50))
def test_no_change_to_a_hello_raises_or_depends_on_segments(at: int, change: bytes, size: int) -> None:
    good = client_hello(alpn=[b"h2"])
    data = good[:at] + change + good[at + len(change) :]
    assert read_in_pieces(data, size) == read(data)


class Server:
    """OpenSSL, as a server that notes the name it hears."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = lambda _, name, __: self.heard.append(name)

    def hear(self, data: bytes) -> str | None:
        """The name in a hello, or None if there is none or OpenSSL refuses it."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(data)
        self.heard.clear()
        try:
            server.do_handshake()
        except ssl.SSLError:
            pass
        return self.heard[0] if self.heard else None


# Python can't hand a name that isn't ASCII to the callback, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_openssl_never_hears_another_name(data: st.DataObject) -> None:
    hello = client_hello(
        data.draw(st.sampled_from([b"allowed.test", b"evil.test", None])),
        duplicate_sni=data.draw(st.sampled_from([None, None, b"evil.test"])),
        fragment=data.draw(st.sampled_from([None, 1, 3, 100])),
        record_version=data.draw(st.sampled_from([0x0300, 0x0301, 0x0303, 0x0304, 0x03FF])),
        legacy_version=data.draw(st.sampled_from([0x0303, 0x0301, 0x0304])),
    )
    at = data.draw(st.integers(0, len(hello)))
    change = data.draw(st.binary(max_size=3))
    hello = hello[:at] + change + hello[at + data.draw(st.integers(0, 3)) :]
    ours = read(hello)
    heard = Server().hear(hello)
    if heard is not None and isinstance(ours, ClientHello):
        assert ours.server_name == heard.encode("ascii", "replace")
