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

from box_policy.sandbox import netlink, nft

TABLE = "box"
DNS_PORT = nft.DNS_PORT


def encode(tcp_port: int, dns_port: int) -> bytes:
    """The rules as the messages of one nf_tables transaction."""
    tcp, udp = nft.protocol(socket.IPPROTO_TCP), nft.protocol(socket.IPPROTO_UDP)
    dns = [*nft.destination_port(DNS_PORT), *nft.redirect_to(dns_port)]
    return nft.transaction(
        (
            # Exclusive: rules added to a table that exists would not be these rules.
            nft.add_table(TABLE, exclusive=True),
            nft.add_chain(TABLE, "redirect", "nat", nft.HOOK_OUTPUT, nft.PRIORITY_DSTNAT),
            nft.add_rule(TABLE, "redirect", [*udp, *dns]),
            nft.add_rule(TABLE, "redirect", [*tcp, *dns]),
            nft.add_rule(
                TABLE,
                "redirect",
                [*tcp, *nft.destination_local(nft.NOT_EQUAL), *nft.redirect_to(tcp_port)],
            ),
            nft.add_chain(TABLE, "reject", "filter", nft.HOOK_OUTPUT, nft.PRIORITY_FILTER),
            nft.add_rule(TABLE, "reject", [*nft.destination_local(nft.EQUAL), *nft.accept()]),
            nft.add_rule(TABLE, "reject", nft.reject()),
        )
    )


def install(tcp_port: int, dns_port: int) -> None:
    """Install the rules in this network namespace, all or none. OSError if the kernel refuses."""
    netlink.transact(netlink.NETLINK_NETFILTER, encode(tcp_port, dns_port))
