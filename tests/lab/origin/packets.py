"""Reads the headers of an IP packet."""

import socket
import struct
from typing import Final

from tests.lab.records import Packet

SNAPSHOT: Final = 512
"""Bytes of a packet that are looked at: all headers, and more payload than is kept."""
_KEPT: Final = 256

_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_ICMPV6: Final = 58
_FRAGMENT: Final = 44
_EXTENSIONS: Final = {0, 43, 60, 135, 139, 140}  # RFC 8200 section 4, RFC 6275, RFC 7401, RFC 5533
_NEIGHBOUR_NOISE: Final = {130, 131, 132, 133, 134, 135, 136, 137, 143}  # MLD and neighbour discovery
_FLAGS: Final = ((0x02, "S"), (0x10, "A"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"))


def read_packet(data: bytes) -> Packet | None:
    """The packet that begins so; None for what isn't IP, and for the kernel's own IPv6 housekeeping.

    By hand: no library at hand reads IP headers, and of them only this much is needed.
    """
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        header = (data[0] & 15) * 4
        (total,) = struct.unpack_from("!H", data, 2)
        first = struct.unpack_from("!H", data, 6)[0] & 0x1FFF == 0
        source, destination = (socket.inet_ntop(socket.AF_INET, data[at : at + 4]) for at in (12, 16))
        return _read_payload(data[9], first, source, destination, data[header:], total - header)
    if version == 6 and len(data) >= 40:
        total = 40 + struct.unpack_from("!H", data, 4)[0]
        source, destination = (socket.inet_ntop(socket.AF_INET6, data[at : at + 16]) for at in (8, 24))
        protocol, header, first = data[6], 40, True
        while protocol in _EXTENSIONS or protocol == _FRAGMENT:
            if len(data) < header + 8:
                break
            if protocol == _FRAGMENT:
                first = first and struct.unpack_from("!H", data, header + 2)[0] >> 3 == 0
                length = 8
            else:
                length = 8 + 8 * data[header + 1]
            protocol, header = data[header], header + length
        payload = data[header:]
        if protocol == _ICMPV6 and payload and payload[0] in _NEIGHBOUR_NOISE:
            return None
        return _read_payload(protocol, first, source, destination, payload, total - header)
    return None


def _read_payload(
    protocol: int, first: bool, source: str, destination: str, data: bytes, length: int
) -> Packet:
    source_port = port = header = 0
    flags = ""
    name = _PROTOCOLS.get(protocol, str(protocol))
    if first and name == "tcp" and len(data) >= 20:
        source_port, port = struct.unpack_from("!HH", data)
        header = (data[12] >> 4) * 4
        flags = "".join(letter for bit, letter in _FLAGS if data[13] & bit)
    elif first and name == "udp" and len(data) >= 8:
        source_port, port = struct.unpack_from("!HH", data)
        header = 8
    return Packet(
        protocol=name,
        source=source,
        source_port=source_port,
        address=destination,
        port=port,
        flags=flags,
        length=length - header,
        payload=data[header : header + max(0, min(_KEPT, length - header))],
    )
