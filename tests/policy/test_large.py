"""Policies of a hundred thousand entries: neither they nor the names held against them cost much."""

import time
from ipaddress import ip_address

from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

NAMES = [f"h{number}.a-b-c-d.x{number % 1000}.test" for number in range(50_000)]
WILDCARDS = [f"*.w{number}.a-b-c-d.test" for number in range(50_000)]
CIDRS = [f"51.{number >> 16}.{number >> 8 & 255}.{number & 255}/32" for number in range(0, 200_000, 2)]


def test_a_large_policy_is_read_and_held_against_names_in_no_time() -> None:
    started = time.process_time()
    document = {"mode": "custom", "allowed_domains": NAMES + WILDCARDS, "allowed_cidrs": CIDRS}
    policy = CompiledPolicy(NetworkPolicy.parse(document))
    assert time.process_time() - started < 5, "seconds of CPU"
    labels = ".".join(["a-" * 30 + "a"] * 3)
    expected = {
        "h5.a-b-c-d.x5.test": True,
        f"{labels}.w77.a-b-c-d.test": True,
        f"{labels}.x1.test": False,
        ".".join("a" * 100) + ".nope.test": False,
    }
    started = time.process_time()
    for number in range(1000):
        name = [*expected][number % len(expected)]
        assert policy.judge_name(name).allowed is expected[name]
        address = ip_address(f"51.0.{number % 256}.{number % 256}")
        assert policy.judge_address(address).allowed is (number % 2 == 0)
    assert time.process_time() - started < 0.5
