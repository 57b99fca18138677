"""Which forms of policy are accepted, what they mean, and what is refused with which words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from box_policy.policy.model import MAX_ENTRIES, MAX_ISSUES, NetworkPolicy, PolicyError, PolicyIssue

from .strategies import policies, vercel_policies


def canonical(value: object) -> dict[str, object]:
    return NetworkPolicy.parse(value).canonical()


def refusal(value: object) -> str:
    with pytest.raises(PolicyError) as caught:
        NetworkPolicy.parse(value)
    return str(caught.value)


# Every policy of the hosted products' documentation, as its readers will paste it.
DOCUMENTED: list[tuple[object, dict[str, object]]] = [
    ({"mode": "allow-all"}, {"mode": "allow-all"}),
    ({"mode": "deny-all"}, {"mode": "deny-all"}),
    (
        {"mode": "custom", "allowedDomains": ["api.github.com", "registry.npm.example"]},
        {"mode": "custom", "allowed_domains": ["api.github.com", "registry.npm.example"]},
    ),
    (
        {"mode": "custom", "allowed_domains": ["api.github.com", "registry.npm.example"]},
        {"mode": "custom", "allowed_domains": ["api.github.com", "registry.npm.example"]},
    ),
    (
        {
            "mode": "custom",
            "allowedDomains": ["api.github.com", "*.githubusercontent.com"],
            "allowedCidrs": ["104.16.0.0/12"],
        },
        {
            "mode": "custom",
            "allowed_domains": ["api.github.com", "*.githubusercontent.com"],
            "allowed_cidrs": ["104.16.0.0/12"],
        },
    ),
    (
        {"mode": "custom", "allowedDomains": ["github.com", "*.github.com", "registry.npm.example"]},
        {"mode": "custom", "allowed_domains": ["github.com", "*.github.com", "registry.npm.example"]},
    ),
    (
        {"mode": "custom", "allowedCidrs": ["104.16.0.0/12"]},
        {"mode": "custom", "allowed_cidrs": ["104.16.0.0/12"]},
    ),
    (
        {"mode": "custom", "deniedCidrs": ["104.16.120.0/24"]},
        {"mode": "custom", "denied_cidrs": ["104.16.120.0/24"]},
    ),
    ("allow-all", {"mode": "allow-all"}),
    ("deny-all", {"mode": "deny-all"}),
    (
        {
            "mode": "custom",
            "allowedDomains": ["x.test"],
            "allowedCIDRs": ["1.1.1.0/24"],
            "deniedCIDRs": ["1.1.1.1/32"],
        },
        {
            "mode": "custom",
            "allowed_domains": ["x.test"],
            "allowed_cidrs": ["1.1.1.0/24"],
            "denied_cidrs": ["1.1.1.1/32"],
        },
    ),
    ({"allow": ["x.test", "*.y.test"]}, {"mode": "custom", "allowed_domains": ["x.test", "*.y.test"]}),
    (
        {"allow": {"x.test": [], "*.y.test": []}},
        {"mode": "custom", "allowed_domains": ["x.test", "*.y.test"]},
    ),
    (
        {"allow": ["x.test"], "subnets": {"allow": ["1.1.1.0/24"], "deny": ["1.1.1.1/32"]}},
        {
            "mode": "custom",
            "allowed_domains": ["x.test"],
            "allowed_cidrs": ["1.1.1.0/24"],
            "denied_cidrs": ["1.1.1.1/32"],
        },
    ),
]


@pytest.mark.parametrize(("written", "meant"), DOCUMENTED)
def test_every_documented_policy_is_accepted(written: object, meant: dict[str, object]) -> None:
    assert canonical(written) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        # null is absent
        (
            {"mode": "custom", "allowed_domains": None, "denied_cidrs": ["1.1.1.0/24"]},
            {"denied_cidrs": ["1.1.1.0/24"]},
        ),
        ({"mode": "custom", "allowed_domains": []}, {"allowed_domains": []}),
        # one canonical form of every entry, once
        (
            {"mode": "custom", "allowed_domains": ["B.test.", "a.test", "b.test"]},
            {"allowed_domains": ["b.test", "a.test"]},
        ),
        ({"mode": "custom", "allowed_cidrs": ["1.1.1.1", "1.1.1.1/32"]}, {"allowed_cidrs": ["1.1.1.1/32"]}),
        ({"mode": "custom", "allowed_domains": ("x.test",)}, {"allowed_domains": ["x.test"]}),
        ({"mode": "custom"}, {}),
        # the Vercel form is always an allowlist
        ({"allow": []}, {"allowed_domains": []}),
        ({"allow": {}}, {"allowed_domains": []}),
        ({"allow": None}, {"allowed_domains": []}),
        ({"subnets": {"allow": ["1.1.1.0/24"]}}, {"allowed_domains": [], "allowed_cidrs": ["1.1.1.0/24"]}),
        ({"subnets": {"deny": ["1.1.1.0/24"]}}, {"allowed_domains": [], "denied_cidrs": ["1.1.1.0/24"]}),
        ({"subnets": None, "allow": ["x.test"]}, {"allowed_domains": ["x.test"]}),
        # but for its "*"
        ({"allow": ["*"]}, {"mode": "allow-all"}),
        ({"allow": {"x.test": [], "*": []}}, {"mode": "allow-all"}),
        ({"allow": ["*"], "subnets": {"allow": ["1.1.1.0/24"], "deny": []}}, {"mode": "allow-all"}),
        ({"allow": ["*", "x.test"], "subnets": {"deny": ["1.1.1.0/24"]}}, {"denied_cidrs": ["1.1.1.0/24"]}),
    ],
)
def test_what_the_forms_mean(written: object, meant: dict[str, object]) -> None:
    assert canonical(written) == {"mode": "custom"} | meant


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("allow-all", "allow-all"),
        ("deny-all", "deny-all"),
        ({"mode": "allow-all", "allowed_domains": None}, "allow-all"),
        ({"mode": "custom", "allowed_domains": ["x.test"]}, "allowlist"),
        ({"mode": "custom", "allowed_domains": []}, "allowlist"),
        ({"mode": "custom", "allowed_cidrs": []}, "allowlist"),
        ({"mode": "custom", "allowed_cidrs": [], "denied_cidrs": ["1.1.1.0/24"]}, "allowlist"),
        ({"mode": "custom", "denied_cidrs": ["1.1.1.0/24"]}, "denylist"),
        ({"mode": "custom", "allowed_domains": None, "denied_cidrs": ["1.1.1.0/24"]}, "denylist"),
        ({"mode": "custom"}, "deny-all"),
        ({"mode": "custom", "denied_cidrs": None}, "deny-all"),
        ({"mode": "custom", "denied_cidrs": []}, "deny-all"),
        ({"allow": []}, "allowlist"),
        ({"subnets": {"deny": ["1.1.1.0/24"]}}, "allowlist"),
        ({"allow": ["*"]}, "allow-all"),
        ({"allow": ["*"], "subnets": {"deny": ["1.1.1.0/24"]}}, "denylist"),
    ],
)
def test_the_kind_of_a_policy(policy: object, kind: str) -> None:
    assert NetworkPolicy.parse(policy).kind == kind


@pytest.mark.parametrize(
    ("written", "message"),
    [
        # unknown key
        (
            {"mode": "custom", "allowed_domain": []},
            'allowed_domain: unknown key; "allowed_domains" was meant?',
        ),
        (
            {"mode": "custom", "AllowedDomains": []},
            'AllowedDomains: unknown key; "allowedDomains" was meant?',
        ),
        ({"mode": "custom", "deny": []}, "deny: unknown key; "),
        (
            {"mode": "custom", "injectionRules": []},
            "injectionRules: not supported: it needs decrypted traffic",
        ),
        ({"allow": [], "subnet": {}}, 'subnet: unknown key; "subnets" was meant?'),
        ({"subnets": {"alow": []}}, 'subnets.alow: unknown key; "allow" was meant?'),
        ({"subnets": {"allowed_cidrs": []}}, "subnets.allowed_cidrs: unknown key"),
        ({"mode": "custom", "x" * 10**6: 1}, "unknown key; keys are "),
        ({"mode": "custom", 1: 2}, "keys are strings"),
        # missing or unknown mode
        ({}, '"mode" is missing; write "allow-all", "deny-all" or "custom"'),
        ({"allowed_domains": []}, '"mode" is missing'),
        ({"mode": "alow-all"}, 'mode: "alow-all" is not a mode; "allow-all" was meant?'),
        ({"mode": "deny_all"}, 'mode: "deny_all" is not a mode; "deny-all" was meant?'),
        ({"mode": "Allow-All"}, '"allow-all" was meant?'),
        ({"mode": "default-deny"}, '"custom" was meant?'),
        ({"mode": "open"}, 'mode: "open" is not a mode; modes are "allow-all", "deny-all" or "custom"'),
        ({"mode": None}, 'mode: mode is one of "allow-all", "deny-all" or "custom", not null'),
        ({"mode": True}, "not true"),
        ("alow-all", '"alow-all" is not a mode; "allow-all" was meant?'),
        ("custom", '"custom" needs lists'),
        ("", '"" is not a mode'),
        # no policy at all
        (None, 'a policy is a mapping with "mode", or "allow-all" or "deny-all"; this is null'),
        ([], "this is a list"),
        (["allow-all"], "this is a list"),
        (1, "this is the number 1"),
        # lists on a mode that takes none
        (
            {"mode": "allow-all", "allowed_domains": []},
            'allowed_domains: mode "allow-all" takes no lists; for lists write mode "custom"',
        ),
        ({"mode": "deny-all", "deniedCidrs": ["1.1.1.0/24"]}, 'deniedCidrs: mode "deny-all" takes no lists'),
        # string for list
        (
            {"mode": "custom", "allowed_domains": "x.test"},
            'allowed_domains: a list is needed, not a string: write ["x.test"]',
        ),
        ({"mode": "custom", "allowed_cidrs": "1.1.1.0/24"}, 'write ["1.1.1.0/24"]'),
        ({"allow": "x.test"}, 'allow: a list is needed, not a string: write ["x.test"]'),
        (
            {"mode": "custom", "allowed_domains": {"x.test": []}},
            "allowed_domains: a list of strings is needed, not a mapping",
        ),
        (
            {"mode": "custom", "allowed_domains": 1},
            "allowed_domains: a list of strings is needed, not the number 1",
        ),
        # entries that are not strings
        (
            {"mode": "custom", "allowed_domains": ["x.test", 1.10]},
            "allowed_domains[1]: the number 1.1, not a string: put it in quotes",
        ),
        (
            {"mode": "custom", "allowed_domains": [False]},
            "allowed_domains[0]: false, not a string: put it in quotes",
        ),
        ({"mode": "custom", "allowed_cidrs": [None]}, "allowed_cidrs[0]: null, not a string"),
        ({"mode": "custom", "allowed_cidrs": [["1.1.1.0/24"]]}, "allowed_cidrs[0]: a list, not a string"),
        ({"mode": "custom", "allowed_domains": [b"x.test"]}, "allowed_domains[0]: a bytes, not a string"),
        ({"allow": [1]}, "allow[0]: the number 1, not a string"),
        # entries that are neither names nor ranges, by their index and in the author's own spelling
        (
            {"mode": "custom", "allowedDomains": ["x.test", "*"]},
            'allowedDomains[1]: "*" is not accepted here',
        ),
        ({"mode": "custom", "allowed_domains": ["1.1.1.1"]}, "it belongs in allowed_cidrs"),
        (
            {"mode": "custom", "deniedCIDRs": ["10.0.0.1/8"]},
            'deniedCIDRs[0]: "10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant',
        ),
        ({"allow": {"x.test:1": []}}, 'allow["x.test:1"]: "x.test:1" has a port'),
        ({"allow": ["*x.test"]}, 'allow[0]: "*x.test": a wildcard stands for whole labels'),
        ({"subnets": {"deny": ["x.test"]}}, 'subnets.deny[0]: "x.test" is not an address range'),
        # one form at a time, one spelling at a time
        (
            {"mode": "custom", "allow": ["x.test"]},
            'two forms of policy are mixed: "allow" cannot stand beside "mode"',
        ),
        ({"allow": [], "allowedDomains": []}, '"allow" cannot stand beside "allowedDomains"'),
        (
            {"mode": "custom", "allowed_domains": [], "allowedDomains": []},
            'allowedDomains: given twice: "allowed_domains" and "allowedDomains" are the same key',
        ),
        ({"mode": "custom", "allowedCidrs": [], "allowedCIDRs": None}, "are the same key"),
        # what needs decrypted traffic
        ({"allow": {"x.test": [{"transform": [{"headers": {}}]}]}}, 'allow["x.test"]: rules for a domain'),
        ({"allow": {"x.test": [{"match": {}}]}}, "not supported; write [] to allow the domain"),
        (
            {"allow": {"x.test": None}},
            'allow["x.test"]: a list is needed, not null: write [] to allow the domain',
        ),
        ({"allow": {"x.test": "y"}}, 'a list is needed, not the string "y"'),
        ({"subnets": []}, 'subnets: a mapping with "allow" or "deny" is needed, not a list'),
        # what JSON can carry and a name can't
        ({"mode": "custom", "allowed_domains": ["\ud800"]}, "has no valid IDNA 2008 form"),
        ({"\ud800": 1}, "is not valid Unicode"),
    ],
)
def test_what_is_refused_names_the_entry_and_teaches(written: object, message: str) -> None:
    assert message in refusal(written)


def test_every_issue_is_told_not_only_the_first() -> None:
    with pytest.raises(PolicyError) as caught:
        NetworkPolicy.parse(
            {
                "mode": "custum",
                "allowed_domains": ["ok.test", "x.test:1", "*"],
                "denied_cidrs": ["10.0.0.1/8"],
                "extra": 1,
            }
        )
    assert [issue.location for issue in caught.value.issues] == [
        ("mode",),
        ("allowed_domains", 1),
        ("allowed_domains", 2),
        ("denied_cidrs", 0),
        ("extra",),
    ]
    assert len(str(caught.value).splitlines()) == 5


def test_an_issue_names_its_place() -> None:
    assert str(PolicyIssue(("allowed_domains", 3), "wrong")) == "allowed_domains[3]: wrong"
    assert str(PolicyIssue(("subnets", "allow", 0), "wrong")) == "subnets.allow[0]: wrong"
    assert str(PolicyIssue(("allow", "x.test"), "wrong")) == 'allow["x.test"]: wrong'
    assert str(PolicyIssue((), "wrong")) == "wrong"


def test_a_list_is_bounded_and_so_are_the_issues() -> None:
    entries = [f"h{index}.test" for index in range(MAX_ENTRIES + 1)]
    assert "more than 250,000 entries" in refusal({"mode": "custom", "allowed_domains": entries})
    with pytest.raises(PolicyError) as caught:
        NetworkPolicy.parse({"mode": "custom", "allowed_domains": ["-"] * (MAX_ISSUES + 5)})
    assert len(caught.value.issues) == MAX_ISSUES + 1
    assert str(caught.value.issues[-1]) == "and 5 more issues"


def test_a_policy_is_accepted_as_itself_and_never_changes() -> None:
    policy = NetworkPolicy(mode="custom", allowed_domains=("X.test",))
    assert NetworkPolicy.parse(policy) == policy
    assert policy.allowed_domains == ("x.test",)
    assert hash(policy) == hash(NetworkPolicy.parse({"mode": "custom", "allowedDomains": ["x.test"]}))
    with pytest.raises(ValidationError):
        policy.mode = "allow-all"  # type: ignore[misc]


def test_a_model_that_holds_a_policy_takes_every_form() -> None:
    class Config(BaseModel):
        network_policy: NetworkPolicy

    config: Any = {"network_policy": {"allow": ["x.test"]}}
    assert Config.model_validate(config).network_policy.allowed_domains == ("x.test",)


@given(policies() | vercel_policies())
def test_the_canonical_form_is_stable(written: dict[str, object]) -> None:
    policy = NetworkPolicy.parse(written)
    again = NetworkPolicy.parse(json.loads(json.dumps(policy.canonical())))
    assert again == policy
    assert again.canonical() == policy.canonical()
    assert again.kind == policy.kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["mode", "allow", "subnets", "allowed_domains", "allowedCIDRs", "deny"])
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_given_is_a_policy_or_a_policy_error(value: object) -> None:
    try:
        NetworkPolicy.parse(value)
    except PolicyError as error:
        assert error.issues
        assert str(error)
