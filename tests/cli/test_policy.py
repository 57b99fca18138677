"""``box-policy policy``: get, set and watch, with a real endpoint."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from box_policy.audit.records import Outcome, PolicyRecord
from box_policy.cli.main import app
from tests.cli.conftest import Gate, Running

type Start = Callable[..., Running]

CUSTOM = {"mode": "custom", "allowed_domains": ["x.test", "*.y.test"], "denied_cidrs": ["51.81.0.0/16"]}


def policy(gate: Gate, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["policy", *arguments, "--control", str(gate)], input=stdin)


def in_force(gate: Gate, box: str = "default") -> tuple[int, dict[str, object]]:
    found = gate.store.get(box)
    return found.generation, found.policy.canonical()


@pytest.fixture
def boxes(gate: Gate) -> Gate:
    """The gate with the boxes ``a`` and ``b``."""
    gate.stop()
    gate.boxes = ["a", "b"]
    gate.start()
    return gate


class TestGet:
    def test_json_yaml_and_the_generation(self, gate: Gate) -> None:
        gate.put(CUSTOM)
        assert json.loads(policy(gate, "get").stdout) == CUSTOM
        assert policy(gate, "get", "--json").stdout == policy(gate, "get").stdout
        assert policy(gate, "get", "--yaml").stdout.startswith("mode: custom\n")
        assert yaml.safe_load(policy(gate, "get", "--yaml").stdout) == CUSTOM
        assert policy(gate, "get", "--generation").stdout == "2\n"
        assert policy(gate, "get", "--generation", "--yaml").exit_code == 2

    def test_the_only_box_needs_no_name(self, gate: Gate) -> None:
        gate.stop()
        gate.boxes = ["web"]
        gate.start()
        assert json.loads(policy(gate, "get").stdout) == {"mode": "deny-all"}

    def test_nor_does_default(self, gate: Gate) -> None:
        gate.stop()
        gate.boxes = ["default", "web"]
        gate.start()
        gate.put("allow-all", "default")
        assert json.loads(policy(gate, "get").stdout) == {"mode": "allow-all"}
        assert json.loads(policy(gate, "get", "-b", "web").stdout) == {"mode": "deny-all"}

    @pytest.mark.parametrize("command", [["get"], ["set", "--deny-all"], ["watch"]])
    def test_but_any_other_does(self, boxes: Gate, command: list[str]) -> None:
        result = policy(boxes, *command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "box-policy: which box? Name one with --box: the boxes are a, b\n"
        for wrong in ("c", "..", "a/../b", "\x1b[2J"):
            result = policy(boxes, *command, "--box", wrong)
            shown = wrong.replace("\x1b", "\\x1b")
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr == f"box-policy: there is no box {shown}: the boxes are a, b\n"

    def test_a_gate_without_boxes(self, gate: Gate) -> None:
        gate.stop()
        gate.boxes = []
        gate.start()
        result = policy(gate, "get")
        assert (result.exit_code, result.stderr) == (
            2,
            "box-policy: which box? Name one with --box: the gate has none\n",
        )


class TestSet:
    def test_from_a_file(self, gate: Gate, tmp_path: Path) -> None:
        file = tmp_path / "policy.yaml"
        file.write_text("mode: custom\nallowedDomains: [X.test., '*.y.test']\ndenied_cidrs: [51.81.0.0/16]\n")
        result = policy(gate, "set", str(file))
        assert (result.exit_code, result.stdout) == (0, "generation 2 is in force for default\n")
        assert in_force(gate) == (2, CUSTOM)

    def test_from_standard_input(self, boxes: Gate) -> None:
        result = policy(boxes, "set", "-", "--box", "b", stdin='{"mode": "allow-all"}')
        assert (result.exit_code, result.stdout) == (0, "generation 2 is in force for b\n")
        assert in_force(boxes, "b") == (2, {"mode": "allow-all"})
        assert in_force(boxes, "a") == (1, {"mode": "deny-all"})

    def test_from_options(self, gate: Gate) -> None:
        assert policy(gate, "set", "--allow-all").exit_code == 0
        assert in_force(gate) == (2, {"mode": "allow-all"})
        assert policy(gate, "set", "--deny-all").exit_code == 0
        assert in_force(gate) == (3, {"mode": "deny-all"})
        options = ["--allow", "x.test", "--allow", "*.Y.test", "--deny-cidr", "51.81.0.0/16"]
        assert policy(gate, "set", *options).exit_code == 0
        assert in_force(gate) == (4, CUSTOM)
        assert policy(gate, "set", "--allow-cidr", "8.8.8.8").exit_code == 0
        assert in_force(gate) == (5, {"mode": "custom", "allowed_cidrs": ["8.8.8.8/32"]})

    def test_the_same_again_changes_nothing(self, gate: Gate) -> None:
        for _ in range(2):
            assert policy(gate, "set", "--allow-all").stdout == "generation 2 is in force for default\n"

    @pytest.mark.parametrize(
        "options", ["", "f --deny-all", "--allow-all --deny-all", "--deny-all --allow x.test"]
    )
    def test_one_policy_is_needed(self, gate: Gate, options: str) -> None:
        result = policy(gate, "set", *options.split())
        assert (result.exit_code, result.stdout, "FILE, --allow-all" in result.stderr) == (2, "", True)
        assert in_force(gate) == (1, {"mode": "deny-all"})

    def test_a_wrong_policy_is_not_even_sent(self, tmp_path: Path) -> None:
        nowhere = ["policy", "set", "--control", f"{tmp_path}/none.sock"]
        file = tmp_path / "bad.yaml"
        file.write_text("mode: custom\nallowed_domains:\n  - '*.'\ndenied_cidrs: [10.0.0.1/8]\n")
        result = CliRunner().invoke(app, [*nowhere, str(file)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [
            f'{file}:3:5: allowed_domains[0]: "*." names no domain; write "*.example.com"',
            f'{file}:4:16: denied_cidrs[0]: "10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant',
        ]
        result = CliRunner().invoke(app, [*nowhere, "--allow", "*.", "--deny-cidr", "10.0.0.1/8"])
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            'box-policy: --allow: "*." names no domain; write "*.example.com"',
            'box-policy: --deny-cidr: "10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant',
        ]

    def test_only_if_the_generation_is_the_one_that_was_read(self, gate: Gate) -> None:
        assert policy(gate, "set", "--allow-all", "--if-match", "1").exit_code == 0
        result = policy(gate, "set", "--deny-all", "--if-match", "1")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "box-policy: --if-match 1: the policy in force is generation 2; nothing has changed\n"
        )
        assert in_force(gate) == (2, {"mode": "allow-all"})

    def test_a_large_policy(self, gate: Gate, tmp_path: Path) -> None:
        names = [f"{number}.x.test" for number in range(20_000)]
        file = tmp_path / "large.json"
        file.write_text(json.dumps({"mode": "custom", "allowed_domains": names}))
        assert policy(gate, "set", str(file)).exit_code == 0
        assert json.loads(policy(gate, "get").stdout)["allowed_domains"] == names


class TestWatch:
    def test_the_policy_now_and_each_change(self, gate: Gate, start: Start) -> None:
        command = start("policy", "watch")
        heading = command.line()
        assert heading.startswith("# ")
        assert heading.endswith(" default generation 1 from /etc/policy.yaml")
        assert [command.line(), command.line()] == ["mode: deny-all", ""]
        gate.put({"mode": "custom", "allowed_domains": ["x.test"]})
        assert command.line().endswith(" default generation 2 from /etc/policy.yaml")
        assert [command.line() for _ in range(4)] == ["mode: custom", "allowed_domains:", "- x.test", ""]
        assert command.end() == (-signal.SIGINT, [], [])

    def test_what_was_refused(self, gate: Gate, start: Start) -> None:
        command = start("policy", "watch")
        for _ in range(3):
            command.line()
        refused = PolicyRecord(
            box="default", generation=1, outcome=Outcome.REFUSED, source="/p", detail="p:1:1: no"
        )
        directory = PolicyRecord(box="", generation=0, outcome=Outcome.MISSING, source="/d", detail="d: gone")
        other = PolicyRecord(box="web", generation=7, outcome=Outcome.REFUSED, source="/w", detail="w: no")
        gate.tell(other, refused, directory)
        assert command.line().endswith(" policy default refused, generation 1 stays: p:1:1: no")
        assert command.line() == ""
        assert command.line().endswith(" policy missing: d: gone")

    def test_as_json(self, gate: Gate, start: Start) -> None:
        command = start("policy", "watch", "--json", "--box", "default")
        first = json.loads(command.line())
        assert first.pop("time")
        assert first == {
            "event": "policy",
            "box": "default",
            "generation": 1,
            "outcome": "accepted",
            "source": "/etc/policy.yaml",
            "policy": {"mode": "deny-all"},
        }
        refused = PolicyRecord(
            box="default", generation=1, outcome=Outcome.REFUSED, source="/p", detail="p:1:1: no"
        )
        gate.tell(refused)
        assert command.line() == refused.as_json()
        gate.put(CUSTOM)
        second = json.loads(command.line())
        assert (second["generation"], second["policy"]) == (2, CUSTOM)

    def test_a_gate_that_restarts(self, gate: Gate, start: Start) -> None:
        """Its generations begin anew."""
        gate.put(CUSTOM)
        command = start("policy", "watch", "--json")
        assert json.loads(command.line())["generation"] == 2
        gate.stop()
        assert command.said() == "box-policy: the gate has ended the stream; trying again"
        gate.start()
        shown = json.loads(command.line())
        assert (shown["generation"], shown["policy"]) == (1, {"mode": "deny-all"})
        gate.put(CUSTOM)
        shown = json.loads(command.line())
        assert (shown["generation"], shown["policy"]) == (2, CUSTOM)

    def test_a_broken_connection_shows_nothing_twice(self, gate: Gate, start: Start) -> None:
        command = start("policy", "watch", "--json")
        assert json.loads(command.line())["generation"] == 1
        refused = PolicyRecord(box="default", generation=1, outcome=Outcome.REFUSED, source="/p", detail="no")
        for change in ("none", "refused", "accepted"):
            gate.wait_for_read()
            gate.cut()
            assert command.said().endswith("; trying again")
            if change == "refused":
                gate.tell(refused)
            elif change == "accepted":
                gate.put(CUSTOM)
            gate.listen()
            assert command.said() == "box-policy: connected again"
        assert command.line() == refused.as_json()
        assert json.loads(command.line())["generation"] == 2
        assert command.end() == (-signal.SIGINT, [], [])

    def test_a_box_that_goes_and_comes_again(self, gate: Gate, start: Start) -> None:
        command = start("policy", "watch", "--json")
        command.line()
        gate.stop()
        gate.boxes = []
        gate.start()
        said = [command.said() for _ in range(4)]
        assert "box-policy: the gate has no box default now" in said
        gate.create("default", "allow-all")
        assert json.loads(command.line())["policy"] == {"mode": "allow-all"}
