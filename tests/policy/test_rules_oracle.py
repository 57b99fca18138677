"""The rules, held against a second statement of the table of meanings: plain, slow, written independently."""

import ipaddress
from ipaddress import IPv6Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from box_policy.policy.addresses import Address, AddressSet, embedded_ipv4, special_range
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason

from .strategies import addresses, cidrs, names, policies, vercel_policies
from .test_rules import A, compiled, custom


def slow_match(patterns: list[str], name: str) -> bool:
    return any(
        name == pattern
        or (pattern.startswith("*.") and name.endswith(pattern[1:]) and len(name) > len(pattern[1:]))
        for pattern in patterns
    )


def slow_contains(ranges: list[str], address: Address) -> bool:
    return any(address in ipaddress.ip_network(entry) for entry in ranges)


def slow_out_of_reach(policy: dict[str, Any], address: Address, own: set[Address]) -> bool:
    every = [address, *(embedded_ipv4(address) if isinstance(address, IPv6Address) else ())]
    return any(
        one in own or special_range(one) is not None or slow_contains(policy.get("denied_cidrs", []), one)
        for one in every
    )


def slow_opens_all(policy: dict[str, Any]) -> bool:
    if policy["mode"] == "allow-all":
        return True
    allows = "allowed_domains" in policy or "allowed_cidrs" in policy
    return policy["mode"] == "custom" and not allows and bool(policy.get("denied_cidrs"))


@given(
    policies() | vercel_policies(),
    addresses,
    names,
    st.lists(addresses, max_size=4),
    st.sets(addresses, max_size=2),
)
def test_the_rules_agree_with_a_slow_reading_of_the_policy(
    written: dict[str, object], address: Address, name: str, resolved: list[Address], own: set[Address]
) -> None:
    policy: dict[str, Any] = NetworkPolicy.parse(written).canonical()
    judge = compiled(written, own_addresses=own)
    everything = slow_opens_all(policy)

    reachable = not slow_out_of_reach(policy, address, own)
    verdict = judge.judge_address(address)
    assert verdict.allowed == (
        reachable and (everything or slow_contains(policy.get("allowed_cidrs", []), address))
    )
    assert verdict.addresses == ((address,) if verdict.allowed else ())

    named = everything or slow_match(policy.get("allowed_domains", []), name)
    assert judge.judge_name(name).allowed == named
    assert judge.judge_question(name, A).allowed == named

    kept = (
        [one for one in dict.fromkeys(resolved) if not slow_out_of_reach(policy, one, own)] if named else []
    )
    for resolution in (judge.judge_resolution(name, resolved), judge.judge_answer(name, resolved)):
        assert resolution.allowed == bool(kept)
        assert list(resolution.addresses) == kept
        if named:
            assert set(resolution.dropped) == set(resolved) - set(kept)


@given(st.lists(cidrs, max_size=4), st.lists(cidrs, max_size=3), names, st.lists(addresses, max_size=5))
def test_answers_for_cidrs_are_what_the_box_could_reach_anyway(
    allowed: list[str], denied: list[str], name: str, resolved: list[Address]
) -> None:
    judge = compiled(custom(allowed_cidrs=allowed, denied_cidrs=denied), resolve_for_cidrs=True)
    reachable = [one for one in dict.fromkeys(resolved) if judge.judge_address(one).allowed]
    assert list(judge.judge_answer(name, resolved).addresses) == reachable


@given(policies(), st.lists(cidrs, max_size=4), addresses)
def test_no_private_range_opens_more_than_itself(
    written: dict[str, object], ranges: list[str], address: Address
) -> None:
    opened = compiled(written, private_ranges=AddressSet(ranges)).judge_address(address)
    closed = compiled(written).judge_address(address)
    if opened.allowed != closed.allowed:
        assert slow_contains(ranges, address)
        assert special_range(address) is not None
    if closed.reason is not Reason.SPECIAL_ADDRESS:
        assert opened == closed
