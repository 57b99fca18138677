"""The cable between the gate's host and the origin, and the routes at both ends."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyroute2 import IPRoute, NetlinkError

from tests.lab import bpf, plan
from tests.lab.bpf import Instruction

__all__ = ["NetlinkError", "connect", "disconnect", "tap"]

# Both ends have the same hardware address and no ARP. With IFF_NOARP the kernel sends every frame to the
# interface's own hardware address, which is then the peer's: any address at all is a neighbour, at once,
# and no neighbour discovery shows up among the packets.
_HARDWARE_ADDRESS = "02:00:00:00:00:01"
_IFF_UP = 0x1
_IFF_NOARP = 0x80
_IFA_F_NODAD = 0x2
_LOCAL_TABLE = 255
_RTN_LOCAL = 2
_RTN_BLACKHOLE = 6
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_TAP_BUFFER = 64 << 20
"""Bytes; the kernel gives an ordinary user a few hundred KB of them."""


def connect(origin: int) -> None:
    """Join this network namespace to that of the process ``origin``.

    Raises pyroute2's NetlinkError (an OSError in meaning, not in type) or OSError if the kernel refuses.
    """
    with IPRoute() as gate:
        gate.link(
            "add",
            ifname=plan.GATE_INTERFACE,
            kind="veth",
            address=_HARDWARE_ADDRESS,
            peer={
                "ifname": plan.ORIGIN_INTERFACE,
                "address": _HARDWARE_ADDRESS,
                "net_ns_pid": origin,
            },
        )
        wire = _bring_up(gate, plan.GATE_INTERFACE)
        _add_address(gate, wire, plan.GATE4)
        _add_address(gate, wire, plan.GATE6)
        gate.route("add", family=socket.AF_INET, dst="default", oif=wire, scope="link")
        gate.route("add", family=socket.AF_INET6, dst="default", oif=wire)

    with _inside(origin), IPRoute() as host:
        loopback = _bring_up(host, "lo")
        wire = _bring_up(host, plan.ORIGIN_INTERFACE)
        _add_address(host, wire, plan.ORIGIN4)
        _add_address(host, wire, plan.ORIGIN6)
        for family, gate_address, bits, silent, everything in (
            (socket.AF_INET, plan.GATE4, 32, plan.SILENT4, "0.0.0.0/0"),
            (socket.AF_INET6, plan.GATE6, 128, plan.SILENT6, "::/0"),
        ):
            # All in the table that the kernel asks first; the longer prefix wins there.
            host.route(
                "add",
                family=family,
                table=_LOCAL_TABLE,
                type=_RTN_LOCAL,
                dst=everything,
                oif=loopback,
                scope="host",
            )
            host.route(
                "add",
                family=family,
                table=_LOCAL_TABLE,
                dst=f"{gate_address}/{bits}",
                oif=wire,
                scope="link",
            )
            host.route(
                "add",
                family=family,
                table=_LOCAL_TABLE,
                type=_RTN_BLACKHOLE,
                dst=f"{silent}/{bits}",
                **({"oif": loopback} if family == socket.AF_INET6 else {}),
            )


def _bring_up(network: IPRoute, interface: str) -> int:
    (index,) = network.link_lookup(ifname=interface)
    flags = _IFF_UP if interface == "lo" else _IFF_UP | _IFF_NOARP
    network.link("set", index=index, flags=flags, change=flags)
    return int(index)


def _add_address(network: IPRoute, index: int, address: str) -> None:
    # Duplicate address detection would keep an IPv6 address unusable for a second or more.
    if ":" in address:
        network.addr("add", index=index, address=address, prefixlen=128, flags=_IFA_F_NODAD)
    else:
        network.addr("add", index=index, address=address, prefixlen=32)


@contextmanager
def _inside(process: int) -> Iterator[None]:
    """Visit the network namespace of a process: sockets made meanwhile belong there."""
    with open("/proc/self/ns/net") as home, open(f"/proc/{process}/ns/net") as away:
        os.setns(away.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


def disconnect() -> None:
    """Take the cable away, if there is one; without this it goes some time after the origin."""
    with IPRoute() as gate:
        for index in gate.link_lookup(ifname=plan.GATE_INTERFACE):
            try:
                gate.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:  # it went with the origin, just now
                    raise


def tap(interface: str, program: Sequence[Instruction]) -> socket.socket:
    """A packet socket at this end of an interface, for ``tests.lab.origin.recorder``.

    The kernel copies a packet to it in the course of sending it, before the interface has it. So once
    a program knows that a call like connect() has returned, the packet is in the socket's queue: who then
    empties the queue has seen it, on whatever CPU it was sent. At the receiving end there's no such order.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    bpf.attach(sock, program)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TAP_BUFFER)
    sock.bind((interface, _ETH_P_ALL))
    return sock
