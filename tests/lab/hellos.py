"""Builds TLS ClientHellos (RFC 8446 section 4.1.2): sound ones, and unsound ones on request."""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

SERVER_NAME: Final = 0
ALPN: Final = 16
PADDING: Final = 21
SUPPORTED_VERSIONS: Final = 43
KEY_SHARE: Final = 51
ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D

HOST_NAME: Final = 0
"""The one type of name that RFC 6066 defines."""

RANDOM: Final = bytes(range(32))
"""The default ``random`` of a hello: a test that wants to find its own at the origin passes another."""

_X25519: Final = 0x001D
_SECP256R1: Final = 0x0017
# RFC 7748 section 6.1: Alice's public key. Nothing is ever decrypted with it, but the server must accept it.
_PUBLIC_KEY: Final = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
_CIPHER_SUITES: Final = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8)
_SIGNATURE_ALGORITHMS: Final = (0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601)
_GREASE: Final = 0x6A6A  # one of the sixteen values of RFC 8701

type Extension = tuple[int, bytes]
"""Type and body."""


def client_hello(
    sni: bytes | None = b"allowed.test",
    *,
    names: Sequence[tuple[int, bytes]] | None = None,
    duplicate_sni: bytes | None = None,
    extra_extensions: Sequence[Extension] = (),
    alpn: Sequence[bytes] = (),
    versions: Sequence[int] = (0x0304, 0x0303),
    ech: bool = False,
    grease: bool = False,
    padding: int | None = None,
    random: bytes = RANDOM,
    session_id: bytes = RANDOM[::-1],
    legacy_version: int = 0x0303,
    record_version: int = 0x0301,
    fragment: int | Sequence[int] | None = None,
) -> bytes:
    """The TLS records of a ClientHello, one that servers accept unless the arguments say otherwise.

    ``names`` are the entries (type, name) of the server name list, in place of ``sni``'s one.
    ``duplicate_sni``: a second server_name extension, with that name. ``extra_extensions`` come after all
    others but padding. ``versions`` are those of supported_versions; none: no such extension and no key
    share, as TLS 1.2 has it. ``ech``: an encrypted_client_hello extension of the outer form, which to anyone
    without the key is what GREASE looks like, too. ``grease``: reserved values (RFC 8701) among suites,
    groups, versions, key shares and extensions. ``padding``: that many zero bytes in a padding extension.
    ``fragment``: see ``records``.
    """
    extensions: list[Extension] = [(_GREASE, b"")] if grease else []
    if names is None and sni is not None:
        names = [(HOST_NAME, sni)]
    if names is not None:
        extensions.append(server_name(names))
    if duplicate_sni is not None:
        extensions.append(server_name([(HOST_NAME, duplicate_sni)]))
    first = [_GREASE] if grease else []
    suites = [*first, *_CIPHER_SUITES]
    groups = [*first, _X25519, _SECP256R1]
    extensions += [
        (23, b""),  # extended_master_secret
        (0xFF01, b"\0"),  # renegotiation_info
        (10, _vector(2, _numbers(groups))),  # supported_groups
        (11, _vector(1, b"\0")),  # ec_point_formats
        (13, _vector(2, _numbers(_SIGNATURE_ALGORITHMS))),  # signature_algorithms
    ]
    if alpn:
        extensions.append((ALPN, _vector(2, b"".join(_vector(1, protocol) for protocol in alpn))))
    if versions:
        shares = struct.pack("!H", _X25519) + _vector(2, _PUBLIC_KEY)
        if grease:
            shares = struct.pack("!H", _GREASE) + _vector(2, b"\0") + shares
        extensions += [
            (SUPPORTED_VERSIONS, _vector(1, _numbers([*first, *versions]))),
            (KEY_SHARE, _vector(2, shares)),
            (45, _vector(1, b"\x01")),  # psk_key_exchange_modes: psk_dhe_ke
        ]
    if ech:
        extensions.append(encrypted_client_hello())
    extensions += extra_extensions
    if padding is not None:
        extensions.append((PADDING, bytes(padding)))
    body = (
        struct.pack("!H", legacy_version)
        + random
        + _vector(1, session_id)
        + _vector(2, _numbers(suites))
        + _vector(1, b"\0")
        + _vector(2, b"".join(struct.pack("!H", kind) + _vector(2, content) for kind, content in extensions))
    )
    return records(handshake(body), fragment, version=record_version)


def server_name(names: Iterable[tuple[int, bytes]]) -> Extension:
    """The server_name extension (RFC 6066 section 3) with these entries: type and name."""
    entries = b"".join(bytes([kind]) + _vector(2, name) for kind, name in names)
    return SERVER_NAME, _vector(2, entries)


def encrypted_client_hello(payload: bytes = bytes(144)) -> Extension:
    """The outer form of the encrypted_client_hello extension (RFC 9849 section 5)."""
    suite = struct.pack("!HH", 0x0001, 0x0001)  # HKDF-SHA256, AES-128-GCM
    return ENCRYPTED_CLIENT_HELLO, b"\0" + suite + b"\x2a" + _vector(2, _PUBLIC_KEY) + _vector(2, payload)


def handshake(body: bytes, *, kind: int = 1) -> bytes:
    """A handshake message, a ClientHello by default, around a body."""
    return bytes([kind]) + _vector(3, body)


def records(
    message: bytes,
    fragment: int | Sequence[int] | None = None,
    *,
    version: int = 0x0301,
    content_type: int = 22,
) -> bytes:
    """A message in TLS records.

    ``fragment``: None, records as long as they may be; n, records of n bytes each; a sequence, the
    offsets in the message where one record ends and another begins (twice the same: an empty record).
    """
    if fragment is None:
        fragment = 1 << 14
    cuts = range(fragment, len(message), fragment) if isinstance(fragment, int) else fragment
    bounds = [0, *cuts, len(message)]
    return b"".join(
        struct.pack("!BH", content_type, version) + _vector(2, message[start:end])
        for start, end in pairwise(bounds)
    )


def _vector(width: int, content: bytes) -> bytes:
    """Content with its length, in that many bytes, before it."""
    return len(content).to_bytes(width) + content


def _numbers(values: Iterable[int]) -> bytes:
    return b"".join(struct.pack("!H", value) for value in values)
