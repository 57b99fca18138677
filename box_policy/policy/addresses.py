"""IP addresses: which are special, and sets of CIDR ranges that answer in a microsecond.

Special means: not globally reachable, so never to be dialled for a box. The table is our own, from
the IANA registries. ``ipaddress.is_global`` is no substitute: it is True for multicast, for NAT64, for
site-local addresses and for more.
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import netaddr
import netaddr.strategy.ipv4
import netaddr.strategy.ipv6

from box_policy.policy.quoting import quoted

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class SpecialRange:
    """A range whose addresses are never dialled, unless the operator opens them."""

    network: Network
    name: str
    source: str
    metadata: bool = False
    """A cloud's metadata service: it gives credentials to whoever can reach it."""


def _range(network: str, name: str, source: str) -> SpecialRange:
    return SpecialRange(ipaddress.ip_network(network), name, source)


def _metadata(address: str, cloud: str, source: str) -> SpecialRange:
    return SpecialRange(ipaddress.ip_network(address), f"Metadata service of {cloud}", source, metadata=True)


# Names and RFCs are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries. Not in them:
# multicast, the rows on IPv6 as a whole, IPv4-compatible, IPv4-translated, site-local, metadata services.
SPECIAL_RANGES: tuple[SpecialRange, ...] = (
    _range("0.0.0.0/8", "This network", "RFC 791"),
    _range("0.0.0.0/32", "This host on this network", "RFC 1122"),
    _range("10.0.0.0/8", "Private-Use", "RFC 1918"),
    _range("100.64.0.0/10", "Shared Address Space", "RFC 6598"),
    _range("127.0.0.0/8", "Loopback", "RFC 1122"),
    _range("169.254.0.0/16", "Link Local", "RFC 3927"),
    _range("172.16.0.0/12", "Private-Use", "RFC 1918"),
    _range("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890"),
    _range("192.0.0.0/29", "IPv4 Service Continuity Prefix", "RFC 7335"),
    _range("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
    _range("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723"),
    _range("192.0.0.10/32", "TURN Anycast", "RFC 8155"),
    _range("192.0.0.170/31", "NAT64/DNS64 Discovery", "RFC 8880"),
    _range("192.0.2.0/24", "Documentation (TEST-NET-1)", "RFC 5737"),
    _range("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
    _range("192.88.99.2/32", "6a44-relay anycast address", "RFC 6751"),
    _range("192.168.0.0/16", "Private-Use", "RFC 1918"),
    _range("198.18.0.0/15", "Benchmarking", "RFC 2544"),
    _range("198.51.100.0/24", "Documentation (TEST-NET-2)", "RFC 5737"),
    _range("203.0.113.0/24", "Documentation (TEST-NET-3)", "RFC 5737"),
    _range("224.0.0.0/4", "Multicast", "RFC 5771"),
    _range("240.0.0.0/4", "Reserved", "RFC 1112"),
    _range("255.255.255.255/32", "Limited Broadcast", "RFC 8190"),
    # IANA gives global unicast out of 2000::/3 alone (IPv6 Address Space registry). The rest is not to be
    # dialled, whatever a narrower row calls it.
    _range("::/3", "Not global unicast", "RFC 4291"),
    _range("4000::/2", "Not global unicast", "RFC 4291"),
    _range("8000::/1", "Not global unicast", "RFC 4291"),
    _range("::/128", "Unspecified Address", "RFC 4291"),
    _range("::1/128", "Loopback Address", "RFC 4291"),
    _range("::/96", "IPv4-compatible Address (deprecated)", "RFC 4291"),
    _range("::ffff:0:0/96", "IPv4-mapped Address", "RFC 4291"),
    _range("::ffff:0:0:0/96", "IPv4-translated Address", "RFC 2765"),
    _range("64:ff9b::/96", "IPv4-IPv6 Translation", "RFC 6052"),
    _range("64:ff9b:1::/48", "IPv4-IPv6 Translation, local use", "RFC 8215"),
    _range("100::/64", "Discard-Only Address Block", "RFC 6666"),
    _range("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780"),
    _range("2001::/23", "IETF Protocol Assignments", "RFC 2928"),
    _range("2001::/32", "Teredo", "RFC 4380"),
    _range("2001:1::1/128", "Port Control Protocol Anycast", "RFC 7723"),
    _range("2001:1::2/128", "TURN Anycast", "RFC 8155"),
    _range("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "RFC 9665"),
    _range("2001:2::/48", "Benchmarking", "RFC 5180"),
    _range("2001:10::/28", "Deprecated (previously ORCHID)", "RFC 4843"),
    _range("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    _range("2001:30::/28", "Drone Remote ID Protocol Entity Tags", "RFC 9374"),
    _range("2001:db8::/32", "Documentation", "RFC 3849"),
    _range("2002::/16", "6to4", "RFC 3056"),
    _range("3fff::/20", "Documentation", "RFC 9637"),
    _range("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602"),
    _range("fc00::/7", "Unique-Local", "RFC 4193"),
    _range("fe80::/10", "Link-Local Unicast", "RFC 4291"),
    _range("fec0::/10", "Site-Local Unicast (deprecated)", "RFC 3879"),
    _range("ff00::/8", "Multicast", "RFC 4291"),
    _metadata("100.100.100.200", "Alibaba Cloud", "Alibaba Cloud ECS: instance metadata"),
    _metadata("168.63.129.16", "Azure", "Azure: What is IP address 168.63.129.16?"),
    _metadata("169.254.0.23", "Tencent Cloud", "Tencent CVM: instance metadata"),
    _metadata("169.254.42.42", "Scaleway", "cloud-init: Scaleway data source"),
    _metadata("169.254.169.254", "AWS, Azure, Google Cloud and others", "AWS EC2: instance metadata"),
    _metadata("169.254.170.2", "AWS ECS", "AWS ECS: task IAM role"),
    _metadata("169.254.170.23", "AWS EKS", "AWS EKS: Pod Identity Agent"),
    _metadata("192.0.0.192", "Oracle Cloud", "Oracle Cloud at Customer: instance metadata"),
    _metadata("fd00:100::100:200", "Alibaba Cloud", "Alibaba Cloud ECS: instance metadata"),
    _metadata("fd00:42::42", "Scaleway", "cloud-init: Scaleway data source"),
    _metadata("fd00:a9fe:a9fe::1", "Akamai", "cloud-init: Akamai data source"),
    _metadata("fd00:c1::a9fe:a9fe", "Oracle Cloud", "cloud-init: Oracle data source"),
    _metadata("fd00:ec2::23", "AWS EKS", "AWS EKS: Pod Identity Agent"),
    _metadata("fd00:ec2::254", "AWS", "AWS EC2: instance metadata"),
    _metadata("fd20:ce::254", "Google Cloud", "Google Compute Engine: VM metadata"),
    _metadata("fe80::a9fe:a9fe", "OpenStack", "OpenStack Nova: metadata service"),
)
"""Every special range. Where two overlap, the narrower one names the address."""

# Globally reachable by the registry though inside a special row; sinks and relays that do real work.
_REACHABLE = (
    ipaddress.ip_network("2001:3::/32"),  # AMT, RFC 7450
    ipaddress.ip_network("2001:4:112::/48"),  # AS112-v6, RFC 7535
)


class InvalidCidr(ValueError):
    """The text is not an address range. The message says what is wrong, and what was meant."""


class _Segments[T]:
    """Ranges that nest or are apart, cut into segments that each belong to the narrowest one around them."""

    __slots__ = ("_labels", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int, T]]) -> None:
        """``ranges``: first and last number, both included, and the label that :meth:`at` returns."""
        starts: list[int] = []
        labels: list[T | None] = []
        around: list[tuple[int, T]] = []

        def begin(start: int) -> None:
            label = around[-1][1] if around else None
            if starts and starts[-1] == start:
                labels[-1] = label
            else:
                starts.append(start)
                labels.append(label)

        for first, last, label in sorted(ranges, key=lambda item: (item[0], -item[1])):
            while around and around[-1][0] < first:
                end, _ = around.pop()
                begin(end + 1)
            around.append((last, label))
            begin(first)
        while around:
            end, _ = around.pop()
            begin(end + 1)
        self._starts = starts
        self._labels = labels

    def at(self, number: int) -> T | None:
        index = bisect_right(self._starts, number)
        return self._labels[index - 1] if index else None


def _special_segments(version: int) -> _Segments[SpecialRange | None]:
    rows: list[tuple[int, int, SpecialRange | None]] = [
        (int(row.network[0]), int(row.network[-1]), row)
        for row in SPECIAL_RANGES
        if row.network.version == version
    ]
    rows += [(int(n[0]), int(n[-1]), None) for n in _REACHABLE if n.version == version]
    return _Segments(rows)


_SPECIAL_V4 = _special_segments(4)
_SPECIAL_V6 = _special_segments(6)


def special_range(address: Address) -> SpecialRange | None:
    """The special range that holds ``address`` or an IPv4 address embedded in it; None if it is ordinary."""
    number = int(address)
    if isinstance(address, IPv4Address):
        return _SPECIAL_V4.at(number)
    found = _SPECIAL_V6.at(number)
    # Of the forms that embed an IPv4 address only ISATAP lies among ordinary addresses.
    if found is None and _is_isatap(number):
        return _SPECIAL_V4.at(number & _LOW_32)
    return found


_LOW_32 = 0xFFFF_FFFF
_MAPPED = 0xFFFF << 32  # ::ffff:a.b.c.d
_TRANSLATED = 0xFFFF << 48  # ::ffff:0:a.b.c.d
_NAT64 = 0x0064_FF9B << 96
_NAT64_LOCAL = 0x0064_FF9B_0001 << 80


def _is_isatap(number: int) -> bool:
    # RFC 5214 section 6.1: 00-00-5E-FE, or 02-00-5E-FE with the universal bit set, and the IPv4 address.
    return (number >> 32) & 0xFDFF_FFFF == 0x0000_5EFE


def reverse_address(name: str) -> Address | None:
    """The address that a canonical name stands for in the reverse zones (RFC 1035 section 3.5, RFC 3596
    section 2.5); None if it isn't a whole address's."""
    labels = name.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"] and len(labels) == 6:
            return IPv4Address(".".join(labels[2:]))
        if (
            labels[:2] == ["arpa", "ip6"]
            and len(labels) == 34
            and all(len(label) == 1 for label in labels[2:])
        ):
            return IPv6Address(bytes.fromhex("".join(labels[2:])))
    except ValueError:
        pass
    return None


def embedded_ipv4(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a host may be led to by ``address``.

    They are in IPv4-compatible, IPv4-mapped (RFC 4291), IPv4-translated (RFC 2765), NAT64 (RFC 6052,
    RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380) and ISATAP (RFC 5214) addresses. There is more than
    one in Teredo (server, client), and where it can't be told which form is meant.
    """
    number = int(address)
    high = number >> 112
    if high == 0x2002:
        return (IPv4Address((number >> 80) & _LOW_32),)
    if number >> 96 == 0x2001_0000:
        # The client's address is obfuscated: all bits inverted (RFC 4380 section 4).
        return (IPv4Address((number >> 64) & _LOW_32), IPv4Address(~number & _LOW_32))
    prefix = number & ~_LOW_32
    if prefix in (_MAPPED, _TRANSLATED, _NAT64) or (prefix == 0 and number > 1):
        return (IPv4Address(number & _LOW_32),)
    if number >> 80 == _NAT64_LOCAL >> 80:
        return _nat64_local(number)
    if _is_isatap(number):
        return (IPv4Address(number & _LOW_32),)
    return ()


def _nat64_local(number: int) -> tuple[IPv4Address, ...]:
    """Every reading of an address in 64:ff9b:1::/48: the site chooses the length of the prefix."""
    readings = []
    # RFC 6052 section 2.2: bits 64 to 71 are skipped and the bits after the IPv4 address are zero.
    joined = (number >> 64 << 56) | (number & ((1 << 56) - 1))  # 120 bits, without the skipped octet
    for length in (48, 56, 64):
        rest = 120 - length - 32
        if joined & ((1 << rest) - 1) == 0:
            readings.append(IPv4Address((joined >> rest) & _LOW_32))
    if number & _LOW_32:
        readings.append(IPv4Address(number & _LOW_32))
    return tuple(readings)


# Strict where netaddr is generous: no netmask, no sign, no white space, no leading zero in the length.
_CIDR = re.compile(r"[0-9a-fA-F:.]+(?:/(?:0|[1-9][0-9]{0,2}))?")


def canonical_cidr(text: str) -> str:
    """The canonical form of an address range: network, slash, prefix length. A bare address is /32 or /128.

    Raises:
        InvalidCidr: it is none, or bits of the host part are set.
    """
    return _parse(text)[0]


class AddressSet:
    """Address ranges, held so that a match is one bisection, whatever their number."""

    __slots__ = ("_length", "_v4", "_v6")

    def __init__(self, cidrs: Iterable[str]) -> None:
        """Raises :class:`InvalidCidr` if an entry is none."""
        v4: dict[str, tuple[int, int, str]] = {}
        v6: dict[str, tuple[int, int, str]] = {}
        for text, version, first, last in map(_parse, cidrs):
            (v4 if version == 4 else v6)[text] = first, last, text
        self._length = len(v4) + len(v6)
        self._v4 = _Segments(v4.values())
        self._v6 = _Segments(v6.values())

    def match(self, address: Address) -> str | None:
        """The entry that contains ``address``, the narrowest if there are several."""
        return (self._v4 if address.version == 4 else self._v6).at(int(address))

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return self._length > 0


def _parse(text: str) -> tuple[str, int, int, int]:
    """The canonical text of a range, its version, first and last number."""
    if _CIDR.fullmatch(text):
        parsed = _parse_canonical(text)
        if parsed is not None:
            return parsed
        try:
            network = netaddr.IPNetwork(text)
        except (netaddr.AddrFormatError, ValueError):
            network = None
        if network is not None and network.first == network.value:
            return str(network), network.version, network.first, network.last
    raise InvalidCidr(_complaint(text))


def _parse_canonical(text: str) -> tuple[str, int, int, int] | None:
    # Below netaddr's objects, and only for what is spelt canonically, because policies hold 100,000 entries:
    # this takes a third of their time.
    address, _, length = text.partition("/")
    family = netaddr.strategy.ipv6 if ":" in address else netaddr.strategy.ipv4
    if not length or int(length) > family.width:
        return None
    try:
        first: int = family.str_to_int(address)
    except netaddr.AddrFormatError:
        return None
    hosts = (1 << (family.width - int(length))) - 1
    if first & hosts or family.int_to_str(first) != address:
        return None
    return text, family.version, first, first | hosts


def _complaint(text: str) -> str:
    """What is wrong with ``text``, in words that lead to the right one."""
    shown = quoted(text)
    if not text.strip():
        return "a blank entry is not an address range"
    if text != text.strip():
        return f"{shown} has white space around it"
    address, slash, length = text.partition("/")
    if re.search(r"[g-zG-Z*_]", address) and "%" not in address:
        return f"{shown} is not an address range; host names belong in allowed_domains"
    if "%" in address:
        return f"{shown} has a zone; ranges have none"
    if re.fullmatch(r"(?:\[.*\]|[0-9.]+):[0-9]+", address):
        return f"{shown} has a port; ports are not part of a policy"
    if "-" in text:
        return f"{shown} is not in CIDR notation (network, slash, prefix length)"
    if "." in address and any(re.fullmatch("0[0-9]+", part) for part in re.split("[.:]", address)):
        return f"{shown} has leading zeros, which some programs read as octal"
    if not _CIDR.fullmatch(address):
        return f"{shown} is not an IP address range"
    try:
        network = netaddr.IPNetwork(address)
    except (netaddr.AddrFormatError, ValueError):
        return f"{shown}: {quoted(address)} is not an IP address"
    if slash and not re.fullmatch("[0-9]+", length):
        try:
            network = netaddr.IPNetwork(text)
        except (netaddr.AddrFormatError, ValueError):
            return f"{shown}: {quoted(length)} is not a prefix length"
        return f'{shown} is not in CIDR notation: "{network.cidr}" was meant'
    if len(length) > 3 or int(length) > network.prefixlen:
        return f"{shown}: the prefix length of an IPv{network.version} range is at most {network.prefixlen}"
    if length != str(int(length)):
        return f"{shown} has leading zeros in the prefix length"
    return f'{shown} has host bits set: "{netaddr.IPNetwork(text).cidr}" was meant'
