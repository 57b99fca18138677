"""The filter in Docker's form denies what the rules deny, and nothing that they don't."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.sandbox.docker.seccomp_profile import profile
from box_policy.sandbox.namespaces import seccomp
from box_policy.sandbox.namespaces.seccomp import AS_IF_DONE, Condition

PROFILE = json.loads(profile())
RULES = seccomp.box_rules()
CALLS = sorted({rule.call for rule in RULES} - {"prlimit64", "setrlimit"})
"""Those two only pretend: that takes the filter that pid 1 installs."""

numbers = st.one_of(
    st.integers(0, 300),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.sampled_from([0o4755, 0o100, 0o20200000, seccomp.TIOCSTI, seccomp.TIOCLINUX, seccomp.CLONE_NEWUSER]),
)


def denied_by_rules(call: str, arguments: list[int]) -> bool:
    def holds(condition: Condition) -> bool:
        masked = arguments[condition.argument] & condition.mask
        return masked == condition.value if condition.value is not None else masked != 0

    for rule in RULES:
        if rule.call == call and all(map(holds, rule.conditions)):
            return rule.error not in (0, AS_IF_DONE)
    return False


def denied_by_profile(call: str, arguments: list[int]) -> bool:
    def holds(condition: dict[str, Any]) -> bool:
        assert condition["op"] == "SCMP_CMP_MASKED_EQ"
        return bool(arguments[condition["index"]] & condition["value"] == condition["valueTwo"])

    return any(entry["names"] == [call] and all(map(holds, entry["args"])) for entry in PROFILE["syscalls"])


@pytest.mark.parametrize("call", CALLS)
@given(arguments=st.lists(numbers, min_size=6, max_size=6))
def test_it_is_the_same_filter(call: str, arguments: list[int]) -> None:
    assert denied_by_profile(call, arguments) == denied_by_rules(call, arguments)


@given(family=st.sampled_from([1, 2, 10, 16]), kind=st.integers(0, 0x80810), protocol=st.integers(0, 300))
def test_sockets(family: int, kind: int, protocol: int) -> None:
    arguments = [family, kind, protocol, 0, 0, 0]
    assert denied_by_profile("socket", arguments) == denied_by_rules("socket", arguments)


def test_no_entry_has_two_conditions_on_one_argument() -> None:
    # The engine would take either for enough.
    for entry in PROFILE["syscalls"]:
        indices = [condition["index"] for condition in entry["args"]]
        assert len(indices) == len(set(indices))
        assert entry["action"] == "SCMP_ACT_ERRNO"
        assert entry["errnoRet"] > 0
    assert PROFILE["defaultAction"] == "SCMP_ACT_ALLOW"
    assert len(PROFILE["syscalls"]) < 700
