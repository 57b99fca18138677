"""The nftables rules of a network namespace that the gate shares with what it guards.

Here is a way out, so the rules do not only bring traffic to the gate: they keep everything else in. The
gate's own traffic is told apart by a mark (SO_MARK takes CAP_NET_ADMIN or, since Linux 5.17, CAP_NET_RAW) and
by its user; both have to be right. As ``nft`` would print them, with ``inbound`` allowed::

    table inet box_policy_sidecar {
        chain redirect {
            type nat hook output priority -110; policy accept;
            meta mark <gate> meta skuid <uid> ct mark set <gate> accept
            udp dport 53 redirect to :<dns>
            tcp dport 53 redirect to :<dns>
            meta l4proto tcp fib daddr type != local redirect to :<tcp>
        }
        chain refuse {
            type filter hook output priority 0; policy accept;
            meta mark <gate> meta skuid <uid> accept
            meta mark <gate> ct mark <gate> tcp flags & syn == 0 accept
            ct direction reply ct mark <inbound> accept
            ip daddr 127.0.0.11 meta l4proto tcp reject with tcp reset
            ip daddr 127.0.0.11 reject with icmpx admin-prohibited
            fib saddr type local fib daddr type local accept
            tcp flags & rst == rst fib daddr type local accept
            icmpv6 type 133 accept
            icmpv6 type 135-136 accept
            meta l4proto tcp reject with tcp reset
            reject with icmpx admin-prohibited
        }
        chain leave {
            type filter hook postrouting priority 300; policy accept;
            oif "lo" accept
            (the rules of refuse that accept, but for those on local destinations)
            drop
        }
        chain arrive {
            type filter hook input priority 0; policy accept;
            iif != "lo" ct state new tcp flags & (fin | syn | rst | ack) == syn ct mark set <inbound>
            iif != "lo" ct state new meta l4proto != tcp ct mark set <inbound>
        }
    }

Why each is as it is:

- *redirect* comes before Docker's own rules (priority -100), which would send questions to its resolver.
  Port 53 is taken at any address, local ones too: what answers there may forward from outside the namespace,
  as Docker's resolver does. So a program can't have a name server of its own on port 53; on others it can.
- The second rule of *refuse* is for what the kernel still sends after the gate has closed a socket: that has
  a mark, but no user any more. A mark on the connection alone is not enough: another program may bind the
  same port of UDP.
- Replies are let out to those who came from outside, by the mark that *arrive* leaves; not by their
  direction, as connection tracking takes a connection that is older than itself for one that was opened by
  whoever speaks first.
- 127.0.0.11 is where Docker's resolver listens, at a port of its choice; Docker's rules bring the gate there.
- Only a local source may speak to local destinations: anybody may bind an IPv6 address that isn't there
  (IPV6_FREEBIND), and could speak to the gate in the name of its name server. But the RST below comes, as
  it were, from where the connection goes.
- Neighbour discovery is the kernel's own; without it IPv6 ends. Reports of multicast listeners are not let
  out: whoever joins a group chooses its address and those of its sources, and so what they say.
- *leave* knows the interface that a packet really goes out by. A socket that is bound to an interface
  (SO_BINDTODEVICE, for anybody since Linux 5.7) sends what is redirected to 127.0.0.1 out into the network.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from box_policy.sandbox import nft

TABLE: Final = "box_policy_sidecar"
GATE_MARK: Final = 0x626F7801
"""SO_MARK of the gate's own sockets, and the mark of their connections."""
_INBOUND_MARK: Final = 0x626F7802
"""Of connections that were opened from outside."""

DOCKER_RESOLVER: Final = "127.0.0.11"

_BEFORE_DOCKER: Final = nft.PRIORITY_DSTNAT - 10
_LAST: Final = 300
_LOOPBACK: Final = nft.number(1)  # the interface's index, in every network namespace
_NEW: Final = nft.number(1 << 3)  # linux/netfilter/nf_conntrack_common.h: IP_CT_NEW
_RELATED: Final = nft.number(1 << 2)
_REPLY: Final = b"\x01"
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_TCP_FLAGS_OFFSET: Final = 13
_IPV4_DESTINATION_OFFSET: Final = 16
# RFC 4861: solicitations and advertisements.
_NEIGHBOUR_TYPES: Final = ((133, 133), (135, 136))
_ICMPV6: Final = 58


@dataclass(frozen=True)
class SidecarRules:
    """What the rules depend on."""

    uid: int
    """The gate's user."""
    tcp_port: int
    dns_port: int
    """Ports of the gate's listeners on the loopback addresses."""
    inbound: bool = True
    """Whether connections may come in from outside."""

    def encode(self) -> bytes:
        """The messages of one transaction, which replaces a table of that name if there is one."""
        return nft.transaction(
            (
                nft.add_table(TABLE),  # what isn't there can't be deleted
                nft.delete_table(TABLE),
                nft.add_table(TABLE, exclusive=True),
                *_chain("redirect", "nat", nft.HOOK_OUTPUT, _BEFORE_DOCKER, self._redirect()),
                *_chain("refuse", "filter", nft.HOOK_OUTPUT, nft.PRIORITY_FILTER, self._refuse()),
                *_chain("leave", "filter", nft.HOOK_POSTROUTING, _LAST, self._leave()),
                *_chain("arrive", "filter", nft.HOOK_INPUT, nft.PRIORITY_FILTER, self._arrive()),
            )
        )

    def _of_gate(self) -> nft.Expressions:
        return [
            *nft.meta(nft.META_MARK, nft.number(GATE_MARK)),
            *nft.meta(nft.META_SKUID, nft.number(self.uid)),
        ]

    def _redirect(self) -> Iterable[nft.Expressions]:
        tcp, udp = nft.protocol(socket.IPPROTO_TCP), nft.protocol(socket.IPPROTO_UDP)
        dns = [*nft.destination_port(nft.DNS_PORT), *nft.redirect_to(self.dns_port)]
        yield [*self._of_gate(), *nft.set_ct_mark(GATE_MARK), *nft.accept()]
        yield [*udp, *dns]
        yield [*tcp, *dns]
        yield [*tcp, *nft.destination_local(nft.NOT_EQUAL), *nft.redirect_to(self.tcp_port)]

    def _refuse(self) -> Iterable[nft.Expressions]:
        tcp = nft.protocol(socket.IPPROTO_TCP)
        docker = [
            *nft.meta(nft.META_NFPROTO, bytes([socket.AF_INET])),
            *nft.payload(
                nft.NETWORK_HEADER,
                _IPV4_DESTINATION_OFFSET,
                (nft.EQUAL, socket.inet_aton(DOCKER_RESOLVER)),
            ),
        ]
        yield from self._out()
        yield [*docker, *tcp, *nft.reset()]
        yield [*docker, *nft.reject()]
        yield [*nft.source_local(), *nft.destination_local(nft.EQUAL), *nft.accept()]
        yield [*tcp, *_tcp_flags(_RST, _RST), *nft.destination_local(nft.EQUAL), *nft.accept()]
        yield from _neighbours()
        # By RST: else a connection that is older than the rules would wait for an answer for minutes.
        yield [*tcp, *nft.reset()]
        yield nft.reject()

    def _leave(self) -> Iterable[nft.Expressions]:
        yield [*nft.meta(nft.META_OIF, _LOOPBACK), *nft.accept()]
        yield from self._out()
        yield from _neighbours()
        yield nft.drop()

    def _out(self) -> Iterable[nft.Expressions]:
        """What may leave this network namespace."""
        yield [*self._of_gate(), *nft.accept()]
        yield [
            *nft.meta(nft.META_MARK, nft.number(GATE_MARK)),
            *_ct(nft.CT_MARK, nft.number(GATE_MARK)),
            *nft.protocol(socket.IPPROTO_TCP),
            *_tcp_flags(_SYN, 0),
            *nft.accept(),
        ]
        # With inbound connections denied only the RST that says so: an older connection has the mark, too.
        refusal = [] if self.inbound else [*nft.protocol(socket.IPPROTO_TCP), *_tcp_flags(_RST, _RST)]
        yield [
            *_ct(nft.CT_DIRECTION, _REPLY),
            *_ct(nft.CT_MARK, nft.number(_INBOUND_MARK)),
            *refusal,
            *nft.accept(),
        ]

    def _arrive(self) -> Iterable[nft.Expressions]:
        tcp = nft.protocol(socket.IPPROTO_TCP)
        if self.inbound:
            new = [*nft.meta(nft.META_IIF, _LOOPBACK, nft.NOT_EQUAL), *_ct_state(_NEW)]
            mark = nft.set_ct_mark(_INBOUND_MARK)
            yield [*new, *tcp, *_tcp_flags(_FIN | _SYN | _RST | _ACK, _SYN), *mark]
            yield [*new, *nft.protocol(socket.IPPROTO_TCP, nft.NOT_EQUAL), *mark]
            return
        yield [*nft.meta(nft.META_IIF, _LOOPBACK), *nft.accept()]
        yield [*_ct(nft.CT_DIRECTION, _REPLY), *nft.accept()]
        yield [*_ct_state(_RELATED), *nft.accept()]
        yield from _neighbours()
        # The mark lets the RST out.
        yield [*tcp, *nft.set_ct_mark(_INBOUND_MARK), *nft.reset()]
        yield nft.drop()


def _chain(
    name: str, kind: str, hook: int, priority: int, rules: Iterable[nft.Expressions]
) -> Iterable[bytes]:
    yield nft.add_chain(TABLE, name, kind, hook, priority)
    for rule in rules:
        yield nft.add_rule(TABLE, name, rule)


def _ct(key: int, value: bytes) -> nft.Expressions:
    return [nft.load_ct(key), nft.compared(nft.EQUAL, value)]


def _ct_state(states: bytes) -> nft.Expressions:
    return [
        nft.load_ct(nft.CT_STATE),
        nft.masked(states),
        nft.compared(nft.NOT_EQUAL, bytes(len(states))),
    ]


def _tcp_flags(mask: int, value: int) -> nft.Expressions:
    field, comparison = nft.payload(nft.TRANSPORT_HEADER, _TCP_FLAGS_OFFSET, (nft.EQUAL, bytes([value])))
    return [field, nft.masked(bytes([mask])), comparison]


def _neighbours() -> Iterable[nft.Expressions]:
    for first, last in _NEIGHBOUR_TYPES:
        bounds = ((nft.GREATER_OR_EQUAL, bytes([first])), (nft.LESS_OR_EQUAL, bytes([last])))
        yield [
            *nft.meta(nft.META_NFPROTO, bytes([socket.AF_INET6])),
            *nft.protocol(_ICMPV6),
            *nft.payload(nft.TRANSPORT_HEADER, 0, *bounds),
            *nft.accept(),
        ]
