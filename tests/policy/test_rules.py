"""What policies mean: each row of the table of meanings."""

import copy
import dataclasses
import ipaddress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from box_policy.policy.addresses import AddressSet
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy, Operator, Verdict

A, AAAA, PTR, TXT, HTTPS = 1, 28, 12, 16, 65

PUBLIC = IPv4Address("51.81.10.10")
PUBLIC_6 = IPv6Address("2a0f:5100::10")
PRIVATE = IPv4Address("10.1.2.3")
METADATA = IPv4Address("169.254.169.254")


def compiled(policy: object, **operator: Any) -> CompiledPolicy:
    return CompiledPolicy(NetworkPolicy.parse(policy), Operator(**operator))


def custom(**lists: list[str]) -> dict[str, object]:
    return {"mode": "custom", **lists}


# Modes


def test_allow_all_opens_every_ordinary_address_and_name() -> None:
    policy = compiled("allow-all")
    verdict = policy.judge_address(PUBLIC)
    assert (verdict.allowed, verdict.reason, verdict.rule) == (True, Reason.MODE_ALLOWS, "mode: allow-all")
    assert verdict.addresses == (PUBLIC,)
    assert policy.judge_name("x.test").reason is Reason.MODE_ALLOWS
    assert policy.judge_name("x.test").addresses == ()
    assert policy.judge_question("x.test", TXT).allowed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1.0.0.10.in-addr.arpa", Reason.SPECIAL_ADDRESS),
        ("254.169.254.169.in-addr.arpa", Reason.SPECIAL_ADDRESS),
        (ipaddress.ip_address("fd00:ec2::254").reverse_pointer, Reason.SPECIAL_ADDRESS),
        ("7.77.81.51.in-addr.arpa", Reason.CIDR_DENIED),
        ("8.78.81.51.in-addr.arpa", Reason.MODE_ALLOWS),
        (ipaddress.ip_address("2a0f:5100::10").reverse_pointer, Reason.MODE_ALLOWS),
        # Not a whole address's, or nobody's.
        ("0.10.in-addr.arpa", Reason.MODE_ALLOWS),
        ("1.0.0.256.in-addr.arpa", Reason.MODE_ALLOWS),
        ("1.0.0.10.x.test", Reason.MODE_ALLOWS),
        (f"{'0.' * 31}xy.ip6.arpa", Reason.MODE_ALLOWS),
        (f"{'0.' * 31}x.ip6.arpa", Reason.MODE_ALLOWS),
    ],
)
def test_the_name_of_an_address_out_of_reach_is_not_asked(name: str, reason: Reason) -> None:
    assert compiled(custom(denied_cidrs=["51.81.77.0/24"])).judge_question(name, PTR).reason is reason


@pytest.mark.parametrize(
    ("policy", "rule"),
    [("deny-all", "mode: deny-all"), (custom(), "mode: custom, nothing allowed")],
)
def test_deny_all_and_a_policy_that_says_nothing_deny_everything(policy: object, rule: str) -> None:
    judge = compiled(policy, resolve_for_cidrs=True)
    for verdict in (
        judge.judge_address(PUBLIC),
        judge.judge_name("x.test"),
        judge.judge_resolution("x.test", [PUBLIC]),
        judge.judge_question("x.test", A),
        judge.judge_answer("x.test", [PUBLIC]),
    ):
        assert (verdict.allowed, verdict.reason, verdict.rule) == (False, Reason.DENY_ALL, rule)


@pytest.mark.parametrize("lists", [{"allowed_domains": []}, {"allowed_cidrs": []}])
def test_an_empty_allowlist_denies_what_is_not_listed(lists: dict[str, list[str]]) -> None:
    policy = compiled(custom(**lists))
    assert policy.judge_address(PUBLIC).reason is Reason.ADDRESS_NOT_ALLOWED
    assert policy.judge_name("x.test").reason is Reason.NAME_NOT_ALLOWED
    assert policy.judge_question("x.test", A).reason is Reason.NAME_NOT_ALLOWED


def test_only_denied_cidrs_is_a_denylist() -> None:
    policy = compiled(custom(denied_cidrs=["51.81.10.0/24"]))
    assert policy.judge_address(IPv4Address("51.81.11.1")).reason is Reason.MODE_ALLOWS
    assert policy.judge_address(IPv4Address("51.81.11.1")).rule == "mode: custom, only denied_cidrs"
    assert policy.judge_address(PUBLIC).reason is Reason.CIDR_DENIED
    assert policy.judge_address(PUBLIC).rule == "denied_cidrs: 51.81.10.0/24"
    assert policy.judge_name("x.test").allowed
    assert not policy.judge_resolution("x.test", [PUBLIC]).allowed


def test_an_allowed_cidr_needs_no_name() -> None:
    policy = compiled(custom(allowed_cidrs=["51.81.10.0/24", "2a0f:5100::/32"]))
    verdict = policy.judge_address(PUBLIC)
    assert (verdict.reason, verdict.rule) == (Reason.CIDR_ALLOWED, "allowed_cidrs: 51.81.10.0/24")
    assert verdict.addresses == (PUBLIC,)
    assert policy.judge_address(PUBLIC_6).rule == "allowed_cidrs: 2a0f:5100::/32"
    assert policy.judge_address(IPv4Address("51.81.11.1")).rule == "allowed_cidrs: no entry matches"


def test_an_allowed_name_does_not_open_its_address() -> None:
    policy = compiled(custom(allowed_domains=["x.test"]))
    assert policy.judge_resolution("x.test", [PUBLIC]).addresses == (PUBLIC,)
    assert policy.judge_address(PUBLIC).reason is Reason.ADDRESS_NOT_ALLOWED


# Names


def test_a_wildcard_matches_any_depth_and_never_the_name_itself() -> None:
    policy = compiled(custom(allowed_domains=["x.test", "*.wild.test"]))
    assert policy.judge_name("x.test").rule == "allowed_domains: x.test"
    assert policy.judge_name("a.wild.test").rule == "allowed_domains: *.wild.test"
    assert policy.judge_name("a.b.c.wild.test").allowed
    for name in ("wild.test", "xwild.test", "a.x.test", "x.test.evil.test", "wild.test.evil.test", "test"):
        verdict = policy.judge_name(name)
        assert (verdict.allowed, verdict.reason) == (False, Reason.NAME_NOT_ALLOWED)
        assert verdict.rule == "allowed_domains: no entry matches"
        assert policy.judge_resolution(name, [PUBLIC]) == verdict


# The order: special, denied, allowed


def test_denied_cidrs_beat_everything_that_allows() -> None:
    policy = compiled(
        custom(allowed_domains=["x.test"], allowed_cidrs=["51.81.0.0/16"], denied_cidrs=["51.81.10.0/24"])
    )
    assert policy.judge_address(PUBLIC).reason is Reason.CIDR_DENIED
    verdict = policy.judge_resolution("x.test", [PUBLIC])
    assert (verdict.reason, verdict.rule) == (Reason.RESOLVED_SPECIAL, "denied_cidrs: 51.81.10.0/24")


def test_special_comes_before_denied_and_before_the_mode() -> None:
    for policy in (
        "allow-all",
        "deny-all",
        custom(denied_cidrs=["10.0.0.0/8"]),
        custom(allowed_cidrs=["10.0.0.0/8"]),
    ):
        verdict = compiled(policy).judge_address(PRIVATE)
        assert (verdict.allowed, verdict.reason) == (False, Reason.SPECIAL_ADDRESS)
        assert verdict.rule == "special: Private-Use (RFC 1918)"


@pytest.mark.parametrize(
    "policy", ["allow-all", custom(allowed_cidrs=["0.0.0.0/0", "::/0"]), custom(denied_cidrs=["1.1.1.1/32"])]
)
@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.53.53.53", "10.66.0.1", "172.31.255.77", "192.168.0.1"),
        *("100.100.100.200", "169.254.169.254", "169.254.170.2", "192.0.0.8", "192.0.0.192", "198.19.0.1"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1", "224.0.0.251", "239.255.255.250", "192.88.99.1"),
        *("240.0.0.1", "255.255.255.255", "168.63.129.16", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
        *("::169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::a9fe:a9fe"),
        *(
            "2002:a9fe:a9fe::66",
            "2002:808:808::1",
            "2001:0:a9fe:a9fe::66",
            "fd00:ec2::254",
            "fe80::a9fe:a9fe",
        ),
        *(
            "fe80::1%1",
            "2a0f:5100::1%1",
            "ff0e::66",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fec0::1",
        ),
        *("4000::1", "2606:4700::5efe:10.0.0.1"),
    ],
)
def test_special_addresses_are_never_reached(policy: object, text: str) -> None:
    address = ipaddress.ip_address(text)
    judge = compiled(policy)
    assert judge.judge_address(address).reason is Reason.SPECIAL_ADDRESS
    assert judge.judge_resolution("x.test", [address]).allowed is False
    assert judge.judge_answer("x.test", [address]).allowed is False


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (custom(denied_cidrs=["51.81.10.0/24"]), "2606:4700::5efe:51.81.10.10"),
        (custom(allowed_cidrs=["::/0"], denied_cidrs=["51.81.10.0/24"]), "2606:4700::200:5efe:51.81.10.10"),
    ],
)
def test_what_is_denied_as_ipv4_is_denied_inside_ipv6(policy: object, text: str) -> None:
    verdict = compiled(policy).judge_address(IPv6Address(text))
    assert (verdict.reason, verdict.rule) == (Reason.CIDR_DENIED, "denied_cidrs: 51.81.10.0/24")


# What a name resolved to


def test_bad_addresses_are_dropped_and_the_good_ones_dialled() -> None:
    policy = compiled(custom(allowed_domains=["x.test"], denied_cidrs=["51.81.66.0/24"]))
    denied = IPv4Address("51.81.66.66")
    verdict = policy.judge_resolution("x.test", [METADATA, PUBLIC, denied, PUBLIC, PUBLIC_6])
    assert (verdict.reason, verdict.rule) == (Reason.NAME_ALLOWED, "allowed_domains: x.test")
    assert verdict.addresses == (PUBLIC, PUBLIC_6)
    assert verdict.dropped == (METADATA, denied)
    assert policy.judge_answer("x.test", [METADATA, PUBLIC]).addresses == (PUBLIC,)


def test_with_none_left_the_first_dropped_gives_the_rule() -> None:
    verdict = compiled("allow-all").judge_resolution("x.test", iter([PRIVATE, METADATA]))
    assert (verdict.allowed, verdict.reason) == (False, Reason.RESOLVED_SPECIAL)
    assert verdict.rule == "special: Private-Use (RFC 1918)"
    assert (verdict.addresses, verdict.dropped) == ((), (PRIVATE, METADATA))


def test_a_name_that_resolves_to_nothing_is_denied() -> None:
    policy = compiled("allow-all")
    assert policy.judge_resolution("x.test", []).reason is Reason.RESOLUTION_FAILED
    assert policy.judge_answer("x.test", []).reason is Reason.RESOLUTION_FAILED
    assert not policy.judge_resolution("x.test", []).allowed


# DNS


def test_under_an_allowlist_only_allowed_names_are_asked() -> None:
    policy = compiled(
        custom(allowed_domains=["x.test"], allowed_cidrs=["51.81.10.0/24"]), resolve_for_cidrs=True
    )
    for qtype in (A, AAAA, TXT, HTTPS):
        assert policy.judge_question("x.test", qtype).allowed
        assert policy.judge_question("y.test", qtype).reason is Reason.NAME_NOT_ALLOWED
    assert policy.judge_answer("y.test", [PUBLIC]).reason is Reason.NAME_NOT_ALLOWED


@pytest.mark.parametrize(
    "policy", [custom(allowed_cidrs=["51.81.10.0/24"]), {"subnets": {"allow": ["51.81.10.0/24"]}}]
)
def test_a_policy_of_cidrs_alone_resolves_nothing(policy: object) -> None:
    judge = compiled(policy)
    assert judge.judge_question("x.test", A).reason is Reason.NAME_NOT_ALLOWED
    assert judge.judge_answer("x.test", [PUBLIC]).reason is Reason.NAME_NOT_ALLOWED


@pytest.mark.parametrize(
    "policy", [custom(allowed_cidrs=["51.81.10.0/24"]), {"subnets": {"allow": ["51.81.10.0/24"]}}]
)
def test_unless_the_operator_lets_it_and_then_only_into_its_cidrs(policy: object) -> None:
    judge = compiled(policy, resolve_for_cidrs=True)
    outside = IPv4Address("51.81.66.66")
    assert judge.judge_question("x.test", A).allowed
    assert judge.judge_question("x.test", AAAA).allowed
    assert judge.judge_question("x.test", A).addresses == ()
    assert not judge.judge_question("x.test", TXT).allowed
    assert not judge.judge_question("x.test", HTTPS).allowed
    verdict = judge.judge_answer("x.test", [outside, PUBLIC, PRIVATE])
    assert (verdict.reason, verdict.addresses) == (Reason.CIDR_ALLOWED, (PUBLIC,))
    assert verdict.dropped == (outside, PRIVATE)
    assert judge.judge_answer("x.test", [outside]).reason is Reason.ADDRESS_NOT_ALLOWED
    assert judge.judge_answer("x.test", [outside]).dropped == (outside,)
    assert judge.judge_answer("x.test", [METADATA, outside]).reason is Reason.RESOLVED_SPECIAL
    # The name itself stays denied: it opens no connection.
    assert judge.judge_name("x.test").reason is Reason.NAME_NOT_ALLOWED
    assert not judge.judge_resolution("x.test", [PUBLIC]).allowed


def test_resolving_for_cidrs_changes_nothing_for_other_policies() -> None:
    assert (
        not compiled(custom(allowed_domains=[]), resolve_for_cidrs=True).judge_question("x.test", A).allowed
    )
    assert not compiled(custom(allowed_cidrs=[]), resolve_for_cidrs=True).judge_question("x.test", A).allowed
    assert compiled("allow-all", resolve_for_cidrs=True).judge_question("x.test", TXT).allowed


# The operator


def test_a_private_range_is_ordinary_and_the_policy_must_still_allow_it() -> None:
    ranges = AddressSet(["10.0.0.0/8"])
    assert compiled("allow-all", private_ranges=ranges).judge_address(PRIVATE).reason is Reason.MODE_ALLOWS
    listed = compiled(custom(allowed_cidrs=["10.1.0.0/16"]), private_ranges=ranges)
    assert listed.judge_address(PRIVATE).reason is Reason.CIDR_ALLOWED
    assert listed.judge_address(IPv4Address("10.2.0.1")).reason is Reason.ADDRESS_NOT_ALLOWED
    assert listed.judge_address(IPv4Address("192.168.0.1")).reason is Reason.SPECIAL_ADDRESS
    denied = compiled(custom(denied_cidrs=["10.1.0.0/16"]), private_ranges=ranges)
    assert denied.judge_address(PRIVATE).reason is Reason.CIDR_DENIED
    named = compiled(custom(allowed_domains=["x.test"]), private_ranges=ranges)
    assert named.judge_resolution("x.test", [PRIVATE]).addresses == (PRIVATE,)
    assert compiled("deny-all", private_ranges=ranges).judge_address(PRIVATE).reason is Reason.DENY_ALL


def test_a_private_range_does_not_open_the_metadata_service_in_it() -> None:
    wide = compiled("allow-all", private_ranges=AddressSet(["169.254.0.0/16", "fd00::/8", "100.64.0.0/10"]))
    assert wide.judge_address(IPv4Address("169.254.1.1")).allowed
    for text in ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200"):
        assert "Metadata service" in wide.judge_address(ipaddress.ip_address(text)).rule
    named = compiled("allow-all", private_ranges=AddressSet(["169.254.0.0/16", "169.254.169.254"]))
    assert named.judge_address(METADATA).allowed


def test_a_private_range_in_ipv6_does_not_open_the_ipv4_inside() -> None:
    judge = compiled(
        "allow-all", private_ranges=AddressSet(["64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0/96"])
    )
    assert judge.judge_address(IPv6Address("64:ff9b::808:808")).allowed
    assert judge.judge_address(IPv6Address("64:ff9b:1::808:808")).allowed
    for text in ("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::", "::ffff:10.0.0.1"):
        assert judge.judge_address(IPv6Address(text)).reason is Reason.SPECIAL_ADDRESS
    denied = compiled(custom(denied_cidrs=["8.8.8.0/24"]), private_ranges=AddressSet(["64:ff9b::/96"]))
    assert denied.judge_address(IPv6Address("64:ff9b::808:808")).reason is Reason.CIDR_DENIED


def test_the_gates_own_addresses_are_special_and_never_opened() -> None:
    own = {PUBLIC}
    judge = compiled("allow-all", own_addresses=own, private_ranges=AddressSet(["0.0.0.0/0", "::/0"]))
    verdict = judge.judge_address(PUBLIC)
    assert (verdict.reason, verdict.rule) == (Reason.SPECIAL_ADDRESS, "special: address of the gate itself")
    assert judge.judge_address(IPv6Address("2606:4700::5efe:51.81.10.10")).reason is Reason.SPECIAL_ADDRESS
    assert judge.judge_address(PUBLIC_6).allowed
    own.add(PUBLIC_6)  # type: ignore[arg-type]  # an interface came up
    assert judge.judge_address(PUBLIC_6).reason is Reason.SPECIAL_ADDRESS


# Verdicts


def test_a_verdict_is_true_only_if_it_allows() -> None:
    assert compiled("allow-all").judge_name("x.test")
    assert not Verdict.denied(Reason.LIMIT)
    assert Verdict.denied(Reason.LIMIT).rule == ""


def test_nobody_else_makes_a_verdict_that_allows() -> None:
    allowing = compiled("allow-all").judge_address(PUBLIC)
    denying = Verdict.denied(Reason.LIMIT)
    attempts: list[Any] = [
        lambda: Verdict(True, Reason.MODE_ALLOWS),
        lambda: Verdict(True, Reason.MODE_ALLOWS, made_by=object()),
        lambda: dataclasses.replace(denying, allowed=True),
        lambda: dataclasses.replace(allowing, addresses=(PRIVATE,)),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(dataclasses.FrozenInstanceError):
        denying.allowed = True  # type: ignore[misc]
    assert copy.copy(allowing) == allowing
