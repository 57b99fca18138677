"""Lays the cables of the rig, and the redirect."""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex, ipv4addr
from pyroute2.nftables.main import NFTables

from benchmarks.rig import plan

__all__ = ["TO_ORIGIN", "NetlinkError", "connect"]

TO_ORIGIN: Final = "to-origin"
"""The gate's end of the cable to the origin."""

_TABLE: Final = "benchmark"
_NFT_META_L4PROTO: Final = 16
_NFT_CMP_EQUAL: Final = 0
_PRIORITY_DSTNAT: Final = -100

_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    # A rate of thousands a second comes back to the same ports within seconds. Timestamps without an offset
    # per connection let the kernel take a port out of TIME_WAIT at once.
    "net/ipv4/tcp_timestamps": "2",
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/core/somaxconn": "4096",
    # The connection tracking table is one for the whole machine.
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
}


def connect(box: int, origin: int, redirected: Sequence[str]) -> None:
    """Join this network namespace to those of two processes.

    ``redirected`` are the origin's addresses that lead to the proxy; ``plan.DIRECT`` is one that doesn't.
    Raises OSError or pyroute2's NetlinkError, which is none, if the kernel refuses.
    """
    _configure()
    _cable("to-box", plan.GATE_TO_BOX, box, plan.BOX)
    _cable(TO_ORIGIN, plan.GATE_TO_ORIGIN, origin, plan.ORIGIN)
    with IPRoute() as gate:
        for address in (*redirected, plan.DIRECT):
            gate.route("add", dst=f"{address}/32", gateway=plan.ORIGIN)
    with _inside(box), IPRoute() as network:
        _configure()
        network.route("add", dst="default", gateway=plan.GATE_TO_BOX)
    with _inside(origin), IPRoute() as network:
        _configure()
        (loopback,) = network.link_lookup(ifname="lo")
        for address in (*redirected, plan.DIRECT):
            network.addr("add", index=loopback, address=address, prefixlen=32)
        network.route("add", dst="default", gateway=plan.GATE_TO_ORIGIN)
    _redirect(redirected)


def _configure() -> None:
    with IPRoute() as network:
        (loopback,) = network.link_lookup(ifname="lo")
        network.link("set", index=loopback, state="up")
    for name, value in _SYSCTLS.items():
        try:
            Path("/proc/sys", name).write_text(value)
        except OSError:
            # Connection tracking shows its own to root alone, and to nobody before it is in use.
            if "netfilter" not in name:
                raise


def _cable(name: str, here: str, process: int, there: str) -> None:
    with IPRoute() as gate:
        gate.link("add", ifname=name, kind="veth", peer={"ifname": "to-gate", "net_ns_pid": process})
        _plug_in(gate, name, here)
    with _inside(process), IPRoute() as network:
        _plug_in(network, "to-gate", there)


def _plug_in(network: IPRoute, name: str, address: str) -> None:
    (index,) = network.link_lookup(ifname=name)
    network.addr("add", index=index, address=address, prefixlen=24)
    network.link("set", index=index, state="up")


def _redirect(addresses: Sequence[str]) -> None:
    def data(value: bytes) -> dict[str, Any]:
        return {"attrs": [("NFTA_DATA_VALUE", value)]}

    with NFTables() as nft:
        nft.table("add", name=_TABLE)
        nft.chain(
            "add", table=_TABLE, name="redirect", type="nat", hook="prerouting", priority=_PRIORITY_DSTNAT
        )
        by_tcp = [
            genex("meta", {"dreg": 1, "key": _NFT_META_L4PROTO}),
            genex("cmp", {"sreg": 1, "op": _NFT_CMP_EQUAL, "data": data(bytes([socket.IPPROTO_TCP]))}),
        ]
        redirect = [
            genex("immediate", {"dreg": 1, "data": data(struct.pack("!H", plan.PROXY_PORT))}),
            genex("redir", {"reg_proto_min": 1}),
        ]
        for address in addresses:
            to_it = ipv4addr(dst=address)
            nft.rule("add", table=_TABLE, chain="redirect", expressions=(to_it, by_tcp, redirect))


@contextmanager
def _inside(process: int) -> Iterator[None]:
    """Visit the network namespace of a process: sockets made meanwhile belong there."""
    with open("/proc/self/ns/net") as home, open(f"/proc/{process}/ns/net") as away:
        os.setns(away.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)
