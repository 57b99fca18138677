"""The hosted product's JavaScript client, unmodified."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CURL
from tests.lab import Lab, plan
from tests.service.conftest import Server

DRIVER = Path(__file__).parent / "node" / "drive.mjs"
PACKAGES = Path(sys.prefix) / "node"
"""Where scripts/setup installs them."""

CUSTOM = {"mode": "custom", "allowedDomains": ["allowed.test", "*.wild.test"], "allowedCidrs": [plan.CIDR]}
ALLOW_ALL = {"mode": "allow-all"}
DENY_ALL = {"mode": "deny-all"}


class ClientError(Exception):
    """What the client threw."""

    def __init__(self, name: str, message: str, statusCode: int | None) -> None:
        super().__init__(message)
        self.name = name
        self.status = statusCode


class Node:
    """A Node.js process with the client in it, which keeps what it is told to under a name."""

    def __init__(self, cwd: Path) -> None:
        self._process = subprocess.Popen(
            ["node", str(DRIVER), str(PACKAGES)],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, call: str, *arguments: object, keep: str | None = None) -> Any:
        """Call a function, or read a property."""
        assert self._process.stdin is not None and self._process.stdout is not None
        step = {"call": call, "arguments": arguments, "keep": keep}
        print(json.dumps(step), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ClientError(**answer["error"])
        return answer["value"]

    def close(self) -> None:
        with self._process:  # closes its streams, and waits
            pass


@pytest.fixture
def node(service: Server, tmp_path: Path) -> Iterator[Node]:
    """The client, told the service's address."""
    if shutil.which("node") is None:
        pytest.skip("node isn't installed")
    if not (PACKAGES / "node_modules").is_dir():
        pytest.skip("@upstash/box isn't installed: scripts/setup had no npm, or no registry")
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def trusting(node: Node, lab: Lab) -> Node:
    """The client, with a box that trusts the lab's authority, kept as ``box``."""
    node("Box.create", {"networkPolicy": CUSTOM}, keep="box")
    node("box.files.write", {"path": "ca.pem", "content": lab.ca_pem.read_text()})
    return node


def reached(node: Node, lab: Lab, url: str = "https://evil.test/", box: str = "box") -> bool:
    """Whether a fetch got through; True and False both proved at the origin."""
    lab.reset()
    if node(f"{box}.exec.command", f"{CURL} {url}")["exitCode"] == 0:
        assert lab.requests() != []
        return True
    assert lab.packets(plan.EVIL4) == lab.packets(plan.EVIL6) == []
    return False


def test_a_policy_of_its_own(trusting: Node, lab: Lab) -> None:
    assert trusting("box.networkPolicy") == CUSTOM
    assert reached(trusting, lab, "https://allowed.test/")
    assert reached(trusting, lab, f"http://{plan.CIDR4}/")
    assert not reached(trusting, lab)


def test_an_update_is_in_force_at_once(trusting: Node, lab: Lab) -> None:
    for policy, expected in ((DENY_ALL, False), (ALLOW_ALL, True), (CUSTOM, False), (ALLOW_ALL, True)):
        assert trusting("box.updateNetworkPolicy", policy) is None
        assert trusting("box.networkPolicy") == policy
        assert reached(trusting, lab) is expected


def test_deny_all_sends_nothing(trusting: Node, lab: Lab) -> None:
    trusting("box.updateNetworkPolicy", DENY_ALL)
    lab.reset()
    run = trusting("box.exec.command", f"{CURL} https://allowed.test/ || {CURL} --fail http://{plan.CIDR4}/")
    assert run["status"] == "failed"
    assert lab.packets() == []


def test_what_is_no_policy_changes_nothing(trusting: Node, lab: Lab) -> None:
    with pytest.raises(ClientError, match=r"\*\.\*") as refused:
        trusting("box.updateNetworkPolicy", {"mode": "custom", "allowedDomains": ["*.*"]})
    assert (refused.value.name, refused.value.status) == ("BoxError", 422)
    assert trusting("box.networkPolicy") == CUSTOM
    assert not reached(trusting, lab)


def test_reading_it_back(node: Node) -> None:
    box = node("Box.create", {"name": "reader", "networkPolicy": CUSTOM})
    assert node("Box.get", box["id"])["networkPolicy"] == CUSTOM
    assert node("Box.getByName", "reader")["networkPolicy"] == CUSTOM
    assert node("Box.create")["networkPolicy"] == ALLOW_ALL


def test_from_a_snapshot(trusting: Node, lab: Lab) -> None:
    snapshot = trusting("box.snapshot", {"name": "mine"}, keep="snapshot")
    assert (snapshot["name"], snapshot["status"]) == ("mine", "ready")
    assert trusting("Box.fromSnapshot", snapshot["id"], keep="same")["networkPolicy"] == CUSTOM
    opened = trusting("Box.fromSnapshot", snapshot["id"], {"networkPolicy": ALLOW_ALL}, keep="opened")
    assert opened["networkPolicy"] == ALLOW_ALL
    assert not reached(trusting, lab, box="same")
    assert reached(trusting, lab, box="opened")
    assert [one["id"] for one in trusting("box.listSnapshots")] == [snapshot["id"]]
    trusting("box.deleteSnapshot", snapshot["id"])
    assert trusting("box.listSnapshots") == []


def test_deleting_snapshots(node: Node) -> None:
    node("Box.create", keep="box")
    ids = [node("box.snapshot", {"name": name})["id"] for name in ("a", "b", "c")]
    node("Box.deleteSnapshots", {"snapshotIds": ids[:2]})
    assert [one["id"] for one in node("box.listSnapshots")] == ids[2:]


def test_all_snapshots_are_not_deleted_by_naming_none(node: Node) -> None:
    # This client, unlike the Python one, has no other way to say "all".
    node("Box.create", keep="box")
    snapshot = node("box.snapshot", {"name": "kept"})
    for options in ({}, {"snapshotIds": list[str]()}):
        with pytest.raises(ClientError, match="ids") as refused:
            node("Box.deleteSnapshots", options)
        assert refused.value.status == 422
    assert [one["id"] for one in node("box.listSnapshots")] == [snapshot["id"]]


def test_an_ephemeral_box(node: Node, lab: Lab) -> None:
    box = node("EphemeralBox.create", {"ttl": 60, "networkPolicy": CUSTOM}, keep="box")
    assert box["networkPolicy"] == CUSTOM
    assert box["expiresAt"] > 0
    node("box.files.write", {"path": "ca.pem", "content": lab.ca_pem.read_text()})
    assert reached(node, lab, "https://allowed.test/")
    assert not reached(node, lab)
    node("box.delete")
    assert node("Box.list") == []


def test_commands_and_code(node: Node) -> None:
    node("Box.create", {"runtime": "node", "env": {"COLOUR": "blue"}}, keep="box")
    run = node("box.exec.command", "echo $COLOUR; pwd; echo err >&2")
    assert (run["status"], run["exitCode"]) == ("completed", 0)
    assert (run["stdout"], run["stderr"]) == ("blue\n/workspace/home\n", "err\n")
    failed = node("box.exec.command", "exit 3")
    assert (failed["status"], failed["exitCode"]) == ("failed", 3)
    assert node("box.exec.code", {"code": "console.log(6 * 7)", "lang": "js"})["result"] == "42\n"
    assert node("box.exec.code", {"code": "print(6 * 7)", "lang": "python"})["result"] == "42\n"
    late = node("box.exec.code", {"code": "import time; time.sleep(1000)", "lang": "python", "timeout": 300})
    assert (late["status"], late["exitCode"]) == ("failed", 124)


def test_streams(node: Node) -> None:
    node("Box.create", keep="box")
    told = node("box.exec.stream", "printf 'héllo'; exit 4")
    assert told["chunks"][-1]["exitCode"] == 4
    assert "".join(chunk.get("data", "") for chunk in told["chunks"]) == "héllo"
    assert (told["run"]["status"], told["run"]["exitCode"]) == ("failed", 4)
    code = {"code": "for i in range(3): print(i)", "lang": "python"}
    assert node("box.exec.streamCode", code)["run"]["result"] == "0\n1\n2\n"


def test_files(node: Node, tmp_path: Path) -> None:
    node("Box.create", keep="box")
    node("box.files.write", {"path": "a/text", "content": "héllo"})
    assert node("box.files.read", "a/text") == "héllo"
    content = base64.b64encode(bytes(range(256))).decode()
    node("box.files.write", {"path": "a/bytes", "content": content, "encoding": "base64"})
    assert node("box.files.read", "a/bytes", {"encoding": "base64"}) == content
    assert {entry["name"] for entry in node("box.files.list", "a")} == {"text", "bytes"}
    (tmp_path / "sent").write_bytes(b"\0\xff" * 1000)
    node("box.files.upload", [{"path": str(tmp_path / "sent"), "destination": "a/sent"}])
    node("box.files.download", {"folder": "a"})
    assert (tmp_path / "a" / "sent").read_bytes() == b"\0\xff" * 1000
    assert (tmp_path / "a" / "bytes").read_bytes() == bytes(range(256))


def test_its_life(node: Node) -> None:
    box = node("Box.create", {"labels": ["red"], "size": "medium", "name": "mine"}, keep="box")
    assert box["size"] == "medium"
    assert [one["name"] for one in node("Box.list", {"label": "red"})] == ["mine"]
    assert node("box.labels.add", "blue") == ["red", "blue"]
    assert node("box.labels.remove", "red") == ["blue"]
    assert node("box.labels.list") == ["blue"]
    assert node("Box.list", {"label": "red"}) == []
    node("box.pause")
    assert node("box.getStatus")["status"] == "paused"
    node("box.resume")
    assert node("box.getStatus")["status"] == "idle"
    node("box.exec.command", "mkdir below")
    node("box.cd", "below")
    assert node("box.exec.command", "pwd")["result"] == "/workspace/home/below\n"
    node("Box.create", keep="other")
    node("Box.delete", {"boxIds": [box["id"]]})
    assert len(node("Box.list")) == 1
    node("other.delete")
    assert node("Box.list") == []


def test_variables_for_every_box_to_come(node: Node) -> None:
    node("Box.setEnv", "COLOUR", "blue")
    node("Box.create", keep="box")
    assert node("box.exec.command", "echo $COLOUR")["result"] == "blue\n"
    node("Box.setAllEnv", {"SHAPE": "round"})
    assert list(node("Box.listEnv")) == ["SHAPE"]
    node("Box.deleteEnv", "SHAPE")
    assert node("Box.listEnv") == {}


@pytest.mark.parametrize(
    ("call", "arguments", "status", "text"),
    [
        ("Box.get", ["nobody"], 404, "there is no box 'nobody'"),
        ("Box.create", [{"apiKey": "wrong" * 8}], 401, "X-Box-Api-Key"),
        ("Box.create", [{"runtime": "cobol"}], 422, "cobol"),
        ("Box.create", [{"attachHeaders": {"a.test": {"X-Key": "secret"}}}], 501, "attach_headers"),
        ("box.git.status", [], 501, "git"),
        ("box.schedule.list", [], 501, "schedules"),
        ("box.skills.add", ["a/b/c"], 501, "does not have"),
        ("box.logs", [], 501, "logs"),
        ("box.listRuns", [], 501, "runs"),
    ],
)
def test_errors(node: Node, call: str, arguments: list[object], status: int, text: str) -> None:
    node("Box.create", keep="box")
    with pytest.raises(ClientError) as error:
        node(call, *arguments)
    assert (error.value.name, error.value.status) == ("BoxError", status)
    assert text in str(error.value)
