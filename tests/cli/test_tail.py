"""``box-policy tail`` with a real endpoint, and as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from box_policy.audit.records import Event, Outcome, PolicyRecord, Protocol, Record
from box_policy.cli.main import app
from box_policy.cli.tail import readable
from box_policy.policy.reasons import Reason
from tests.cli.conftest import TIMEOUT, Gate, Running

type Start = Callable[..., Running]


def decision(name: str | None, *, allowed: bool = False, **fields: object) -> Record:
    known: dict[str, object] = {
        "event": Event.DECISION,
        "connection": 1,
        "box": "default",
        "generation": 1,
        "protocol": Protocol.TLS,
        "allowed": allowed,
        "reason": Reason.NAME_ALLOWED if allowed else Reason.NAME_NOT_ALLOWED,
        "name": name,
        "claimed_port": 443,
    }
    return Record(**(known | fields))  # type: ignore[arg-type]


def tail(gate: Gate, *arguments: str, color: bool = False) -> Result:
    return CliRunner().invoke(app, ["tail", "--no-follow", "--control", str(gate), *arguments], color=color)


def names(result: Result) -> list[str]:
    return [json.loads(line).get("name") for line in result.stdout.splitlines()]


class TestALine:
    @pytest.mark.parametrize(
        ("record", "line"),
        [
            (
                decision("evil.test", rule="allowed_domains: no entry matches"),
                "deny  default tls evil.test:443 (allowed_domains: no entry matches) name_not_allowed",
            ),
            (
                decision(
                    "x.test",
                    allowed=True,
                    rule="allowed_domains: x.test",
                    claimed_address="51.81.0.1",
                    dialled="51.81.0.2",
                    mismatch=True,
                ),
                "allow default tls x.test:443 -> 51.81.0.2 (allowed_domains: x.test) claimed 51.81.0.1",
            ),
            (
                decision(None, protocol=Protocol.TCP, claimed_address="2a0f::1"),
                "deny  default tcp [2a0f::1]:443 (name_not_allowed)",
            ),
            (
                decision("x.test", protocol=Protocol.DNS, claimed_port=None),
                "deny  default dns x.test (name_not_allowed)",
            ),
            (
                decision(
                    "x.test",
                    allowed=True,
                    event=Event.END,
                    reason=Reason.CLOSED,
                    bytes_up=999,
                    bytes_down=1_234_567,
                    duration=1.23456,
                ),
                "end   default tls x.test:443 (closed) 999 B up, 1.2 MB down, 1.23 s",
            ),
            (
                decision("x.test", event=Event.END, reason=Reason.POLICY_CHANGED),
                "cut   default tls x.test:443 (policy_changed)",
            ),
            (
                PolicyRecord(
                    box="b", generation=2, outcome=Outcome.ACCEPTED, source="control", detail="deny-all"
                ),
                "policy b generation 2 from control: deny-all",
            ),
            (
                PolicyRecord(box="b", generation=2, outcome=Outcome.REFUSED, source="/f", detail="f:1:1: no"),
                "policy b refused, generation 2 stays: f:1:1: no",
            ),
            (
                PolicyRecord(box="", generation=0, outcome=Outcome.MISSING, source="/d", detail="d: gone"),
                "policy missing: d: gone",
            ),
        ],
    )
    def test_of_each_kind(self, record: Record | PolicyRecord, line: str) -> None:
        assert re.sub("\x1b\\[[0-9]*m", "", readable(json.loads(record.as_json()))) == line

    def test_in_colour_only_on_a_terminal(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        gate.tell(decision("x.test"))
        assert "\x1b[31mdeny \x1b[0m" in tail(gate, color=True).stdout
        assert "\x1b" not in tail(gate).stdout
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in tail(gate, color=True).stdout

    def test_with_the_local_time(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        gate.tell(decision("x.test", time=86_400.0))
        local = subprocess.run(
            ["date", "-d@86400", "+%F %T"], capture_output=True, text=True, check=True
        ).stdout
        assert tail(gate, "-n", "1").stdout.startswith(local.strip() + " deny ")

    @pytest.mark.parametrize(
        "record", [{}, {"event": "end", "bytes_up": 10**400, "duration": None, "name": [1]}]
    )
    def test_of_what_nobody_has_foreseen(self, record: dict[str, object]) -> None:
        assert "?" in readable(record)


class TestChoosing:
    @pytest.fixture(autouse=True)
    def records(self, gate: Gate) -> None:
        gate.tell(
            decision("a.x.test"),
            decision("b.x.test", allowed=True),
            decision("c.test", box="web"),
            decision("c.test", protocol=Protocol.DNS, claimed_port=None),
            decision("d.test", event=Event.END, allowed=True, reason=Reason.CLOSED),
        )

    @pytest.mark.parametrize(
        ("options", "chosen"),
        [
            ("", [None, "a.x.test", "b.x.test", "c.test", "c.test", "d.test"]),
            ("-n 2", ["c.test", "d.test"]),
            ("-n 0", []),
            ("--denied", ["a.x.test", "c.test", "c.test"]),
            ("--allowed", ["b.x.test", "d.test"]),
            ("--box web", ["c.test"]),
            ("--box web --box default -n 1", ["d.test"]),
            ("--protocol dns", ["c.test"]),
            ("--name *.x.test", ["a.x.test", "b.x.test"]),
            ("--name C.test --name d.test", ["c.test", "c.test", "d.test"]),
            ("--event end", ["d.test"]),
            ("--event policy --event end", [None, "d.test"]),
        ],
    )
    def test_records(self, gate: Gate, options: str, chosen: list[str | None]) -> None:
        result = tail(gate, "--json", *options.split())
        assert (result.exit_code, names(result)) == (0, chosen)

    def test_what_cannot_be_chosen(self, gate: Gate) -> None:
        for options in (["--denied", "--allowed"], ["--protocol", "udp"], ["-n", "-1"], ["--name", "\u202e"]):
            result = tail(gate, *options)
            assert (result.exit_code, result.stdout) == (2, "")
            assert "\u202e" not in result.stderr

    def test_json_is_what_the_gate_has_sent(self, gate: Gate) -> None:
        record = decision("e.test", detail='"quoted"\\', rule="r")
        gate.tell(record)
        assert tail(gate, "--json", "-n", "1").stdout == record.as_json() + "\n"


class TestLive:
    def test_each_record_as_it_comes(self, gate: Gate, start: Start) -> None:
        gate.tell(decision("before.test"))
        command = start("tail", "-n", "1")
        assert "deny  default tls before.test:443" in command.line()
        for name in ("one.test", "two.test"):
            gate.tell(decision(name))
            assert f"deny  default tls {name}:443" in command.line()
        assert command.end() == (-signal.SIGINT, [], [])

    def test_a_box_that_is_not_there_yet(self, gate: Gate, start: Start) -> None:
        command = start("tail", "--box", "wed", "--json")
        assert command.said() == "box-policy: there is no box wed yet: the boxes are default"
        gate.tell(decision("x.test"), decision("y.test", box="wed"))
        assert json.loads(command.line())["name"] == "y.test"

    def test_a_box_that_is_not_there_is_named_although_nothing_is_followed(self, gate: Gate) -> None:
        gate.tell(decision("x.test"), decision("gone.test", box="gone"))
        result = tail(gate, "--json", "--box", "wed", "--box", "default", "--event", "decision")
        assert names(result) == ["x.test"]
        assert (result.exit_code, result.stderr) == (
            0,
            "box-policy: there is no box wed: the boxes are default\n",
        )
        gone = tail(gate, "--json", "--box", "gone")
        assert names(gone) == ["gone.test"]
        assert "there is no box gone" in gone.stderr

    @pytest.mark.parametrize("backlog", [0, 5])
    def test_a_broken_connection_loses_and_repeats_nothing(
        self, gate: Gate, start: Start, backlog: int
    ) -> None:
        gate.tell(*(decision("earlier.x.test") for _ in range(7)))
        command = start("tail", "-n", str(backlog), "--json", "--event", "decision", "--name", "*.x.test")
        numbers = count()

        def tell(records: int) -> None:
            for _ in range(records):
                gate.tell(decision(f"{next(numbers)}.x.test"), decision("other.test"))

        # Broken before the first record, and between others.
        gate.wait_for_stream()
        for records in (0, 3, 40):
            tell(records)
            gate.cut()
            assert command.said().endswith("; trying again")
            tell(7)
            gate.listen()
            assert command.said() == "box-policy: connected again"
        told = next(numbers)
        expected = ["earlier.x.test"] * backlog + [f"{number}.x.test" for number in range(told)]
        assert [json.loads(command.line())["name"] for _ in expected] == expected
        assert command.end() == (-signal.SIGINT, [], [])

    def test_a_gate_that_restarts(self, gate: Gate, start: Start) -> None:
        command = start("tail", "--json", "--event", "decision")
        gate.tell(decision("old.test"))
        assert json.loads(command.line())["name"] == "old.test"
        gate.stop()
        assert command.said() == "box-policy: the gate has ended the stream; trying again"
        gate.start()
        gate.tell(decision("new.test"))
        assert command.said() == "box-policy: connected again"
        assert command.said() == "box-policy: the gate was restarted; records may be missing"
        assert json.loads(command.line())["name"] == "new.test"

    def test_records_that_the_gate_no_longer_keeps(self, gate: Gate, start: Start) -> None:
        command = start("tail", "--json", "-n", "1")
        command.line()
        gate.cut()
        gate.tell(*(decision(f"{number}.test") for number in range(10_003)))
        gate.listen()
        assert command.said().endswith("; trying again")
        assert command.said() == "box-policy: connected again"
        assert command.said() == "box-policy: 3 records have gone by unseen: the gate no longer keeps them"
        assert json.loads(command.line())["name"] == "3.test"

    def test_a_reader_that_has_enough_ends_it_at_once(self, gate: Gate) -> None:
        """Not with the next record, which may be long in coming."""
        gate.tell(decision("x.test"))
        shell = '"$@" | head -n 1; echo "${PIPESTATUS[0]}"'
        command = [sys.executable, "-m", "box_policy", "tail", "-n", "1", "--control", str(gate)]
        done = subprocess.run(
            ["bash", "-c", shell, "-", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (done.stdout.splitlines()[1], done.stderr) == (str(128 + signal.SIGPIPE), "")

    def test_a_full_disk(self, gate: Gate) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        for command in (["tail", "--no-follow"], ["policy", "get"], ["status"]):
            with open("/dev/full", "w") as full:
                done = subprocess.run(
                    [sys.executable, "-m", "box_policy", *command, "--control", str(gate)],
                    stdin=subprocess.DEVNULL,
                    stdout=full,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=TIMEOUT,
                )
            assert (done.returncode, done.stderr) == (1, f"box-policy: standard output: {os.strerror(28)}\n")
