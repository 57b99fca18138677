"""Which forms of policy are accepted, what they mean, and what is refused with which words."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from box_policy.policy.model import (
    MAX_ENTRIES,
    MAX_ISSUES,
    MAX_KEYS,
    MAX_LENGTH,
    MORE_ISSUES,
    NetworkPolicy,
    PolicyError,
    PolicyIssue,
)

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


class TestBounds:
    """What an author, or a stranger, can send at most costs a moment and a page of issues."""

    @pytest.mark.parametrize("entry", ["", "x.test", 1, None, {}, []])
    @pytest.mark.parametrize(
        ("key", "form"),
        [
            ("allowed_domains", lambda entries: {"mode": "custom", "allowed_domains": entries}),
            ("denied_cidrs", lambda entries: {"mode": "custom", "denied_cidrs": entries}),
            ("allow", lambda entries: {"allow": entries}),
            ("subnets.deny", lambda entries: {"subnets": {"deny": entries}}),
        ],
    )
    def test_of_a_list_that_is_too_long_no_entry_is_judged(
        self, key: str, form: Callable[[object], object], entry: object
    ) -> None:
        started = time.process_time()
        assert refusal(form([entry] * 4_000_000)) == f"{key}: more than 250,000 entries"
        assert time.process_time() - started < 2

    def test_nor_of_a_mapping(self) -> None:
        domains = {f"-{index}": 1 for index in range(MAX_ENTRIES + 1)}
        assert refusal({"allow": domains}) == "allow: more than 250,000 entries"

    @pytest.mark.parametrize(
        "written",
        [
            {"mode": "custom", "allowed_domains": ["-"] * MAX_ENTRIES},
            {"mode": "custom", "denied_cidrs": ["x/33"] * MAX_ENTRIES},
            {"mode": "custom", "denied_cidrs": [1] * MAX_ENTRIES},
            {"mode": "custum", "allowed_domains": [1] * MAX_ENTRIES, "allowed_cidrs": [1] * MAX_ENTRIES},
            {"mode": "deny-all", "allowed_domains": ["-"] * MAX_ENTRIES, "denied_cidrs": ["-"] * MAX_ENTRIES},
            {
                "allow": ["-"] * MAX_ENTRIES,
                "subnets": {"allow": [1] * MAX_ENTRIES, "deny": [1] * MAX_ENTRIES},
            },
            {"allow": {f"-{index}": 1 for index in range(MAX_ENTRIES)}},
            {"allow": {f"h{index}.test": [1] for index in range(MAX_ENTRIES)}},
            {"allow": {index: [1] for index in range(MAX_ENTRIES)}},
        ],
        ids=lambda written: ",".join(written),
    )
    def test_of_wrong_entries_only_so_many_are_judged(self, written: object) -> None:
        started = time.process_time()
        with pytest.raises(PolicyError) as caught:
            NetworkPolicy.parse(written)
        assert time.process_time() - started < 2
        assert len(caught.value.issues) == MAX_ISSUES + 1
        assert caught.value.issues[-1] == PolicyIssue((), MORE_ISSUES)
        assert MORE_ISSUES not in [issue.message for issue in caught.value.issues[:-1]]

    def test_as_many_issues_as_one_error_lists_are_all(self) -> None:
        with pytest.raises(PolicyError) as caught:
            NetworkPolicy.parse({"mode": "custom", "allowed_domains": ["ok.test", "-"] * MAX_ISSUES})
        assert [issue.location for issue in caught.value.issues] == [
            ("allowed_domains", index) for index in range(1, 2 * MAX_ISSUES, 2)
        ]

    @pytest.mark.parametrize(
        ("form", "where"),
        [
            (lambda keys: keys, ""),
            (lambda keys: {"mode": "custom"} | keys, ""),
            (lambda keys: {"allow": []} | keys, ""),
            (lambda keys: {"subnets": keys}, "subnets: "),
        ],
    )
    def test_a_mapping_of_many_keys_is_no_policy(
        self, form: Callable[[dict[str, int]], object], where: str
    ) -> None:
        many = {f"mod{index}": 1 for index in range(700_000)}
        assert refusal(form(many)) == f"{where}more than 20 keys, most of them unknown"
        few = {f"mod{index}": 1 for index in range(MAX_KEYS - 2)}
        assert refusal(form(few)).count("unknown key") == len(few)

    @pytest.mark.parametrize("text", ["a.", "1.", ":", "*a", ":1", "http://", "ü", "xn--a."])
    def test_an_entry_that_is_far_too_long_is_not_looked_at(self, text: str) -> None:
        entry = text * (8 * 2**20 // len(text.encode()))
        whole = "longer than 2,048 characters"
        started = time.process_time()
        assert whole in refusal({"mode": "custom", "allowed_domains": [entry]})
        assert whole in refusal({"mode": "custom", "denied_cidrs": [entry]})
        assert whole in refusal({"allow": {entry: []}})
        assert time.process_time() - started < 2
        assert whole not in refusal({"mode": "custom", "denied_cidrs": [entry[:MAX_LENGTH]]})


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
