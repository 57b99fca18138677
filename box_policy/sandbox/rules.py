"""The nftables rules of a box's network namespace: they bring its traffic to the gate's listeners.

They only bring: the namespace has no way out besides the listeners, so without rules nothing is
reachable at all. As ``nft`` would print them::

    table inet box {
        chain redirect {
            type nat hook output priority -100; policy accept;
            udp dport 53 redirect to :<dns>
            tcp dport 53 redirect to :<dns>
            meta l4proto tcp fib daddr type != local redirect to :<tcp>
        }
        chain reject {
            type filter hook output priority 0; policy accept;
            fib daddr type local accept
            reject with icmpx admin-prohibited
        }
    }
"""

import socket
import struct
from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import nlmsg
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)
from pyroute2.nftables.expressions import genex, verdict

from box_policy.sandbox import netlink

TABLE = "box"
DNS_PORT = 53

Expressions = list[Mapping[str, Any]]

# linux/netfilter.h, linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, linux/rtnetlink.h
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17
_NF_INET_LOCAL_OUT = 3
_NF_ACCEPT = 1
_NFT_META_L4PROTO = 16
_NFT_CMP_EQUAL = 0
_NFT_CMP_NOT_EQUAL = 1
_NFT_PAYLOAD_TRANSPORT_HEADER = 2
_REGISTER = 1
_DESTINATION_PORT_OFFSET = 2
_RTN_LOCAL = 2
_NFT_FIB_F_DADDR = 2
# pyroute2 0.9 takes this number for a set of flags; of these two it makes 3, the address type.
_NFT_FIB_RESULT_ADDRTYPE = {"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"}
_NFT_REJECT_ICMPX_UNREACH = 2
_NFT_REJECT_ICMPX_ADMIN_PROHIBITED = 3


def _compared(operation: int, value: bytes) -> Mapping[str, Any]:
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    compared: Mapping[str, Any] = genex("cmp", {"sreg": _REGISTER, "op": operation, "data": data})
    return compared


def _protocol(number: int) -> Expressions:
    return [
        genex("meta", {"dreg": _REGISTER, "key": _NFT_META_L4PROTO}),
        _compared(_NFT_CMP_EQUAL, bytes([number])),
    ]


def _destination_port(port: int) -> Expressions:
    field = {
        "dreg": _REGISTER,
        "base": _NFT_PAYLOAD_TRANSPORT_HEADER,
        "offset": _DESTINATION_PORT_OFFSET,
        "len": 2,
    }
    return [genex("payload", field), _compared(_NFT_CMP_EQUAL, struct.pack("!H", port))]


def _destination_local(operation: int) -> Expressions:
    lookup = {"dreg": _REGISTER, "result": _NFT_FIB_RESULT_ADDRTYPE, "flags": _NFT_FIB_F_DADDR}
    return [genex("fib", lookup), _compared(operation, struct.pack("=I", _RTN_LOCAL))]


def _redirect_to(port: int) -> Expressions:
    value = {"attrs": [("NFTA_DATA_VALUE", struct.pack("!H", port))]}
    return [
        genex("immediate", {"dreg": _REGISTER, "data": value}),
        genex("redir", {"reg_proto_min": _REGISTER}),
    ]


def _reject() -> Expressions:
    # icmpx: the same rule answers IPv4 and IPv6. The sender fails at once, so QUIC falls back to TCP.
    code = {"type": _NFT_REJECT_ICMPX_UNREACH, "icmp_code": _NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
    return [genex("reject", code)]


def _encoded(message: nlmsg, kind: int, flags: int, attributes: list[tuple[str, Any]]) -> bytes:
    message["attrs"] = attributes
    message["nfgen_family"] = NFPROTO_INET
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | flags
    message.encode()
    return bytes(message.data)


def _batch_mark(kind: int) -> bytes:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = netlink.NLM_F_REQUEST
    message.encode()
    return bytes(message.data)


def _table() -> bytes:
    # NLM_F_EXCL: rules added to a table that exists would not be these rules.
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return _encoded(nft_table_msg(), NFT_MSG_NEWTABLE, flags, [("NFTA_TABLE_NAME", TABLE)])


def _chain(name: str, kind: str, priority: int) -> bytes:
    hook = [("NFTA_HOOK_HOOKNUM", _NF_INET_LOCAL_OUT), ("NFTA_HOOK_PRIORITY", priority)]
    attributes = [
        ("NFTA_CHAIN_TABLE", TABLE),
        ("NFTA_CHAIN_NAME", name),
        ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ("NFTA_CHAIN_POLICY", _NF_ACCEPT),
        ("NFTA_CHAIN_TYPE", kind),
    ]
    return _encoded(nft_chain_msg(), NFT_MSG_NEWCHAIN, netlink.NLM_F_CREATE, attributes)


def _rule(chain: str, expressions: Expressions) -> bytes:
    attributes = [
        ("NFTA_RULE_TABLE", TABLE),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", expressions),
    ]
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    return _encoded(nft_rule_msg(), NFT_MSG_NEWRULE, flags, attributes)


def encode(tcp_port: int, dns_port: int) -> bytes:
    """The rules as the messages of one nf_tables transaction."""
    tcp, udp = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_UDP)
    dns = [*_destination_port(DNS_PORT), *_redirect_to(dns_port)]
    return b"".join(
        (
            _batch_mark(_NFNL_MSG_BATCH_BEGIN),
            _table(),
            _chain("redirect", "nat", -100),
            _rule("redirect", [*udp, *dns]),
            _rule("redirect", [*tcp, *dns]),
            _rule("redirect", [*tcp, *_destination_local(_NFT_CMP_NOT_EQUAL), *_redirect_to(tcp_port)]),
            _chain("reject", "filter", 0),
            _rule("reject", [*_destination_local(_NFT_CMP_EQUAL), *verdict(_NF_ACCEPT)]),
            _rule("reject", _reject()),
            _batch_mark(_NFNL_MSG_BATCH_END),
        )
    )


def install(tcp_port: int, dns_port: int) -> None:
    """Install the rules in this network namespace, all or none. OSError if the kernel refuses."""
    netlink.transact(netlink.NETLINK_NETFILTER, encode(tcp_port, dns_port))
