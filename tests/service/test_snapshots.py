"""Snapshots: a box's files, with its policy, for boxes to come."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, plan
from tests.service.conftest import Server
from tests.service.test_boxes import ALLOWED, reach


def snapshot(service: Server, box: str, name: str = "one") -> Any:
    return service.ask("POST", f"/{box}/snapshots", {"name": name}).ok()


def from_snapshot(service: Server, snapshot_id: str, **body: object) -> Any:
    return service.ask("POST", "/from-snapshot", {"snapshot_id": snapshot_id, **body}).ok()


MAKE_FILES = r"""
mkdir -p src/empty && echo hello > src/a.txt && printf 'b\0\377' > "$HOME/b.bin"
ln -s a.txt src/link && ln src/a.txt src/hard && chmod 750 src/a.txt && ln -s /etc/shadow out
mkfifo pipe; echo x > "$(printf 'n\377me')"; touch -d 2020-01-02T03:04:05Z src/a.txt
"""
SHOW_FILES = r"""
find . -printf '%p %y %m %l\n' | sort; cat src/link; od -c b.bin; stat -c '%h %Y' src/a.txt
"""


def test_files_come_back(service: Server) -> None:
    box = service.create()["id"]
    assert service.run(box, MAKE_FILES)["exit_code"] == 0
    before = service.run(box, "rm pipe; " + SHOW_FILES)["output"]
    service.run(box, "mkfifo pipe")
    taken = snapshot(service, box)
    assert (taken["name"], taken["box_id"], taken["status"]) == ("one", box, "ready")
    assert taken["size_bytes"] > 0
    again = from_snapshot(service, taken["id"])
    assert again["snapshot_id"] == taken["id"]
    assert service.run(again["id"], SHOW_FILES)["output"] == before
    assert "src/a.txt" in before and " l 777 /etc/shadow" in before


def test_the_policy_goes_with_it(service: Server, lab: Lab) -> None:
    box = service.create(network_policy=ALLOWED)["id"]
    taken = snapshot(service, box)
    assert taken["network_policy"] == ALLOWED
    service.ask("PUT", f"/{box}/config/network-policy", {"mode": "allow-all"}).ok()
    again = from_snapshot(service, taken["id"])
    assert again["network_policy"] == ALLOWED
    assert reach(service, again["id"], "evil.test") != "200"
    assert lab.connections(plan.EVIL4) == []


def test_unless_another_is_given(service: Server) -> None:
    taken = snapshot(service, service.create(network_policy=ALLOWED)["id"])
    again = from_snapshot(service, taken["id"], network_policy={"mode": "deny-all"})
    assert again["network_policy"] == {"mode": "deny-all"}
    answer = service.ask("POST", "/from-snapshot", {"snapshot_id": taken["id"], "network_policy": {}})
    assert (answer.status, answer.json["code"]) == (422, "policy_invalid")


def test_they_outlive_their_box(service: Server) -> None:
    box = service.create(runtime="python")["id"]
    taken = snapshot(service, box)
    service.ask("DELETE", f"/{box}").ok()
    again = from_snapshot(service, taken["id"], ephemeral=True, ttl=60)
    assert again["runtime"] == "python" and again["ephemeral"]


def test_list_and_delete(service: Server) -> None:
    box, other = service.create()["id"], service.create()["id"]
    one, two = snapshot(service, box, "one"), snapshot(service, box, "two")
    three = snapshot(service, other, "three")
    listed = service.ask("GET", f"/{box}/snapshots").ok()["snapshots"]
    assert [found["name"] for found in listed] == ["one", "two"]
    service.ask("DELETE", f"/{box}/snapshots/{one['id']}").ok()
    answer = service.ask("POST", "/from-snapshot", {"snapshot_id": one["id"]})
    assert (answer.status, answer.json["code"]) == (404, "snapshot_unknown")
    assert service.ask("DELETE", "/snapshots", {"ids": [two["id"], "snap-none"]}).status == 404
    assert service.ask("DELETE", "/snapshots", {"ids": [two["id"]]}).ok() == {
        "deleted": 1,
        "ids": [two["id"]],
    }
    assert service.ask("DELETE", "/snapshots", {}).status == 422, "no list doesn't mean all"
    assert service.ask("DELETE", "/snapshots?all=true", {}).ok() == {"deleted": 1, "ids": [three["id"]]}


def test_a_box_that_is_too_small_for_it(service: Server, lab: Lab) -> None:
    with Server("--size", "medium:disk=64MiB", "--size", "small:disk=8MiB") as server:
        box = server.create(size="medium")["id"]
        server.run(box, "head -c 20000000 /dev/zero > big")
        taken = snapshot(server, box)
        assert from_snapshot(server, taken["id"])["size"] == "medium"
        answer = server.ask("POST", "/from-snapshot", {"snapshot_id": taken["id"], "size": "small"})
        assert (answer.status, answer.json["code"]) == (507, "box_full")
        assert len(server.ask("GET", "").ok()) == 2, "half a box is none"


class TestInADirectory:
    def test_they_outlive_the_service(self, running_lab: Lab, snapshots: Path) -> None:
        with Server("--snapshots", str(snapshots)) as server:
            box = server.create(network_policy=ALLOWED, runtime="python")["id"]
            server.run(box, "echo kept > file")
            taken = snapshot(server, box)
            server.kill()
        with Server("--snapshots", str(snapshots)) as server:
            assert server.ask("GET", "/snapshots").ok()["snapshots"] == [taken]
            box = from_snapshot(server, taken["id"])
            assert (box["network_policy"], box["runtime"]) == (ALLOWED, "python")
            assert server.run(box["id"], "cat file")["output"] == "kept\n"
            server.ask("DELETE", "/snapshots?all=true", {}).ok()
        assert list(snapshots.iterdir()) == []

    def test_what_is_damaged_is_left_alone(self, running_lab: Lab, snapshots: Path) -> None:
        snapshots.mkdir(mode=0o700)
        (snapshots / "snap-1.json").write_text("{")
        (snapshots / "snap-2.json").write_text(json.dumps({"id": "snap-2", "policy": {"mode": "deny-all"}}))
        (snapshots / "snap-3.tar").write_text("")
        with Server("--snapshots", str(snapshots)) as server:
            assert server.ask("GET", "/snapshots").ok() == {"snapshots": []}
        assert len(list(snapshots.iterdir())) == 3

    @pytest.mark.parametrize("mode", [0o777, 0o770])
    def test_others_could_write_there(self, running_lab: Lab, snapshots: Path, mode: int) -> None:
        snapshots.mkdir()
        snapshots.chmod(mode)
        with pytest.raises(AssertionError, match="can be written to by others"):
            Server("--snapshots", str(snapshots))
