"""The ClientHello after a HelloRetryRequest: a server that asks for another hello hears no other name."""

import zlib
from random import Random
from typing import Final

import trustme

from box_policy.wire.client_hello import ClientHello, ClientHelloReader
from box_policy.wire.second_hello import SecondHelloReader
from tests.fuzz.client_hello import few_cuts
from tests.fuzz.hello_shape import NAMES, mutate
from tests.fuzz.openssl import BundledServer, Server, StandardServer
from tests.fuzz.target import Mutate, Target
from tests.lab.hellos import KEY_SHARE, SUPPORTED_VERSIONS, client_hello

_NAME: Final = b"allowed.test"
_VERSIONS: Final = (SUPPORTED_VERSIONS, b"\2\3\4")
FIRST: Final = client_hello(_NAME, versions=(), extra_extensions=[_VERSIONS, (KEY_SHARE, b"\0\0")])
"""A hello without a key share: whoever speaks TLS 1.3 asks for another."""

_CERTIFICATE: Final = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
    "allowed.test", key_type=trustme.KeyType.ECDSA
)
SERVERS: Final[tuple[Server, ...]] = (
    StandardServer(_CERTIFICATE.configure_cert),
    BundledServer(_CERTIFICATE.configure_cert),
)
RETRIES: Final = tuple(server.answer(FIRST) for server in SERVERS)


def one(data: bytes) -> None:
    """Send it, as far as the gate lets it through, to servers that have asked for a second hello."""
    random = Random(zlib.crc32(data))
    for server, retry in zip(SERVERS, RETRIES, strict=True):
        flights = let_through([data], retry)
        pieces = [data[start:end] for start, end in _spans(len(data), random)]
        assert b"".join(flights) in (data, b"")
        assert bool(flights) == (let_through(pieces, retry) == pieces), "the splitting matters"
        for heard in server.hear(FIRST, *flights), server.hear(FIRST, *let_through(pieces, retry)):
            assert set(heard) <= {_NAME}, f"{server.version} hears {heard!r}"


def let_through(pieces: list[bytes], retry: bytes) -> list[bytes]:
    """The pieces that are passed on before the reader finds fault."""
    first = ClientHelloReader().feed(FIRST)
    assert isinstance(first, ClientHello)
    reader = SecondHelloReader(first)
    reader.from_server(retry)
    passed = []
    for piece in pieces:
        reader.from_client(piece)
        if reader.fault is not None:
            break
        passed.append(piece)
    return passed


def _spans(length: int, random: Random) -> list[tuple[int, int]]:
    cuts = few_cuts(length, random)
    return list(zip([0, *cuts], [*cuts, length], strict=True))


def mutate_behind(data: bytes, random: Random, change: Mutate) -> bytes:
    """Change the hello, or what comes before it."""
    start = 0
    while data[start : start + 1] in (b"\x14", b"\x15", b"\x17"):
        start += 5 + int.from_bytes(data[start + 3 : start + 5])
    before, hello = data[:start], data[start:]
    if random.random() < 0.2:
        return random.choice((*BEFORE, change(before))) + hello
    return before + mutate(hello, random, change)


BEFORE: Final = (
    b"",
    b"\x14\x03\x03\0\1\1",  # ChangeCipherSpec
    b"\x17\x03\x03\0\4data",
    b"\x14\x03\x03\0\1\1\x17\x03\x03\0\4data",
    b"\x15\x03\x03\0\2\1\0",  # an alert, and only a warning
    b"\x18\x03\x03\0\1\1",  # a heartbeat
)
SEEDS: Final = (
    *(before + client_hello(_NAME) for before in BEFORE),
    *(before + client_hello(b"evil.test", fragment=100) for before in BEFORE),
    client_hello(None),
    client_hello(_NAME) + client_hello(b"evil.test"),
    client_hello(_NAME, duplicate_sni=b"evil.test"),
    client_hello(b"ALLOWED.test"),
)

TARGET: Final = Target(one, SEEDS, [name for name in NAMES if name], max_length=2048, mutate=mutate_behind)
