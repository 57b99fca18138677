"""``box-policy explain``."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from box_policy.cli.explain import explain
from box_policy.policy.targets import InvalidTarget, parse_target

app = typer.Typer()
app.command("explain")(explain)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "mode: custom\nallowed_domains: [x.test, '*.y.test']\n"
        "allowed_cidrs: [51.81.0.0/16, '2a0f:5100::/32']\ndenied_cidrs: [51.81.66.0/24]\n"
    )
    return str(path)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the resolver answers; a name that isn't in it fails."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(name: str, *_: object, **__: object) -> list[Any]:
        if name not in known:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[name]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def verdicts(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("target", "allowed", "reason", "rule"),
    [
        ("https://x.test", True, "name_allowed", "allowed_domains: x.test"),
        ("https://X.test.:8443/path?q#f", True, "name_allowed", "allowed_domains: x.test"),
        ("http://a.b.y.test/", True, "name_allowed", "allowed_domains: *.y.test"),
        ("HTTPS://y.test", False, "name_not_allowed", "allowed_domains: no entry matches"),
        ("x.test:5432", True, "name_allowed", "allowed_domains: x.test"),
        ("z.test:22", False, "name_not_allowed", "allowed_domains: no entry matches"),
        ("51.81.10.10:22", True, "cidr_allowed", "allowed_cidrs: 51.81.0.0/16"),
        ("https://51.81.10.10", True, "cidr_allowed", "allowed_cidrs: 51.81.0.0/16"),
        ("51.81.66.66:22", False, "cidr_denied", "denied_cidrs: 51.81.66.0/24"),
        ("8.8.8.8:53", False, "address_not_allowed", "allowed_cidrs: no entry matches"),
        ("[2a0f:5100::10]:22", True, "cidr_allowed", "allowed_cidrs: 2a0f:5100::/32"),
        ("http://[::1]/", False, "special_address", "special: Loopback Address (RFC 4291)"),
        ("10.0.0.1:80", False, "special_address", "special: Private-Use (RFC 1918)"),
        ("dns:x.test", True, "name_allowed", "allowed_domains: x.test"),
        ("dns:z.test", False, "name_not_allowed", "allowed_domains: no entry matches"),
    ],
)
def test_each_kind_of_target(policy: str, target: str, allowed: bool, reason: str, rule: str) -> None:
    code, (line,) = verdicts(policy, target)
    assert code == (0 if allowed else 1)
    assert (line["target"], line["allowed"], line["reason"], line["rule"]) == (target, allowed, reason, rule)


def test_one_denied_target_is_enough_for_1(policy: str) -> None:
    code, lines = verdicts(policy, "https://x.test", "https://z.test")
    assert code == 1
    assert [line["allowed"] for line in lines] == [True, False]


def test_names_are_not_resolved_unless_asked(policy: str, names: dict[str, list[str]]) -> None:
    names["x.test"] = ["127.0.0.1"]
    assert verdicts(policy, "https://x.test")[0] == 0
    code, (line,) = verdicts(policy, "--resolve", "https://x.test")
    assert code == 1
    assert (line["reason"], line["rule"]) == ("resolved_special", "special: Loopback (RFC 1122)")


def test_resolved_addresses_are_judged(policy: str, names: dict[str, list[str]]) -> None:
    names["x.test"] = ["51.81.66.66", "51.81.10.10"]
    for target in ("https://x.test", "dns:x.test"):
        code, (line,) = verdicts(policy, "--resolve", target)
        assert code == 0
        assert (line["addresses"], line["dropped"]) == (["51.81.10.10"], ["51.81.66.66"])
    _, (line,) = verdicts(policy, "--resolve", "https://a.y.test")
    assert line["reason"] == "resolution_failed"


def test_a_denied_name_is_never_asked_for(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked"))
    for target in ("https://z.test", "dns:z.test"):
        _, (line,) = verdicts(policy, "--resolve", target)
        assert line["reason"] == "name_not_allowed"


def test_the_operators_private_ranges(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("allow-all")
    assert verdicts(str(path), "10.0.0.1:80")[0] == 1
    arguments = ("--private-range", "10.0.0.0/8", "--private-range", "fd00::/8")
    assert verdicts(str(path), *arguments, "10.0.0.1:80", "[fd00::1]:80")[0] == 0
    result = CliRunner().invoke(app, [str(path), "10.0.0.1:80", "--private-range", "10.0.0.1/8"])
    assert result.exit_code == 2
    assert result.stderr == 'explain: "10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant\n'


def test_without_a_terminal_a_line_a_target(policy: str) -> None:
    result = CliRunner().invoke(app, [policy, "https://x.test", "z.test:80"])
    assert result.stdout.splitlines() == [
        "allow\thttps://x.test\tname_allowed\tallowed_domains: x.test",
        "deny\tz.test:80\tname_not_allowed\tallowed_domains: no entry matches",
    ]


def test_on_a_terminal_a_table(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, [policy, "https://x.test", "[2a0f:5100::10]:22"])
    for cell in (
        "verdict",
        "https://x.test",
        "allowed_domains: x.test",
        "[2a0f:5100::10]:22",
        "2a0f:5100::10",
    ):
        assert cell in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.test", '"x.test" has no port; write https://x.test, x.test:443 or dns:x.test'),
        ("", "has no port"),
        ("ftp://x.test", '"ftp://x.test" is no target; write https://host'),
        ("https://u:p@x.test", "is no target"),
        ("https://x.test:0", "ports are 1 to 65535"),
        ("x.test:65536", "ports are 1 to 65535"),
        ("x.test:-1", "is no target"),
        ("x.test:https", "is no target"),
        ("https://", "a blank entry is not a host name"),
        ("https://a b", "cannot be part of a host name"),
        ("dns:", "a blank entry is not a host name"),
        ("dns:10.0.0.1", "is an IP address, not a host name"),
        ("[::g]:80", '"::g" is not an IPv6 address'),
        ("[1.2.3.4]:80", "is not an IPv6 address"),
        ("2001:db8::1:80", "is no target"),
        ("*.x.test:443", '"*" cannot be part of a host name'),
        ("010.0.0.1:80", "is read as an address"),
    ],
)
def test_what_is_no_target_is_said_clearly(text: str, message: str) -> None:
    with pytest.raises(InvalidTarget) as caught:
        parse_target(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_usage_and_bad_policies_are_2(policy: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [policy, "x.test"])
    assert result.exit_code == 2
    assert result.stderr.startswith('explain: "x.test" has no port')
    assert CliRunner().invoke(app, [policy]).exit_code == 2
    bad = tmp_path / "bad.yaml"
    bad.write_text("mode: open\n")
    result = CliRunner().invoke(app, [str(bad), "https://x.test"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{bad}:1:1: mode: ")
