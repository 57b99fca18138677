"""A firewall redirect in the gate's host, as a sidecar or a router has one: for marked traffic only."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

MARK = 0x2A
"""SO_MARK of a test's client; the gate's own connections carry none."""

_INET = 1
_META_L4PROTO = 16
_META_MARK = 3


@contextmanager
def redirected(tcp_port: int, udp_port: int | None = None) -> Iterator[None]:
    """TCP with the mark goes to a local port, and UDP to port 53 with the mark to another."""
    with NFTables(nfgen_family=_INET) as nft:
        nft.table("add", name="test")
        nft.chain("add", table="test", name="out", hook="output", type="nat", priority=-100, policy=1)
        for protocol, port in ((socket.IPPROTO_TCP, tcp_port), (socket.IPPROTO_UDP, udp_port)):
            if port is not None:
                nft.rule("add", table="test", chain="out", expressions=(_redirect(protocol, port),))
        try:
            yield
        finally:
            nft.table("del", name="test")


def marked(kind: socket.SocketKind, address: str) -> socket.socket:
    """A socket whose traffic is redirected."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    sock.settimeout(15)
    return sock


def _redirect(protocol: int, port: int) -> list[Any]:
    return [
        genex("meta", {"dreg": 1, "key": _META_MARK}),
        genex("cmp", {"sreg": 1, "op": 0, "data": _value(struct.pack("=I", MARK))}),
        genex("meta", {"dreg": 1, "key": _META_L4PROTO}),
        genex("cmp", {"sreg": 1, "op": 0, "data": _value(bytes((protocol,)))}),
        genex("immediate", {"dreg": 1, "data": _value(struct.pack("!H", port))}),
        genex("redir", {"reg_proto_min": 1}),
    ]


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}
