"""How long a large policy takes to load, and a judgement to make: ``python -m benchmarks.policy``."""

import random
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from rich.console import Console
from rich.table import Table

from box_policy.policy.addresses import special_range
from box_policy.policy.document import parse_document
from box_policy.policy.domains import name_from_wire
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

ENTRIES = 100_000
ROUNDS = 5


def _policy() -> dict[str, object]:
    domains = [f"host{n}.zone{n % 97}.example" if n % 2 else f"*.zone{n}.example" for n in range(ENTRIES)]
    v4 = [f"{11 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/24" for n in range(ENTRIES // 2)]
    v6 = [f"2a0f:{n:x}::/48" for n in range(ENTRIES // 2)]
    return {"mode": "custom", "allowed_domains": domains, "allowed_cidrs": v4 + v6}


def _document(policy: dict[str, object]) -> str:
    lines = [f"mode: {policy['mode']}"]
    for key in ("allowed_domains", "allowed_cidrs"):
        entries = policy[key]
        assert isinstance(entries, list)
        lines += [f"{key}:", *(f'  - "{entry}"' for entry in entries)]
    return "\n".join(lines)


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds: what the code costs, not what else the machine does."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print the figures."""
    written = _policy()
    text = _document(written)
    parsed = NetworkPolicy.parse(written)
    policy = CompiledPolicy(parsed)
    table = Table("", "best", title=f"{ENTRIES:,} domains, {ENTRIES:,} CIDRs")
    table.columns[1].justify = "right"

    def load(what: str, run: Callable[[], object]) -> None:
        table.add_row(what, f"{_best(run) * 1000:.0f} ms")

    load("YAML text to policy", lambda: parse_document(text, name="benchmark"))
    load("mapping to policy", lambda: NetworkPolicy.parse(written))
    load("policy to compiled policy", lambda: CompiledPolicy(parsed))

    choose = random.Random(1)
    listed = [f"a.b.zone{choose.randrange(0, ENTRIES, 2)}.example" for _ in range(10_000)]
    unlisted = [f"www.site{n}.test" for n in range(10_000)]
    v4 = [IPv4Address((11 << 24) + choose.randrange(1 << 25)) for _ in range(10_000)]
    v6 = [IPv6Address((0x2A0F << 112) + (choose.randrange(1 << 17) << 96)) for _ in range(10_000)]
    wire = [f"WWW.site{n}.Example".encode() for n in range(10_000)]

    def each[T](what: str, judge: Callable[[T], object], cases: list[T]) -> None:
        def run() -> None:
            for case in cases:
                judge(case)

        table.add_row(what, f"{_best(run) / len(cases) * 1e6:.2f} µs")

    each("name_from_wire", name_from_wire, wire)
    each("judge_name, allowed", policy.judge_name, listed)
    each("judge_name, denied", policy.judge_name, unlisted)
    each("special_range, IPv4", special_range, v4)
    each("special_range, IPv6", special_range, v6)
    each("judge_address, IPv4", policy.judge_address, v4)
    each("judge_address, IPv6", policy.judge_address, v6)
    each("judge_resolution, one IPv4", lambda name: policy.judge_resolution(name, v4[:1]), listed)
    Console().print(table)


if __name__ == "__main__":
    main()
