"""Special addresses, and sets of address ranges."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import netaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.policy.addresses import (
    SPECIAL_RANGES,
    Address,
    AddressSet,
    InvalidCidr,
    SpecialRange,
    canonical_cidr,
    embedded_ipv4,
    special_range,
)

from .strategies import addresses, cidrs

REACHABLE = [ipaddress.ip_network("2001:3::/32"), ipaddress.ip_network("2001:4:112::/48")]


def narrowest(address: Address) -> SpecialRange | None:
    """The table, read row by row."""
    if any(address in network for network in REACHABLE):
        return None
    rows = [row for row in SPECIAL_RANGES if address in row.network]
    return max(rows, key=lambda row: row.network.prefixlen, default=None)


@pytest.mark.parametrize("row", SPECIAL_RANGES, ids=lambda row: str(row.network))
def test_every_row_from_its_first_address_to_its_last(row: SpecialRange) -> None:
    for address in (row.network[0], row.network[-1]):
        found = special_range(address)
        assert found == narrowest(address)
        assert found is not None
        assert found.network.prefixlen >= row.network.prefixlen
    assert row.source


@pytest.mark.parametrize("row", SPECIAL_RANGES, ids=lambda row: str(row.network))
def test_one_outside_every_row_is_what_the_table_says_of_it(row: SpecialRange) -> None:
    family = IPv4Address if row.network.version == 4 else IPv6Address
    for number in (int(row.network[0]) - 1, int(row.network[-1]) + 1):
        if 0 <= number < 2**row.network.max_prefixlen:
            assert special_range(family(number)) == narrowest(family(number))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
        ),
        *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0"),
        *("192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255"),
        *("198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15", "168.63.129.17"),
        *("192.31.196.1", "192.52.193.1", "192.175.48.1"),  # AS112 and AMT: globally reachable
        *(
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2620:4f:8000::1",
            "2a0f:5100::10",
        ),
        *("2001:3::1", "2001:4:112::1", "3ffe::1", "3fff:1000::"),
        "2606:4700::5efe",  # no ISATAP: an ordinary interface identifier
    ],
)
def test_the_neighbours_of_special_ranges_are_ordinary(text: str) -> None:
    assert special_range(ipaddress.ip_address(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        # ipaddress.is_global is True for some address of each of these ranges on Python 3.13.
        *(
            "224.0.0.251",
            "239.255.255.250",
            "ff0e::66",
            "192.88.99.1",
            "64:ff9b::808:808",
            "::ffff:0:8.8.8.8",
        ),
        *("fec0::1", "3fff::1", "5f00::1", "168.63.129.16", "192.0.0.9", "192.0.0.10", "100:0:0:1::1"),
        *("2001:1::1", "2001:1::2", "2001:20::1", "2001:30::1"),
        # And what nothing but 2000::/3 is for.
        *("4000::1", "8000::1", "1fff::1", "e000::1", "::2:0:0:0"),
    ],
)
def test_what_other_tables_call_global(text: str) -> None:
    assert special_range(ipaddress.ip_address(text)) is not None


@pytest.mark.parametrize(
    "text",
    ["168.63.129.16", "192.0.0.192", "100.100.100.200", "169.254.169.254", "fd00:ec2::254", "fd20:ce::254"],
)
def test_metadata_services_are_known_as_such(text: str) -> None:
    found = special_range(ipaddress.ip_address(text))
    assert found is not None
    assert found.metadata


EMBEDDED = [
    ("::ffff:10.0.0.1", ["10.0.0.1"]),
    ("::10.0.0.1", ["10.0.0.1"]),
    ("::ffff:0:10.0.0.1", ["10.0.0.1"]),
    ("64:ff9b::a9fe:a9fe", ["169.254.169.254"]),
    ("64:ff9b:1::a9fe:a9fe", ["169.254.169.254"]),
    ("64:ff9b:1:abcd::a9fe:a9fe", ["169.254.169.254"]),
    ("2002:a9fe:a9fe::66", ["169.254.169.254"]),
    ("2001:0:a9fe:a9fe::f5ff:fffe", ["169.254.169.254", "10.0.0.1"]),
    ("2606:4700::5efe:10.0.0.1", ["10.0.0.1"]),
    ("2606:4700::200:5efe:10.0.0.1", ["10.0.0.1"]),
    ("2606:4700::300:5efe:10.0.0.1", []),
    ("2606:4700::1", []),
    ("::", []),
    ("::1", []),
]


@pytest.mark.parametrize(("text", "inside"), EMBEDDED)
def test_ipv4_addresses_are_found_in_ipv6(text: str, inside: list[str]) -> None:
    assert [str(address) for address in embedded_ipv4(IPv6Address(text))] == inside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # RFC 6052 section 2.4: 192.0.2.33 under prefixes of each length, moved to this prefix.
        ("64:ff9b:1:c000:2:2100::", "192.0.2.33"),
        ("64:ff9b:1:1c0:0:221::", "192.0.2.33"),
        ("64:ff9b:1:122:c0:2:2100::", "192.0.2.33"),
    ],
)
def test_every_prefix_length_of_local_nat64_is_read(text: str, expected: str) -> None:
    assert IPv4Address(expected) in embedded_ipv4(IPv6Address(text))


def test_isatap_is_judged_by_what_it_leads_to() -> None:
    assert special_range(IPv6Address("2606:4700::5efe:10.0.0.1")) == special_range(IPv4Address("10.0.0.1"))
    assert special_range(IPv6Address("2606:4700::200:5efe:169.254.169.254")) is not None
    assert special_range(IPv6Address("2606:4700::5efe:8.8.8.8")) is None


@given(addresses)
def test_the_table_read_fast_is_the_table_read_slowly(address: Address) -> None:
    expected = narrowest(address)
    if expected is None and isinstance(address, IPv6Address):
        expected = next(filter(None, map(narrowest, embedded_ipv4(address))), None)
    assert special_range(address) == expected


@given(addresses)
def test_ordinary_ipv6_is_global_unicast(address: Address) -> None:
    if special_range(address) is None and address.version == 6:
        assert address in ipaddress.ip_network("2000::/3")


@given(addresses)
def test_what_the_standard_library_calls_private_is_special(address: Address) -> None:
    # Not the other way round; and AS112 and AMT are reachable by the registry.
    if not address.is_global and not any(address in network for network in REACHABLE):
        assert special_range(address) is not None


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::/0", "::/0"),
        ("::ffff:1.2.3.0/120", "::ffff:1.2.3.0/120"),
        ("::FFFF:102:300/120", "::ffff:1.2.3.0/120"),
    ],
)
def test_a_range_has_one_canonical_form(written: str, canonical: str) -> None:
    assert canonical_cidr(written) == canonical
    assert canonical_cidr(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "a blank entry is not an address range"),
        (" 10.0.0.0/8", '" 10.0.0.0/8" has white space around it'),
        ("10.0.0.1/8", '"10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant'),
        ("2001:db8::1/32", '"2001:db8::1/32" has host bits set: "2001:db8::/32" was meant'),
        ("010.0.0.0/8", '"010.0.0.0/8" has leading zeros, which some programs read as octal'),
        ("10.0.0.0/08", '"10.0.0.0/08" has leading zeros in the prefix length'),
        ("10.0.0.0/33", "the prefix length of an IPv4 range is at most 32"),
        ("::/129", "the prefix length of an IPv6 range is at most 128"),
        ("::/99999999999999999999", "the prefix length of an IPv6 range is at most 128"),
        ("10.0.0.0/255.0.0.0", 'is not in CIDR notation: "10.0.0.0/8" was meant'),
        ("10.0.0.0/", '"10.0.0.0/": "" is not a prefix length'),
        ("10.0.0.0/-1", "is not in CIDR notation"),
        ("10.0.0.0/+8", "is not"),
        ("10.0.0.0/8/9", '"8/9" is not a prefix length'),
        ("10.0.0.0-10.0.0.255", "is not in CIDR notation (network, slash, prefix length)"),
        ("10.0.0.1:80", '"10.0.0.1:80" has a port; ports are not part of a policy'),
        ("[::1]:80", '"[::1]:80" has a port; ports are not part of a policy'),
        ("[::1]", '"[::1]" is not an IP address range'),
        ("fe80::1%eth0", '"fe80::1%eth0" has a zone; ranges have none'),
        ("x.test", '"x.test" is not an address range; host names belong in allowed_domains'),
        ("*.x.test", "host names belong in allowed_domains"),
        ("10/8", '"10" is not an IP address'),
        ("10.0.0", '"10.0.0" is not an IP address'),
        ("1.2.3.256", '"1.2.3.256" is not an IP address'),
        ("\uff11\uff10.0.0.0/8", "is not an IP address range"),
        ("0x10.0.0.0/8", "is not an address range"),
        ("10.0.0.0/8\x00", "is not"),
    ],
)
def test_what_is_no_range_is_refused_and_the_message_teaches(written: str, message: str) -> None:
    with pytest.raises(InvalidCidr) as caught:
        canonical_cidr(written)
    assert message in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f.:/%\[\]-]{1,30}", fullmatch=True) | cidrs)
def test_a_range_is_canonical_after_one_pass_or_refused(text: str) -> None:
    try:
        canonical = canonical_cidr(text)
    except InvalidCidr as error:
        assert str(error)
    else:
        assert canonical_cidr(canonical) == canonical
        assert canonical == str(netaddr.IPNetwork(text))  # the fast path writes as netaddr does
        assert netaddr.IPNetwork(text).cidr == netaddr.IPNetwork(text)


def test_the_narrowest_entry_is_named() -> None:
    ranges = AddressSet(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0", "0.0.0.0/0", "10.0.0.0/8"])
    assert len(ranges) == 5
    assert ranges.match(IPv4Address("10.1.2.3")) == "10.1.2.3/32"
    assert ranges.match(IPv4Address("10.1.2.4")) == "10.1.0.0/16"
    assert ranges.match(IPv4Address("10.2.0.0")) == "10.0.0.0/8"
    assert ranges.match(IPv4Address("11.0.0.0")) == "0.0.0.0/0"
    assert ranges.match(IPv6Address("::a01:203")) == "::/0"


def test_an_empty_set_matches_nothing_and_is_false() -> None:
    assert not AddressSet([])
    assert AddressSet([]).match(IPv4Address("0.0.0.0")) is None
    assert AddressSet(["10.0.0.0/8"])
    assert AddressSet(["10.0.0.0/8"]).match(IPv6Address("::a00:1")) is None


@given(st.lists(cidrs, max_size=12), addresses)
def test_a_set_agrees_with_reading_the_ranges_one_by_one(entries: list[str], address: Address) -> None:
    networks = [ipaddress.ip_network(entry) for entry in entries]
    holding = [network for network in networks if address in network]
    expected = max(holding, key=lambda network: network.prefixlen, default=None)
    found = AddressSet(entries).match(address)
    assert (None if found is None else ipaddress.ip_network(found)) == expected
