"""A ClientHello taken apart and put together again, so that it can be changed where it matters.

Bytes changed at random rarely get past the first length that no longer fits. Here every length is
written anew, and is wrong only where a change makes it so.
"""

import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Final

from tests.fuzz.target import Mutate
from tests.lab.hellos import ENCRYPTED_CLIENT_HELLO, HOST_NAME, SERVER_NAME, Extension, server_name

NAMES: Final = (
    b"allowed.test",
    b"evil.test",
    b"ALLOWED.test",
    b"allowed.test.",
    b"allowed.test..",
    b"allowed.test\0",
    b"allowed.test\0.evil.test",
    b"\0",
    b".",
    b"",
    b"a",
    b"\xc3\xa9vil.test",
    b"xn--vil-9na.test",
    b"xn--0000000000000000000eeea",
    b"127.0.0.1",
    b"[::1]",
    b"allowed.test:443",
    b"a." * 126 + b"a",
    b"a" * 255,
    b"a" * 256,
)
KINDS: Final = (0, 0, 0, 1, 10, 13, 16, 21, 35, 41, 43, 51, ENCRYPTED_CLIENT_HELLO, 0x0A0A, 0xFF01)

_RANDOM: Final = 32


@dataclass(frozen=True)
class Shape:
    """The parts of a hello. Put together, they make the records of one handshake message."""

    record_version: int = 0x0301
    cuts: tuple[int, ...] = ()
    """Offsets in the message at which one record ends and the next begins."""
    kind: int = 1
    """Of the handshake message."""
    version: bytes = b"\x03\x03"
    random: bytes = bytes(_RANDOM)
    session_id: bytes = b""
    suites: bytes = b"\x13\x01"
    compression: bytes = b"\0"
    extensions: tuple[Extension, ...] | None = ()
    """None: not even their length is there."""
    in_extensions: bytes = b""
    """What the last extension is followed by, within the extensions."""
    in_message: bytes = b""
    """What the extensions are followed by, within the message."""
    in_record: bytes = b""
    """What the message is followed by, in its last record."""
    behind: bytes = b""
    """What the records are followed by."""
    between: dict[int, bytes] = field(default_factory=dict)
    """What stands before a record, by its number: a record of another kind."""
    lies: dict[str, int] = field(default_factory=dict)
    """By how much a length is wrong: that of ``session_id``, ``suites``, ``compression``, ``extensions``,
    ``message``, ``extension N`` or ``record N``."""

    def put_together(self) -> bytes:
        body = self.version + self.random
        body += self._vector(1, self.session_id, "session_id")
        body += self._vector(2, self.suites, "suites")
        body += self._vector(1, self.compression, "compression")
        if self.extensions is not None:
            inner = b"".join(
                struct.pack("!H", kind) + self._vector(2, content, f"extension {number}")
                for number, (kind, content) in enumerate(self.extensions)
            )
            body += self._vector(2, inner + self.in_extensions, "extensions")
        message = bytes([self.kind]) + self._vector(3, body + self.in_message, "message") + self.in_record
        cuts = sorted(cut for cut in self.cuts if cut <= len(message))
        bounds = [0, *cuts, len(message)]
        wire = b""
        for number, (start, end) in enumerate(pairwise(bounds)):
            wire += self.between.get(number, b"")
            wire += struct.pack("!BH", 22, self.record_version)
            wire += self._vector(2, message[start:end], f"record {number}")
        return wire + self.behind

    def _vector(self, width: int, content: bytes, name: str) -> bytes:
        limit = (1 << 8 * width) - 1
        length = len(content) + self.lies.get(name, 0)
        return min(max(length, 0), limit).to_bytes(width) + content


def take_apart(data: bytes) -> Shape | None:
    """The shape of a hello that is sound as far as its lengths go, else None."""
    message = b""
    cuts: list[int] = []
    position = 0
    size = 4
    while len(message) < size:
        header = data[position : position + 5]
        if len(header) < 5 or header[0] != 22:
            return None
        length = int.from_bytes(header[3:])
        if message:
            cuts.append(len(message))
        message += data[position + 5 : position + 5 + length]
        position += 5 + length
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4])
    rest = _Rest(message[4:size])
    shape = Shape(
        record_version=int.from_bytes(data[1:3]),
        cuts=tuple(cuts),
        kind=message[0],
        version=rest.take(2),
        random=rest.take(_RANDOM),
        session_id=rest.vector(1),
        suites=rest.vector(2),
        compression=rest.vector(1),
        extensions=None,
        in_record=message[size:],
        behind=data[position:],
    )
    if not rest.data:
        return None if rest.short else shape
    inner = _Rest(rest.vector(2))
    extensions: list[Extension] = []
    while inner.data:
        extensions.append((int.from_bytes(inner.take(2)), inner.vector(2)))
    return (
        None
        if rest.short or inner.short
        else replace(shape, extensions=tuple(extensions), in_message=rest.data)
    )


class _Rest:
    """What is still to be read. Reading more than there is gives what there is."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.short = False

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        self.short = self.short or len(taken) < size
        return taken

    def vector(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width)))


def mutate(data: bytes, random: Random, change: Mutate) -> bytes:
    """A hello with one to three of its parts changed; now and then just bytes changed."""
    shape = take_apart(data)
    if shape is None or random.random() < 0.2:
        return change(data)
    for _ in range(random.randint(1, 3)):
        shape = random.choice(_CHANGES)(shape, random, change)
    return shape.put_together()


def _name(shape: Shape, random: Random, change: Mutate) -> Shape:
    """Another name, or several, in a list whose lengths may lie."""
    names = [
        (random.choice((HOST_NAME, HOST_NAME, HOST_NAME, 1, 255)), random.choice(NAMES))
        for _ in range(random.choice((0, 1, 1, 1, 1, 2, 3)))
    ]
    kind, body = server_name(names)
    match random.randrange(6):
        case 0:
            body = change(body)
        case 1:
            body += random.choice((b"\0", b"\0\0\0", server_name([(HOST_NAME, b"evil.test")])[1]))
        case 2:
            body = body[: random.randrange(len(body) + 1)]
    others = [extension for extension in shape.extensions or () if extension[0] != SERVER_NAME]
    others.insert(random.randint(0, len(others)), (kind, body))
    return replace(shape, extensions=tuple(others))


def _one_extension(shape: Shape, random: Random, change: Mutate) -> Shape:
    extensions = list(shape.extensions or ())
    if not extensions:
        return replace(shape, extensions=((random.choice(KINDS), b""),))
    at = random.randrange(len(extensions))
    kind, content = extensions[at]
    match random.randrange(6):
        case 0:
            extensions[at] = kind, change(content)
        case 1:
            extensions[at] = random.choice(KINDS), content
        case 2:
            extensions.insert(random.randint(0, len(extensions)), (kind, content))
        case 3:
            extensions.insert(random.randint(0, len(extensions)), (kind, change(content)))
        case 4:
            del extensions[at]
        case 5:
            random.shuffle(extensions)
    return replace(shape, extensions=tuple(extensions))


def _second_name(shape: Shape, random: Random, change: Mutate) -> Shape:
    extensions = list(shape.extensions or ())
    extensions.insert(random.randint(0, len(extensions)), server_name([(HOST_NAME, random.choice(NAMES))]))
    return replace(shape, extensions=tuple(extensions))


def _field(shape: Shape, random: Random, change: Mutate) -> Shape:
    match random.randrange(8):
        case 0:
            return replace(shape, session_id=change(shape.session_id))
        case 1:
            return replace(shape, suites=change(shape.suites))
        case 2:
            return replace(shape, compression=change(shape.compression))
        case 3:
            return replace(shape, version=change(shape.version)[:2])
        case 4:
            return replace(shape, kind=random.choice((1, 1, 0, 2, 16)))
        case 5:
            return replace(
                shape, record_version=random.choice((0x0300, 0x0301, 0x0303, 0x0304, 0x03FF, 0x0200))
            )
        case 6:
            return replace(shape, extensions=None)
    return replace(shape, random=change(shape.random)[:_RANDOM])


def _tail(shape: Shape, random: Random, change: Mutate) -> Shape:
    """Bytes behind one of the things that end."""
    tail = random.choice((b"", b"\0", b"\0\0\0\0", change(b"\0\0\0\x0e"), shape.put_together()))
    match random.randrange(4):
        case 0:
            return replace(shape, in_extensions=tail)
        case 1:
            return replace(shape, in_message=tail)
        case 2:
            return replace(shape, in_record=tail)
    return replace(shape, behind=tail)


def _lie(shape: Shape, random: Random, change: Mutate) -> Shape:
    names = ["session_id", "suites", "compression", "extensions", "message", "record 0"]
    names += [f"extension {number}" for number in range(len(shape.extensions or ()))]
    return replace(shape, lies={random.choice(names): random.choice((-4, -2, -1, 1, 2, 4, 256))})


def _records(shape: Shape, random: Random, change: Mutate) -> Shape:
    """Other records, and other kinds of records among them."""
    length = len(replace(shape, cuts=(), behind=b"", between={}).put_together())
    cuts = tuple(random.randint(0, length) for _ in range(random.choice((0, 1, 1, 2, 3, 40))))
    between = {}
    if random.random() < 0.3:
        alien = random.choice(
            (b"\x15\x03\x01\0\2\1\0", b"\x14\x03\x01\0\1\1", b"\x16\x03\x01\0\0", b"\x17\x03\x03\0\1a")
        )
        between[random.randint(0, len(cuts))] = alien
    return replace(shape, cuts=cuts, between=between)


_CHANGES: Final = (_name, _name, _one_extension, _one_extension, _second_name, _field, _tail, _lie, _records)
