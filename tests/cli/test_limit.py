"""``--limit``: what a box may cost, as the operator of a run, or of a service, says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab, plan
from tests.service.conftest import Server

RESET = f"""
import socket
held, ends = [], []
for _ in range(5):
    try:
        held.append(socket.create_connection(({plan.EVIL4!r}, 443), 6))
    except ConnectionResetError:
        ends.append("reset")
for sock in held:
    sock.settimeout(0.3)
    try:
        ends.append(sock.recv(1).decode())
    except ConnectionResetError:
        ends.append("reset")
    except socket.timeout:
        ends.append("open")
print(ends.count("open"), ends.count("reset"))
"""
"""Says how many of its connections are still there, and how many have been reset."""


def said(log: Path) -> list[str]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record["detail"] for record in records if record.get("reason") == "limit"]


def test_of_a_run(lab: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "box_policy", "run", "--limit", "pending=2", "--limit", "linger=0.5"]
    command += ["--allow", "allowed.test", "--name-server", lab.nameserver, "--log", str(log), "--quiet"]
    done = subprocess.run(
        [*command, "--", "python3", "-c", RESET], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("2 3\n", "")
    assert said(log) == ["too many connections without a verdict at once; one such record a second"]


@pytest.mark.parametrize("by", ["option", "environment"])
def test_of_a_service(lab: Lab, tmp_path: Path, by: str) -> None:
    log = tmp_path / "log"
    options = ["--log", str(log), "--name-server", lab.nameserver]
    limits = "connections=2 linger=0.5"
    if by == "option":
        options += [word for limit in limits.split() for word in ("--limit", limit)]
    with Server(*options, env={"BOX_POLICY_LIMITS": limits if by == "environment" else ""}) as server:
        policy = {"mode": "custom", "allowed_domains": ["allowed.test"]}
        box = server.create(network_policy=policy)["id"]
        run = server.ask("POST", f"/{box}/exec", {"command": ["python3", "-c", RESET]}).ok()
        assert "2 3\n" in run.values(), run
    assert said(log) == ["too many connections at once; one such record a second"]
