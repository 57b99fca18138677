"""Which addresses are this machine's own, asked of the kernel each time.

A box that could make the gate dial the gate's own host would reach every service there that trusts
its neighbours.
"""

import errno
import socket

from box_policy.policy.addresses import Address


class OwnAddresses:
    """``address in OwnAddresses()``: does this network namespace answer at that address?

    An address is one's own exactly if a socket can be bound to it, which costs some microseconds and is
    true at this moment; a list would have to be kept up to date as interfaces change. When the kernel
    lets anything be bound (``ip_nonlocal_bind``) every address counts as own, and is denied.
    """

    def __contains__(self, address: object) -> bool:
        text = str(address)
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                probe.bind((text, 0))
        except OSError as error:
            # EAFNOSUPPORT: without IPv6 no IPv6 address is one's own. Any other failure (no descriptors
            # left, say) leaves the question open, and an open question is a denial.
            return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        return True


def address_family(address: Address) -> socket.AddressFamily:
    """The socket family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
