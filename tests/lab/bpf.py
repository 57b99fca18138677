"""Classic BPF programs on sockets: which packets a socket gets to see at all."""

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

_SO_ATTACH_FILTER: Final = 26

type Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: ``struct sock_filter``."""

_LOAD_BYTE: Final = 0x30
_LOAD_BYTE_INDEXED: Final = 0x50
_LOAD_IPV4_HEADER_LENGTH: Final = 0xB1  # X = 4 * (packet[k] & 15)
_SHIFT_RIGHT: Final = 0x74
_AND: Final = 0x54
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06

_PACKET_TYPE: Final = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING: Final = 4

NOTHING: Final[Sequence[Instruction]] = ((_RETURN, 0, 0, 0),)

OUTGOING: Final[Sequence[Instruction]] = (
    (_LOAD_BYTE, 0, 0, _PACKET_TYPE),
    (_JUMP_EQUAL, 0, 1, _OUTGOING),
    (_RETURN, 0, 0, 0xFFFF),
    (_RETURN, 0, 0, 0),
)

OUTGOING_ATTEMPTS: Final[Sequence[Instruction]] = (
    (_LOAD_BYTE, 0, 0, _PACKET_TYPE),
    (_JUMP_EQUAL, 0, 14, _OUTGOING),
    (_LOAD_BYTE, 0, 0, 0),
    (_SHIFT_RIGHT, 0, 0, 4),
    (_JUMP_EQUAL, 0, 4, 6),
    (_LOAD_BYTE, 0, 0, 6),  # IPv6: the next header
    (_JUMP_EQUAL, 0, 8, socket.IPPROTO_TCP),
    (_LOAD_BYTE, 0, 0, 40 + 13),
    (_JUMP, 0, 0, 4),
    (_LOAD_BYTE, 0, 0, 9),  # IPv4: the protocol
    (_JUMP_EQUAL, 0, 4, socket.IPPROTO_TCP),
    (_LOAD_IPV4_HEADER_LENGTH, 0, 0, 0),
    (_LOAD_BYTE_INDEXED, 0, 0, 13),
    (_AND, 0, 0, 0x12),
    (_JUMP_EQUAL, 0, 1, 0x02),  # SYN without ACK
    (_RETURN, 0, 0, 0xFFFF),
    (_RETURN, 0, 0, 0),
)
"""As OUTGOING, but of TCP only the packets that open a connection."""


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Let a socket see only what the program accepts."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    filter_program = struct.pack("HL", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)
