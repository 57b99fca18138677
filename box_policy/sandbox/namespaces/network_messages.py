"""The netlink messages that set up a box's network, encoded by pyroute2."""

import socket

from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from box_policy.sandbox import netlink, rules
from box_policy.sandbox.namespaces.network import ADDRESS_4, ADDRESS_6, DNS_PORT, TCP_PORT, NetworkMessages

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
_LOOPBACK_INDEX = 1  # the first interface of every network namespace
_IFF_UP = 1
_IFA_F_NODAD = 2
_RT_TABLE_MAIN = 254
_RTPROT_STATIC = 4
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_RTN_UNICAST = 1


def encode() -> NetworkMessages:
    """Everything that a box's network needs. It takes milliseconds, and the import ten times that."""
    ipv4 = _address(socket.AF_INET, ADDRESS_4, 32, 0) + _default_route(
        socket.AF_INET, ADDRESS_4, _RT_SCOPE_LINK
    )
    ipv6 = _address(socket.AF_INET6, ADDRESS_6, 128, _IFA_F_NODAD) + _default_route(
        socket.AF_INET6, ADDRESS_6, _RT_SCOPE_UNIVERSE
    )
    return NetworkMessages(_link_up() + ipv4, ipv6, rules.encode(TCP_PORT, DNS_PORT))


def _encoded(message: ifinfmsg | ifaddrmsg | rtmsg, kind: int, flags: int = 0) -> bytes:
    message["header"]["type"] = kind
    message["header"]["flags"] = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | flags
    message.encode()
    return bytes(message.data)


def _link_up() -> bytes:
    link = ifinfmsg()
    link["index"] = _LOOPBACK_INDEX
    link["flags"] = link["change"] = _IFF_UP
    return _encoded(link, RTM_NEWLINK)


def _address(family: int, own: str, prefix_length: int, flags: int) -> bytes:
    address = ifaddrmsg()
    address["family"] = family
    address["prefixlen"] = prefix_length
    address["flags"] = flags
    address["index"] = _LOOPBACK_INDEX
    address["attrs"] = [("IFA_LOCAL", own), ("IFA_ADDRESS", own)]
    return _encoded(address, RTM_NEWADDR, netlink.NLM_F_CREATE)


def _default_route(family: int, source: str, scope: int) -> bytes:
    # Without a route connect() fails before the first hook. This one leads to lo, which is nowhere.
    route = rtmsg()
    route["family"] = family
    route["table"] = _RT_TABLE_MAIN
    route["proto"] = _RTPROT_STATIC
    route["scope"] = scope
    route["type"] = _RTN_UNICAST
    route["attrs"] = [("RTA_OIF", _LOOPBACK_INDEX), ("RTA_PREFSRC", source)]
    return _encoded(route, RTM_NEWROUTE, netlink.NLM_F_CREATE)
