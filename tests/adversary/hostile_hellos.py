"""Hellos that no sound client sends, and starts that only look like one, each with the attack's secret."""

from collections.abc import Callable, Iterable
from typing import Final

from tests.adversary.attack import EVIL, HIDDEN
from tests.adversary.attacker import Attacker
from tests.adversary.wire import hello
from tests.lab import plan
from tests.lab.hellos import handshake, records, server_name

type MakeHello = Callable[[Attacker], bytes]

ALLOWED: Final = b"allowed.test"
FRONT: Final = b"front.cdn.test"
EARLY_DATA: Final = b"\x17\x03\x03\x00\x09earlydata"
CHANGE_CIPHER_SPEC: Final = b"\x14\x03\x03\x00\x01\x01"
TICKET: Final = (35, bytes(range(160)))
RESUMPTION: Final = (
    (42, b""),  # early_data
    (41, b"\x00\x26\x00\x20" + bytes(32) + bytes(4) + b"\x00\x21\x20" + bytes(32)),  # pre_shared_key
)
ECH: Final = (0xFE0D, bytes(range(200)))
ESNI: Final = (0xFFCE, bytes(range(200)))
VERSIONS: Final = {
    "SSL 3": {"versions": (), "legacy_version": 0x0300, "record_version": 0x0300},
    "TLS 1.0": {"versions": (), "legacy_version": 0x0301},
    "TLS 1.1": {"versions": (), "legacy_version": 0x0302},
    "TLS 1.2": {"versions": ()},
    "TLS 1.3": {"versions": (0x0304,)},
    "no version that there is": {"versions": (0x0305, 0x7A7A)},
    "a legacy version of TLS 1.3": {"legacy_version": 0x0304},
    "records of SSL 3": {"record_version": 0x0300},
    "records of TLS 1.1": {"record_version": 0x0302},
    "records of TLS 1.2": {"record_version": 0x0303},
    "records of TLS 1.3": {"record_version": 0x0304},
    "records of no version that there is": {"record_version": 0x03FF},
}
ALPN: Final = (b"h2", b"http/1.1", b"dot", b"doq", b"acme-tls/1", b"imap", b"ssh", b"\0", b"x" * 255)


def body(hello: bytes) -> bytes:
    """The body of a hello in one record, behind both headers."""
    return hello[9:]


def with_server_name(box: Attacker, content: bytes) -> bytes:
    """A hello whose server_name extension holds whatever it is given."""
    return hello(box, None, extra_extensions=[(0, content)])


def shortened(hello: bytes, by: int) -> bytes:
    """A hello of which the last bytes are missing, by both headers' account too."""
    return records(handshake(body(hello)[:-by]))


def cut_in_name(name: bytes) -> Callable[[Attacker], Iterable[bytes]]:
    """A hello in two records, cut at every place in the name and on both sides of it."""

    def hellos(box: Attacker) -> Iterable[bytes]:
        start = hello(box, name).index(name) - 5
        return [hello(box, name, fragment=[start + offset]) for offset in range(len(name) + 1)]

    return hellos


def interrupted(box: Attacker, record: bytes, version: int = 0x0301) -> bytes:
    """A hello in two records with something between them."""
    message = handshake(body(hello(box, FRONT)))
    return records(message[:50]) + record + records(message[50:], version=version)


def without_extensions(body: bytes) -> bytes:
    end = 2 + 32
    end += 1 + body[end]  # the session id
    end += 2 + int.from_bytes(body[end : end + 2])  # the cipher suites
    end += 1 + body[end]  # the compression methods
    return body[:end]


def with_extensions_length(data: bytes, length: int) -> bytes:
    start = without_extensions(body(data))
    return records(handshake(start + length.to_bytes(2) + body(data)[len(start) + 2 :]))


AMBIGUOUS: Final[dict[str, MakeHello]] = {
    "two names in one list": lambda box: hello(box, None, names=[(0, FRONT), (0, HIDDEN)]),
    "two names in one list, the denied one first": lambda box: hello(
        box, None, names=[(0, HIDDEN), (0, FRONT)]
    ),
    "the same name twice": lambda box: hello(box, None, names=[(0, FRONT), (0, FRONT)]),
    "two lists": lambda box: hello(box, FRONT, duplicate_sni=HIDDEN),
    "two lists, the denied one first": lambda box: hello(box, HIDDEN, duplicate_sni=FRONT),
    "two lists, the first one broken": lambda box: hello(
        box, None, extra_extensions=[server_name([(0, b"no name")]), server_name([(0, FRONT)])]
    ),
    "a name of another type before it": lambda box: hello(box, None, names=[(1, HIDDEN), (0, FRONT)]),
    "a name of another type behind it": lambda box: hello(box, None, names=[(0, FRONT), (1, HIDDEN)]),
    "a name of length 3": lambda box: with_server_name(
        box, server_name([(0, FRONT)])[1].replace(b"\x00\x0e", b"\x00\x03", 1)
    ),
    "a name of another type alone": lambda box: hello(box, None, names=[(1, FRONT)]),
}

NAMELESS: Final[dict[str, MakeHello]] = {
    "no name": lambda box: hello(box, None),
    "an empty list of names": lambda box: hello(box, None, names=[]),
    "an empty name": lambda box: hello(box, b""),
    "a ticket and no name": lambda box: hello(box, None, versions=(), extra_extensions=[TICKET]),
    "a resumption and no name": lambda box: hello(box, None, extra_extensions=RESUMPTION) + EARLY_DATA,
    "encrypted SNI in place of its name": lambda box: hello(box, None, extra_extensions=[ESNI]),
    "Encrypted Client Hello in place of its name": lambda box: hello(box, None, extra_extensions=[ECH]),
    "no extension at all": lambda box: records(handshake(without_extensions(body(hello(box, None))))),
}

BROKEN: Final[dict[str, MakeHello]] = {
    "an empty extension for its name": lambda box: with_server_name(box, b""),
    "a name list of length 0 around a name": lambda box: with_server_name(
        box, b"\0\0" + server_name([(0, FRONT)])[1][2:]
    ),
    "a name list of length 400": lambda box: with_server_name(
        box, b"\x01\x90" + server_name([(0, FRONT)])[1][2:]
    ),
    "a byte behind its name list": lambda box: with_server_name(box, server_name([(0, FRONT)])[1] + b"x"),
    "bytes behind its extensions": lambda box: records(handshake(body(hello(box, FRONT)) + b"xxxx")),
    "extensions of length 0": lambda box: with_extensions_length(hello(box, FRONT), 0),
    "extensions longer than itself": lambda box: with_extensions_length(hello(box, FRONT), 5000),
    "its last bytes missing": lambda box: shortened(hello(box, FRONT), 3),
    "another hello in its record": lambda box: records(
        handshake(body(hello(box, FRONT))) + handshake(body(hello(box, HIDDEN)))
    ),
    "the start of another hello in its record": lambda box: records(
        handshake(body(hello(box, FRONT))) + handshake(body(hello(box, HIDDEN)))[:10]
    ),
    "the type of a ServerHello": lambda box: records(handshake(body(hello(box, FRONT)), kind=2)),
    "the type of a HelloRequest": lambda box: records(handshake(body(hello(box, FRONT)), kind=0)),
    "an empty record before it": lambda box: records(b"") + hello(box, FRONT),
    "an empty record in it": lambda box: hello(box, FRONT, fragment=[20, 20]),
    "an alert in it": lambda box: interrupted(box, b"\x15\x03\x01\x00\x02\x01\x70"),
    "a change_cipher_spec in it": lambda box: interrupted(box, CHANGE_CIPHER_SPEC),
    "application data in it": lambda box: interrupted(box, EARLY_DATA),
    "a record of another version in it": lambda box: interrupted(box, b"", version=0x0203),
    "a record longer than there may be": lambda box: b"\x16\x03\x01\x40\x01" + hello(box, FRONT)[5:],
    "a legacy version of DTLS": lambda box: hello(box, FRONT, legacy_version=0xFEFD),
    "a session id of 33 bytes": lambda box: hello(box, FRONT, session_id=bytes(33)),
    "an extension twice": lambda box: hello(box, FRONT, extra_extensions=[(23, b"")]),
    "garbage behind a record's header": lambda box: b"\x16\x03\x01\x00\x20" + box.nonce.encode() * 2,
}

TOO_LARGE: Final[dict[str, MakeHello]] = {
    "64 KiB of extensions before its name": lambda box: hello(
        box,
        None,
        extra_extensions=[(0x1234, bytes(60_000)), (0x1235, bytes(5_330)), server_name([(0, EVIL)])],
    ),
    "an announced length of 16 MiB": lambda box: (
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + body(hello(box, FRONT))
    ),
    "300 extensions": lambda box: hello(
        box, FRONT, extra_extensions=[(0x2000 + number, b"") for number in range(300)]
    ),
    "60 KiB in records of a byte": lambda box: hello(box, FRONT, padding=60_000, fragment=1),
}

NOT_TLS: Final[dict[str, MakeHello]] = {
    "a hello of SSL 2": lambda box: (
        b"\x80\x39\x01\x03\x01\x00\x20\x00\x00\x00\x10" + bytes(32) + box.nonce.encode()
    ),
    "a hello of SSL 2 with three bytes of length": lambda box: (
        b"\x00\x3a\x00\x01\x03\x01\x00\x20\x00\x00\x00\x10" + bytes(32) + box.nonce.encode()
    ),
    "a hello of DTLS": lambda box: b"\x16\xfe\xfd" + bytes(8) + b"\x00\x40" + hello(box, ALLOWED)[5:],
    "a QUIC packet": lambda box: b"\xc3\x00\x00\x00\x01\x08" + box.nonce.encode() + hello(box, ALLOWED),
    "an alert before a hello": lambda box: b"\x15\x03\x01\x00\x02\x01\x70" + hello(box, ALLOWED),
    "a change_cipher_spec before a hello": lambda box: CHANGE_CIPHER_SPEC + hello(box, ALLOWED),
    "application data before a hello": lambda box: EARLY_DATA + hello(box, ALLOWED),
    "a zero byte before a hello": lambda box: b"\0" + hello(box, ALLOWED),
    "a line end before a hello": lambda box: b"\r\n" + hello(box, ALLOWED),
    "records of major version 2": lambda box: b"\x16\x02" + hello(box, ALLOWED)[2:],
    "records of major version 4": lambda box: b"\x16\x04" + hello(box, ALLOWED)[2:],
    "the PROXY protocol before a hello": lambda box: (
        f"PROXY TCP4 {plan.ALLOWED4} {plan.EVIL4} 1 443\r\n".encode() + hello(box, ALLOWED)
    ),
    "version 2 of the PROXY protocol before a hello": lambda box: (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + hello(box, ALLOWED)
    ),
    "SOCKS 5": lambda box: b"\x05\x01\x00\x05\x01\x00\x03\x0callowed.test\x01\xbb" + hello(box, ALLOWED),
    "SMTP's STARTTLS before a hello": lambda box: b"EHLO allowed.test\r\nSTARTTLS\r\n" + hello(box, ALLOWED),
    "IMAP's STARTTLS before a hello": lambda box: b"a1 STARTTLS\r\n" + hello(box, ALLOWED),
    "POP3's STLS before a hello": lambda box: b"STLS\r\n" + hello(box, ALLOWED),
    "FTP's AUTH TLS before a hello": lambda box: b"AUTH TLS\r\n" + hello(box, ALLOWED),
    "XMPP's stream before a hello": lambda box: b"<?xml version='1.0'?><stream:stream>" + hello(box, ALLOWED),
    "LDAP's StartTLS before a hello": lambda box: (
        b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037" + hello(box, ALLOWED)
    ),
}
