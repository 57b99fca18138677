"""The ClientHello: what the gate reads in it is what every server hears.

What follows the hello, as the second one after a HelloRetryRequest, is another message.
"""

import zlib
from random import Random
from typing import Final

from box_policy.policy.domains import name_from_wire
from box_policy.wire.client_hello import MAX_WIRE, ClientHello, ClientHelloReader, Malformed
from box_policy.wire.first_bytes import Start, classify
from tests.fuzz.hello_shape import NAMES, mutate
from tests.fuzz.openssl import BundledServer, Server, StandardServer
from tests.fuzz.target import Target
from tests.lab.hellos import ALPN, ENCRYPTED_CLIENT_HELLO, HOST_NAME, SERVER_NAME, client_hello, server_name

SERVERS: Final[tuple[Server, ...]] = (StandardServer(), BundledServer())

_RECORD_HEADER: Final = 5


def one(data: bytes) -> None:
    """Read it whole and in pieces; hold what was read against the bytes themselves, and against OpenSSL."""
    reader = ClientHelloReader()
    result = reader.feed(data)
    assert reader.received == data, "not all bytes were kept for forwarding"
    assert read_in_pieces(data) == result, "the splitting matters"
    if result is None:
        assert len(data) <= MAX_WIRE + _RECORD_HEADER, "more is waited for than a hello may have"
        assert reader.feed(bytes(MAX_WIRE)) is not None, "waits without bound"
    if not isinstance(result, ClientHello):
        return
    assert classify(data) is Start.TLS
    assert ClientHelloReader().feed(data[: result.size]) == result
    assert ClientHelloReader().feed(data[: result.size - 1]) is None
    assert reader.feed(data) is result, "a result has changed"
    check_unambiguous(data, result)
    check_judged_name(result.server_name)
    for server in SERVERS:
        for heard in server.hear(data):
            assert heard == result.server_name, f"{server.version} hears {heard!r}"


def read_in_pieces(data: bytes) -> ClientHello | Malformed | None:
    """As the bytes of a slow or sly client come. The same bytes always come in the same pieces."""
    random = Random(zlib.crc32(data))
    cuts = range(1, len(data)) if random.random() < 0.05 else few_cuts(len(data), random)
    reader = ClientHelloReader()
    result = None
    start = 0
    for end in (*cuts, len(data)):
        earlier, result = result, reader.feed(data[start:end])
        assert earlier is None or result is earlier, "a result has changed"
        start = end
    return result


def few_cuts(length: int, random: Random) -> list[int]:
    """Where to cut so many bytes: early on, and anywhere."""
    early = {random.randint(0, min(length, 16)) for _ in range(3)}
    return sorted(early | {random.randint(0, length) for _ in range(random.randrange(6))})


def check_unambiguous(data: bytes, hello: ClientHello) -> None:
    """Nothing in the bytes could be read in another way: written anew, what was read gives these bytes."""
    extensions = extensions_of(data)
    kinds = [kind for kind, _ in extensions]
    assert len(kinds) == len(set(kinds)), "an extension twice"
    bodies = dict(extensions)
    if hello.server_name is None:
        assert SERVER_NAME not in bodies, "a name was overlooked"
    else:
        assert hello.server_name, "an empty name"
        assert server_name([(HOST_NAME, hello.server_name)]) == (SERVER_NAME, bodies.get(SERVER_NAME))
    listed = b"".join(bytes([len(protocol)]) + protocol for protocol in hello.alpn)
    assert bodies.get(ALPN, b"\0\0") == len(listed).to_bytes(2) + listed
    assert hello.ech or ENCRYPTED_CLIENT_HELLO not in bodies, "Encrypted Client Hello was overlooked"


def extensions_of(data: bytes) -> list[tuple[int, bytes]]:
    """The extensions of an accepted hello, found the plain way: every length must lead to its end."""
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        assert data[0] == 22 and data[1] == 3, "another record before the end of the hello"
        length = int.from_bytes(data[3:5])
        assert 0 < length <= 1 << 14
        message += data[5 : 5 + length]
        data = data[5 + length :]
    assert message[0] == 1
    assert len(message) == 4 + int.from_bytes(message[1:4]), "bytes behind the hello in its record"
    position = 4 + 2 + 32
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        position += width + int.from_bytes(message[position : position + width])
    if position == len(message):
        return []
    assert position + 2 + int.from_bytes(message[position : position + 2]) == len(message)
    position += 2
    found = []
    while position < len(message):
        length = int.from_bytes(message[position + 2 : position + 4])
        found.append(
            (int.from_bytes(message[position : position + 2]), message[position + 4 : position + 4 + length])
        )
        position += 4 + length
    assert position == len(message), "the last extension ends elsewhere than the extensions"
    return found


def check_judged_name(name: bytes | None) -> None:
    """A name is judged as itself, but for case and one trailing dot, or it is not judged at all."""
    judged = name_from_wire(name) if name is not None else None
    if judged is not None:
        assert name is not None
        assert judged.encode("ascii") == name.lower().removesuffix(b"."), "judged as another name"
        assert name_from_wire(judged.encode("ascii")) == judged


SEEDS: Final = (
    client_hello(),
    client_hello(None),
    client_hello(versions=()),
    client_hello(versions=(), legacy_version=0x0301),
    client_hello(b"A-1.Wild.TEST.", alpn=[b"h2", b"http/1.1"], grease=True),
    client_hello(ech=True, padding=100),
    client_hello(fragment=1),
    client_hello(fragment=60, record_version=0x0303),
    client_hello(duplicate_sni=b"evil.test"),
    client_hello(names=[(HOST_NAME, b"allowed.test"), (HOST_NAME, b"evil.test")]),
    client_hello(names=[(1, b"allowed.test"), (HOST_NAME, b"evil.test")]),
    client_hello(names=[]),
    client_hello(b"allowed.test\0.evil.test"),
    client_hello() + b"\x17\x03\x03\x00\x04data",
    b"",
    b"\x16\x03\x01\x40\x00\x01\x00\xff\xfc",
)

TARGET: Final = Target(one, SEEDS, [name for name in NAMES if name], max_length=4096, mutate=mutate)
