"""Random policies, names and addresses that meet each other often."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from box_policy.policy.addresses import SPECIAL_RANGES, Address

# Few labels and few address bits, so that random names fall under random patterns.
LABELS = ("a", "b", "wild", "x-1", "_s", "xn--bcher-kva")
TOPS = ("test", "example")

names = st.builds(
    lambda labels, top: ".".join([*labels, top]),
    st.lists(st.sampled_from(LABELS), max_size=4),
    st.sampled_from(TOPS),
)
patterns = st.builds(lambda wildcard, name: "*." + name if wildcard else name, st.booleans(), names)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network | IPv6Network:
    """Networks in a corner of ordinary space, and anywhere."""
    if draw(st.booleans()):
        base = draw(st.sampled_from([0x33510000, 0x0A000000, draw(st.integers(0, 2**32 - 1))]))
        length = draw(st.integers(0, 32))
        number = base | draw(st.integers(0, 0xFFFF))
        return IPv4Network((number >> (32 - length) << (32 - length), length))
    wide = draw(st.sampled_from([0x2A0F5100 << 96, 0xFD00 << 112, draw(st.integers(0, 2**128 - 1))]))
    length = draw(st.integers(0, 128))
    number = wide | draw(st.integers(0, 0xFFFF))
    return IPv6Network((number >> (128 - length) << (128 - length), length))


def _near(edge: int, bits: int, offset: int) -> Address:
    number = min(max(edge + offset, 0), 2**bits - 1)
    return IPv4Address(number) if bits == 32 else IPv6Address(number)


addresses: st.SearchStrategy[Address] = st.one_of(
    st.ip_addresses(),
    st.integers(0, 0xFFFF).map(lambda low: IPv4Address(0x33510000 | low)),
    st.integers(0, 0xFFFF).map(lambda low: IPv6Address((0x2A0F5100 << 96) | low)),
    st.builds(
        lambda row, last, offset: _near(
            int(row.network[-1 if last else 0]), row.network.max_prefixlen, offset
        ),
        st.sampled_from(SPECIAL_RANGES),
        st.booleans(),
        st.integers(-2, 2),
    ),
)
cidrs = networks().map(str)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, object]:
    """Policies in the form with ``mode``, in any spelling."""
    mode = draw(st.sampled_from(["allow-all", "deny-all", "custom", "custom", "custom", "custom"]))
    policy: dict[str, object] = {"mode": mode}
    if mode == "custom":
        lists = (
            (("allowed_domains", "allowedDomains"), patterns),
            (("allowed_cidrs", "allowedCidrs", "allowedCIDRs"), cidrs),
            (("denied_cidrs", "deniedCidrs", "deniedCIDRs"), cidrs),
        )
        for spellings, entries in lists:
            if draw(st.booleans()):
                key = draw(st.sampled_from(spellings))
                policy[key] = draw(st.none() | st.lists(entries, max_size=6))
    return policy


@st.composite
def vercel_policies(draw: st.DrawFn) -> dict[str, object]:
    """Policies in the Vercel form."""
    policy: dict[str, object] = {}
    domains = draw(st.lists(st.one_of(patterns, st.just("*")), max_size=4))
    policy["allow"] = domains if draw(st.booleans()) else {domain: [] for domain in domains}
    if draw(st.booleans()):
        lists = st.lists(cidrs, max_size=4)
        policy["subnets"] = draw(st.fixed_dictionaries({}, optional={"allow": lists, "deny": lists}))
    return policy
