"""The policy document: one documented error, one canonical form, and verdicts for whatever is asked of it."""

import json
import re
import time
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Final

import yaml

from box_policy.policy.addresses import Address, AddressSet, embedded_ipv4
from box_policy.policy.document import DocumentError, parse_document
from box_policy.policy.domains import name_from_wire
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.policy.rules import CompiledPolicy, Operator
from tests.fuzz.target import Target

_MOST_SECONDS: Final = 2.0
"""Processor time for one input. The longest takes milliseconds."""
_LONGEST_LINE: Final = 1000
_LINE_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def one(data: bytes) -> None:
    """Read a document, and the same values as an API would get them; judge with what came out."""
    started = time.process_time()
    written = _parsed(data)
    handed = _handed(data)
    if written is not None:
        check_canonical(written)
        check_verdicts(written, Random(data))
    if written is not None and handed is not None:
        assert handed == written, "JSON in a file and by the API mean different things"
    assert time.process_time() - started < _MOST_SECONDS, "slow"


def _parsed(data: bytes) -> NetworkPolicy | None:
    try:
        return parse_document(data, name="policy.yaml")
    except DocumentError as error:
        check_error(error, data)
        return None


def _handed(data: bytes) -> NetworkPolicy | None:
    """The policy in the values of a JSON body."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    try:
        return NetworkPolicy.parse(value)
    except PolicyError as error:
        assert error.issues
        check_text(str(error))
        return None


def check_error(error: DocumentError, data: bytes) -> None:
    """Every issue has a place in the document, and a message that a terminal can show."""
    assert error.issues
    lines = len(_LINE_BREAK.split(data.decode("utf-8", "replace")))
    for issue in error.issues:
        # To libyaml the last line has an end, and the end of the document a line.
        assert 1 <= issue.line <= lines + 1
        assert 1 <= issue.column <= len(data) + 1
    check_text(str(error))


def check_text(text: str) -> None:
    text.encode()
    for line in text.split("\n"):
        assert line.isprintable(), "a terminal would obey it"
        assert len(line) <= _LONGEST_LINE, "it shows more than the start of a stranger's text"


def check_canonical(policy: NetworkPolicy) -> None:
    """Written and read again, in either language, a policy stays what it was."""
    canonical = policy.canonical()
    assert NetworkPolicy.parse(canonical) == policy
    for text in (json.dumps(canonical), yaml.safe_dump(canonical)):
        again = parse_document(text, name="again")
        assert again == policy
        assert again.canonical() == canonical
    for pattern in policy.allowed_domains or ():
        name = pattern.removeprefix("*.")
        assert name_from_wire(name.encode("ascii")) == name, "a name that no box could send"


def check_verdicts(policy: NetworkPolicy, random: Random) -> None:
    """Whatever is asked, there is a verdict, and the lists decide it."""
    private_ranges = AddressSet(random.choice(((), ("64:ff9b::/96", "2002::/16", "10.0.0.0/8"))))
    judge = CompiledPolicy(policy, Operator(private_ranges, resolve_for_cidrs=random.random() < 0.5))
    domains, denied = policy.allowed_domains or (), AddressSet(policy.denied_cidrs or ())
    names = ["allowed.test", "", "\0", ".".join("a" * 100), *_names_near(domains, random)]
    addresses = [*_addresses_near([*(policy.allowed_cidrs or ()), *(policy.denied_cidrs or ())], random)]
    for address in addresses:
        verdict = judge.judge_address(address)
        assert verdict.addresses == ((address,) if verdict.allowed else ())
        assert not (verdict.allowed and _matches(denied, address)), "denied_cidrs do not hold"
    for name in names:
        allowed = judge.judge_name(name).allowed
        if policy.kind != "allowlist":
            assert allowed == (policy.kind != "deny-all")
        elif name_from_wire(name.encode()) == name:
            assert allowed == any(
                name == entry or (entry.startswith("*.") and name.endswith(entry[1:])) for entry in domains
            )
        judge.judge_question(name, random.choice((1, 28, 65, 65535)))
        for verdict in (judge.judge_resolution(name, addresses), judge.judge_answer(name, addresses)):
            assert verdict.allowed == bool(verdict.addresses)
            assert not any(_matches(denied, address) for address in verdict.addresses)


def _matches(ranges: AddressSet, address: Address) -> bool:
    inner = embedded_ipv4(address) if isinstance(address, IPv6Address) else ()
    return any(ranges.match(each) is not None for each in (address, *inner))


def _names_near(patterns: tuple[str, ...], random: Random) -> list[str]:
    near = []
    for pattern in patterns[:4]:
        name = pattern.removeprefix("*.")
        near += [name, "a." + name, "a" + name, name[random.randrange(len(name)) :], "." + name]
    return near


def _addresses_near(entries: list[str], random: Random) -> list[Address]:
    near: list[Address] = [IPv4Address(random.getrandbits(32)), IPv6Address(random.getrandbits(128))]
    for entry in entries[:6]:
        address = entry.partition("/")[0]
        made = IPv6Address(address) if ":" in address else IPv4Address(address)
        near.append(made)
        if isinstance(made, IPv4Address):
            near += [IPv6Address(f"::ffff:{made}"), IPv6Address(f"64:ff9b::{made}")]
            near.append(IPv6Address((0x2002 << 112) | int(made) << 80))
    return near


SEEDS: Final = tuple(
    text.encode()
    for text in (
        "mode: allow-all\n",
        "deny-all",
        '{"mode": "custom", "allowed_domains": ["a.test", "*.wild.test"], "denied_cidrs": ["10.0.0.0/8"]}',
        "mode: custom\nallowedDomains:\n- bücher.test\n- '*.a.test'\nallowedCIDRs: [51.0.0.0/8, '2a0f::/32']",
        '{"allow": {"allowed.test": [], "*": []}, "subnets": {"allow": ["1.2.3.4"], "deny": ["::/0"]}}',
        "allow: ['*.wild.test']\nsubnets:\n  deny: null\n",
        "mode: custom\nallowed_domains:\n  - https://user@a.test:443/path\n  - '*'\n  - 1.5\n  - 10.0.0.1/8",
        "mode: custom\nallowed_cidrs: [10.0.0.1/8, 010.1.1, fe80::1%eth0, '::ffff:1.2.3.4/120', 1.2.3.4/33]",
        "mode: deny-all\nmode: allow-all\n",
        "&a [*a, !!set {x}, <<: y]\n---\nx\n",
        '{"allow": {"a.test": [{"transform": []}]}}',
        "mode: [[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]\n",
        'mode: "\\u2028\\x1b[31m"\n',
        "xn--bcher-kva.example",
        "",
    )
)
DICTIONARY: Final = tuple(
    word.encode()
    for word in (
        "mode: ",
        "custom",
        "allow-all",
        "deny-all",
        "allowed_domains",
        "allowedDomains",
        "allowed_cidrs",
        "allowedCIDRs",
        "denied_cidrs",
        "allow",
        "subnets",
        "deny",
        "*.",
        "xn--",
        "::ffff:",
        "/0",
        "/128",
        "0x7f.1",
        "null",
        "~",
        "- ",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        ": ",
        ", ",
        "|\n ",
        "\u3002",
        "\u00df",
        "\u200d",
        "\u0130",
        "\ufeff",
        "\ud7ff",
        "\u2028",
        "\x1b",
    )
)

TARGET: Final = Target(one, SEEDS, DICTIONARY, max_length=2048)
