"""nf_tables messages: the expressions that rules are made of, and the transactions that install them.

pyroute2 encodes them; it has no expressions for most of what is wanted here, so they are put together from
the kernel's own (linux/netfilter/nf_tables.h).
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from pyroute2.netlink import nlmsg
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.expressions import verdict as _verdict

from box_policy.sandbox import netlink

DNS_PORT = 53
PRIORITY_FILTER = 0
PRIORITY_DSTNAT = -100

Expressions = list[Mapping[str, Any]]

# linux/netfilter.h, linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, linux/rtnetlink.h
EQUAL = 0
NOT_EQUAL = 1
LESS_OR_EQUAL = 3
GREATER_OR_EQUAL = 5
HOOK_INPUT = 1
HOOK_OUTPUT = 3
HOOK_POSTROUTING = 4
META_MARK = 3
META_IIF = 4
META_OIF = 5
META_SKUID = 10
META_NFPROTO = 15
META_L4PROTO = 16
CT_STATE = 0
CT_DIRECTION = 1
CT_MARK = 3
NETWORK_HEADER = 1
TRANSPORT_HEADER = 2
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17
_NF_DROP = 0
_NF_ACCEPT = 1
_REGISTER = 1
_DESTINATION_PORT_OFFSET = 2
_RTN_LOCAL = 2
_NFT_FIB_F_SADDR = 1
_NFT_FIB_F_DADDR = 2
# pyroute2 0.9 takes this number for a set of flags; of these two it makes 3, the address type.
_NFT_FIB_RESULT_ADDRTYPE = {"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"}
_NFT_REJECT_TCP_RST = 1
_NFT_REJECT_ICMPX_UNREACH = 2
_NFT_REJECT_ICMPX_ADMIN_PROHIBITED = 3


# Expressions.


def number(value: int) -> bytes:
    """A 32-bit number as registers hold those that don't come from a packet."""
    return struct.pack("=I", value)


def compared(operation: int, value: bytes) -> Mapping[str, Any]:
    """Goes on if what was loaded last is in that relation to the value."""
    expression: Mapping[str, Any] = genex("cmp", {"sreg": _REGISTER, "op": operation, "data": _data(value)})
    return expression


def meta(key: int, value: bytes, operation: int = EQUAL) -> Expressions:
    """Compares what the kernel knows of the packet beside its bytes."""
    return [genex("meta", {"dreg": _REGISTER, "key": key}), compared(operation, value)]


def protocol(number: int, operation: int = EQUAL) -> Expressions:
    """Compares the transport protocol."""
    return meta(META_L4PROTO, bytes([number]), operation)


def payload(base: int, offset: int, *comparisons: tuple[int, bytes]) -> Expressions:
    """Compares a field of a header, which is as long as what it is compared with."""
    field = {"dreg": _REGISTER, "base": base, "offset": offset, "len": len(comparisons[0][1])}
    return [genex("payload", field), *(compared(*comparison) for comparison in comparisons)]


def masked(mask: bytes) -> Mapping[str, Any]:
    """Keeps the bits of the mask of what was loaded last."""
    fields = {
        "sreg": _REGISTER,
        "dreg": _REGISTER,
        "len": len(mask),
        "mask": _data(mask),
        "xor": _data(bytes(len(mask))),
    }
    expression: Mapping[str, Any] = genex("bitwise", fields)
    return expression


def destination_port(port: int) -> Expressions:
    """Compares the destination port of TCP or UDP."""
    return payload(TRANSPORT_HEADER, _DESTINATION_PORT_OFFSET, (EQUAL, struct.pack("!H", port)))


def destination_local(operation: int) -> Expressions:
    """Compares whether the destination is an address of this network namespace."""
    lookup = {"dreg": _REGISTER, "result": _NFT_FIB_RESULT_ADDRTYPE, "flags": _NFT_FIB_F_DADDR}
    return [genex("fib", lookup), compared(operation, number(_RTN_LOCAL))]


def source_local() -> Expressions:
    """Goes on if the source is an address of this network namespace."""
    lookup = {"dreg": _REGISTER, "result": _NFT_FIB_RESULT_ADDRTYPE, "flags": _NFT_FIB_F_SADDR}
    return [genex("fib", lookup), compared(EQUAL, number(_RTN_LOCAL))]


def load_ct(key: int) -> Mapping[str, Any]:
    """Loads a property of the packet's connection; if it has none, the rule ends here."""
    expression: Mapping[str, Any] = genex("ct", {"dreg": _REGISTER, "key": key})
    return expression


def set_ct_mark(mark: int) -> Expressions:
    """Marks the packet's connection."""
    return [
        genex("immediate", {"dreg": _REGISTER, "data": _data(number(mark))}),
        genex("ct", {"key": CT_MARK, "sreg": _REGISTER}),
    ]


def redirect_to(port: int) -> Expressions:
    """Sends the connection to a port of the loopback address."""
    return [
        genex("immediate", {"dreg": _REGISTER, "data": _data(struct.pack("!H", port))}),
        genex("redir", {"reg_proto_min": _REGISTER}),
    ]


def accept() -> Expressions:
    accepted: Expressions = _verdict(_NF_ACCEPT)
    return accepted


def drop() -> Expressions:
    dropped: Expressions = _verdict(_NF_DROP)
    return dropped


def reject() -> Expressions:
    """Refuses, and says so."""
    # icmpx: the same rule answers IPv4 and IPv6. The sender fails at once, so QUIC falls back to TCP.
    code = {"type": _NFT_REJECT_ICMPX_UNREACH, "icmp_code": _NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
    return [genex("reject", code)]


def reset() -> Expressions:
    """Refuses a TCP segment by RST."""
    return [genex("reject", {"type": _NFT_REJECT_TCP_RST})]


def _data(value: bytes) -> Mapping[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


# Messages.


def transaction(messages: Iterable[bytes]) -> bytes:
    """Messages that take effect together, or not at all."""
    return b"".join((_batch_mark(_NFNL_MSG_BATCH_BEGIN), *messages, _batch_mark(_NFNL_MSG_BATCH_END)))


def add_table(table: str, *, exclusive: bool = False) -> bytes:
    """``exclusive``: EEXIST if there is one; else that one is left as it is."""
    flags = netlink.NLM_F_CREATE | (netlink.NLM_F_EXCL if exclusive else 0)
    return _encoded(nft_table_msg(), NFT_MSG_NEWTABLE, flags, [("NFTA_TABLE_NAME", table)])


def delete_table(table: str) -> bytes:
    return _encoded(nft_table_msg(), NFT_MSG_DELTABLE, 0, [("NFTA_TABLE_NAME", table)])


def add_chain(table: str, name: str, kind: str, hook: int, priority: int) -> bytes:
    """A base chain that accepts what none of its rules decides."""
    where = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]
    attributes = [
        ("NFTA_CHAIN_TABLE", table),
        ("NFTA_CHAIN_NAME", name),
        ("NFTA_CHAIN_HOOK", {"attrs": where}),
        ("NFTA_CHAIN_POLICY", _NF_ACCEPT),
        ("NFTA_CHAIN_TYPE", kind),
    ]
    return _encoded(nft_chain_msg(), NFT_MSG_NEWCHAIN, netlink.NLM_F_CREATE, attributes)


def add_rule(table: str, chain: str, expressions: Expressions) -> bytes:
    attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", expressions),
    ]
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    return _encoded(nft_rule_msg(), NFT_MSG_NEWRULE, flags, attributes)


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
