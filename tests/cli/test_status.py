"""``box-policy status``."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from box_policy.cli.main import app
from box_policy.cli.status import _span
from box_policy.control.http.address import parse_control_address
from tests.cli.conftest import FileStatus, Gate

TOKEN = "a-token-of-this-test"


def status(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["status", *arguments], env=env)


def test_boxes_files_and_what_is_wrong_with_them(gate: Gate) -> None:
    errors = "web.yaml:1:1: mode: first\nweb.yaml:2:1: second\x1b[2J"
    gate.files = [
        FileStatus("/etc/p/default.yaml"),
        FileStatus("/etc/p/web.yaml", "refused", "web", errors),
    ]
    gate.put({"mode": "custom", "allowed_domains": ["x.test"]})
    result = status("--control", str(gate))
    assert (result.exit_code, result.stderr) == (0, "")
    first, _, *lines = result.stdout.splitlines()
    assert first.startswith("box-policy 1.2.3, ready, up 0 s since ")
    words = [line.split() for line in lines]
    assert words[0] == ["box", "policy", "generation", "from", "since", "connections", "pending"]
    assert words[1][:4] + words[1][5:] == ["default", "allowlist", "2", "/etc/policy.yaml", "3", "1"]
    assert words[4][:3] == ["/etc/p/default.yaml", "ok", "-"]
    assert words[5][:3] == ["/etc/p/web.yaml", "refused", "web"]
    assert lines[6:] == [
        "",
        "/etc/p/web.yaml is refused:",
        "  web.yaml:1:1: mode: first",
        "  web.yaml:2:1: second\\x1b[2J",
        "",
        "records lost: 0, streams: 0",
    ]


def test_the_answer_as_json(gate: Gate) -> None:
    shown = json.loads(status("--json", "--control", str(gate)).stdout)
    assert (shown["version"], shown["ready"], shown["sources"]) == ("1.2.3", True, [])
    assert [box["id"] for box in shown["boxes"]] == ["default"]


def test_readiness_for_probes(gate: Gate, tmp_path: Path) -> None:
    assert (status("--ready", "--control", str(gate)).exit_code, status("--ready").output) == (0, "")
    gate.is_ready = False
    for address in (str(gate), f"{tmp_path}/none.sock"):
        result = status("--ready", "--control", address)
        assert (result.exit_code, result.output) == (1, "")
    assert "starting" in status("--control", str(gate)).stdout


def test_the_address_and_the_token_from_the_environment(tmp_path: Path) -> None:
    gate = Gate(parse_control_address("127.0.0.1:0"), TOKEN)
    gate.start()
    try:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        env = {"BOX_POLICY_CONTROL": str(gate), "BOX_POLICY_CONTROL_TOKEN": TOKEN}
        assert status(env=env).exit_code == 0
        env["BOX_POLICY_CONTROL_TOKEN"] = ""
        assert status("--token-file", str(file), env=env).exit_code == 0
        without = status(env=env)
        assert (without.exit_code, without.stderr) == (
            1,
            f"box-policy: {gate} wants a token: --token-file FILE, or BOX_POLICY_CONTROL_TOKEN\n",
        )
        env["BOX_POLICY_CONTROL_TOKEN"] = "another-token-of-this-test"
        wrong = status(env=env)
        assert (wrong.exit_code, wrong.stderr) == (1, f"box-policy: {gate} refuses this token\n")
    finally:
        gate.close()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (61, "1 min 1 s"),
        (3_600, "1 h 0 min"),
        (200_000, "2 d 7 h"),
        (-1, "?"),
        (1e400, "?"),
        ("", "?"),
    ],
)
def test_a_time_in_its_two_largest_units(seconds: object, shown: str) -> None:
    assert _span(seconds) == shown
