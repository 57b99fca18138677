"""``box-policy doctor``: what it prints, and how it ends."""

import errno
import json
import os
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from box_policy.cli import doctor as command
from box_policy.cli.main import app
from box_policy.sandbox.doctor import gates
from box_policy.sandbox.doctor.examination import _ability, examine
from box_policy.sandbox.doctor.findings import Ability, Examination, Finding, Remedy
from box_policy.sandbox.doctor.host import Host

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
NAMES = [
    "system", "Python", "mitmproxy", "name servers", "descriptors", "kernel", "seccomp", "user namespaces",
    "namespaces", "user ids", "nf_tables", "original destination", "IPv6", "limits of boxes", "box",
    "work directory", "Docker engine", "compose", "network namespace", "connection tracking",
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "ok", "findings", "abilities"],
    "properties": {
        "version": {"type": "string"},
        "ok": {"type": "boolean"},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "state", "found", "remedies"],
                "properties": {
                    "name": {"type": "string"},
                    "state": {"enum": ["ok", "missing", "limited"]},
                    "found": {"type": "string"},
                    "remedies": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["text", "commands"],
                            "properties": {
                                "text": {"type": "string"},
                                "commands": {"type": "array", "items": {"type": "string"}},
                            },
                        },
                    },
                },
            },
        },
        "abilities": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["mode", "title", "works", "reason"],
                "properties": {
                    "mode": {"enum": ["namespaces", "docker", "sidecar", "addon"]},
                    "title": {"type": "string"},
                    "works": {"type": "boolean"},
                    "reason": {"type": ["string", "null"]},
                },
            },
        },
    },
}


EXAMINATION = Examination(
    [
        Finding("system", "ok", "Linux " * 12),
        Finding(
            "engine", "missing", "says \x1b[2J\n", (Remedy("Mend " * 30, ("a command " * 20 + "\x07",)),)
        ),
        Finding("other", "limited", "less", (Remedy("Mend " * 30, ("a command " * 20 + "\x07",)),)),
    ],
    [
        Ability("namespaces", "boxes of namespaces", True),
        Ability("docker", "boxes in Docker", False, "engine: \x1b"),
    ],
)


def doctor(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "box_policy", "doctor", *arguments],
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60, **options},
    )


class TestThisMachine:
    def test_the_whole_examination(self) -> None:
        """As one process, with nothing to be had of Docker; what it says of boxes is what they do."""
        done = doctor("--json", env={**os.environ, **NO_ENGINE})
        report = json.loads(done.stdout)
        jsonschema.validate(report, SCHEMA)
        findings = {finding["name"]: finding for finding in report["findings"]}
        assert list(findings) == NAMES
        assert done.stderr == ""
        abilities = {ability["mode"]: ability for ability in report["abilities"]}
        assert list(abilities) == ["namespaces", "docker", "sidecar", "addon"]
        works = findings["box"]["state"] != "missing"
        assert (abilities["namespaces"]["works"], report["ok"], done.returncode) == (
            works,
            works,
            int(not works),
        )
        assert abilities["addon"] == {
            "mode": "addon",
            "title": "mitmproxy addon",
            "works": True,
            "reason": None,
        }
        assert not abilities["docker"]["works"]
        assert "/nonexistent/docker.sock" in abilities["docker"]["reason"]

    def test_a_backend_that_cannot_be_had(self) -> None:
        """With every standard stream closed but the one that is read."""
        program = f"exec {sys.executable} -m box_policy doctor --backend docker <&- 2>&-"
        done = subprocess.run(
            ["/bin/sh", "-c", program], env={**os.environ, **NO_ENGINE}, stdout=subprocess.PIPE, timeout=60
        )
        lines = done.stdout.decode().splitlines()
        assert done.returncode == 1
        assert lines[0].split() == ["check", "state", "found"]
        assert lines[-2].startswith("boxes in Docker: no, Docker engine: /nonexistent/docker.sock")
        assert "user namespaces" not in done.stdout.decode()
        assert "\x1b" not in done.stdout.decode()

    def test_output_that_goes_nowhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(line: str, err: bool = False) -> None:
            if not err:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            said.append(line)

        said: list[str] = []
        monkeypatch.setattr("box_policy.sandbox.doctor.examination.examine", lambda *_: EXAMINATION)
        monkeypatch.setattr(typer, "echo", full)
        with pytest.raises(typer.Exit) as ended:
            command.doctor()
        assert (ended.value.exit_code, said) == (
            1,
            ["box-policy: the findings can't be written: No space left on device"],
        )

    def test_a_backend_that_nobody_knows(self) -> None:
        assert CliRunner().invoke(app, ["doctor", "--backend", "nonesuch"]).exit_code == 2

    def test_a_check_that_raises_is_a_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(host: Host) -> Finding:
            raise RuntimeError("odd")

        monkeypatch.setattr(gates, "check_mitmproxy", fail)
        result = examine(NO_ENGINE, "docker")
        (finding,) = (finding for finding in result.findings if finding.name == "mitmproxy")
        assert (finding.state, finding.found) == ("missing", "the check itself failed: RuntimeError('odd')")
        assert not result.abilities[0].works


class TestText:
    @pytest.mark.parametrize("width", [1, 40, 80, 120])
    def test_a_table(self, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        lines = list(command._lines(EXAMINATION, width))
        assert lines[0] == "check   state    found"
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert lines[1].startswith("system  ok       Linux Linux")
        (engine,) = (line for line in lines if line.startswith("engine"))
        assert engine == "engine  missing  says \\x1b[2J\\n"
        # Commands are whole, and what is said twice is said once.
        assert [line for line in lines if "a command" in line] == [" " * 6 + "a command " * 20 + "\\x07"]
        others = [line for line in lines if "a command" not in line]
        assert max(map(len, others)) <= max(width, 45)
        assert "boxes of namespaces: yes" in lines
        assert lines[-1].endswith("boxes in Docker: no, engine: \\x1b") or width < 40

    def test_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        assert "\x1b[31mmissing\x1b[0m" in "\n".join(command._lines(EXAMINATION, 80))
        for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
            with monkeypatch.context() as context:
                context.setenv(name, value)
                assert "\x1b" not in "\n".join(command._lines(EXAMINATION, 80))


def test_the_first_cause_is_the_reason() -> None:
    findings = [
        Finding("system", "ok", ""),
        Finding("compose", "missing", "unrelated"),
        Finding("user namespaces", "missing", "forbidden"),
        Finding("box", "missing", "consequence"),
    ]
    assert _ability("namespaces", findings).reason == "user namespaces: forbidden"
    assert _ability(
        "namespaces", findings[:-1]
    ).works  # a box was made: what else was seen is beside the point
    assert _ability("sidecar", findings).works
