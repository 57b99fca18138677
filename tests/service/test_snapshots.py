"""Snapshots: a box's files, with its policy, for boxes to come."""

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from box_policy.control.http.answers import ApiError
from box_policy.policy.model import NetworkPolicy
from box_policy.service.snapshots import InvalidStorageError, Snapshot, Snapshots
from tests.lab import Lab, plan
from tests.service.conftest import PATIENCE, Server
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
    denied = reach(service, again["id"], "evil.test")
    assert lab.connections(plan.EVIL4) == []
    assert denied != "200"


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


def test_holes_are_neither_kept_nor_filled(service: Server) -> None:
    box = service.create()["id"]
    service.run(box, "truncate -s 3G hole; echo text > text")
    taken = snapshot(service, box)
    assert taken["size_bytes"] < 20_000
    again = from_snapshot(service, taken["id"])
    assert service.run(again["id"], "stat -c '%s %b' hole; cat text")["output"] == f"{3 << 30} 0\ntext\n"


def test_what_is_deeper_than_a_path_can_say(service: Server) -> None:
    name = "d" * 200
    deep = f"import os\nfor n in range(40): os.mkdir('{name}'); os.chdir('{name}')\nopen('last', 'w')"
    count = {"command": ["find", ".", "-name", "last", "-printf", "%d"]}
    box = service.create()["id"]
    service.ask("POST", f"/{box}/code", {"code": deep, "language": "python"}).ok()
    again = from_snapshot(service, snapshot(service, box)["id"])["id"]
    assert service.ask("POST", f"/{again}/exec", count).ok()["output"] == "41"
    service.ask("POST", f"/{again}/files/remove", {"path": name, "recursive": True}).ok()
    assert service.ask("POST", f"/{again}/exec", count).ok()["output"] == ""


def test_deleted_while_a_box_is_made_from_it(service: Server) -> None:
    box = service.create()["id"]
    answers = []
    for _ in range(5):
        taken = snapshot(service, box)["id"]

        def make(snapshot_id: str = taken) -> None:
            answers.append(service.ask("POST", "/from-snapshot", {"snapshot_id": snapshot_id}))

        making = threading.Thread(target=make)
        making.start()
        service.ask("DELETE", "/snapshots", {"ids": [taken]}).ok()
        making.join()
    assert {(answer.status, answer.json.get("code")) for answer in answers} <= {
        (201, None),
        (404, "snapshot_unknown"),
    }


@pytest.fixture(params=["nameless", "directory"])
def store(request: pytest.FixtureRequest, snapshots: Path) -> Iterator[Snapshots]:
    """Where snapshots are kept, without a service, with room for 100 bytes."""
    directory = snapshots if request.param == "directory" else None
    store = Snapshots(directory, max_stored_bytes=100)
    yield store
    store.close()


async def parts(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def taken_from(store: Snapshots, *pieces: bytes | Exception, **more: Any) -> Snapshot:
    policy = NetworkPolicy.parse("deny-all")
    return await store.take(
        parts(*pieces), name="n", box_id="box-1", policy=policy, runtime=None, size="small", **more
    )


async def content(store: Snapshots, snapshot: Snapshot) -> bytes:
    async with store.open(snapshot) as pieces:
        return b"".join([piece async for piece in pieces])


class TestKept:
    async def test_what_is_kept_is_read(self, store: Snapshots) -> None:
        one, two = await taken_from(store, b"one", b"!"), await taken_from(store, b"two")
        assert (await content(store, one), await content(store, two)) == (b"one!", b"two")
        assert await content(store, one) == b"one!"

    async def test_one_has_a_bound(self, store: Snapshots) -> None:
        assert (await taken_from(store, b"x" * 10, max_bytes=10)).size_bytes == 10
        with pytest.raises(ApiError) as caught:
            await taken_from(store, b"x" * 9, b"xx", max_bytes=10)
        assert caught.value.code == "snapshot_too_large"
        assert len(store.ids()) == 1

    async def test_all_together_have_a_bound(self, store: Snapshots) -> None:
        kept = [await taken_from(store, b"x" * 40) for _ in range(2)]
        with pytest.raises(ApiError, match="all snapshots together") as caught:
            await taken_from(store, b"x" * 40)
        assert caught.value.code == "storage_full"
        store.delete(kept[0].id)
        await taken_from(store, b"x" * 40)

    async def test_those_being_taken_count(self, store: Snapshots) -> None:
        under_way = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x" * 90
            under_way.set()
            await asyncio.Event().wait()

        policy = NetworkPolicy.parse("deny-all")
        taking = asyncio.create_task(
            store.take(slow(), name="n", box_id="b", policy=policy, runtime=None, size="small")
        )
        await under_way.wait()
        with pytest.raises(ApiError):
            await taken_from(store, b"x" * 20)
        taking.cancel()
        await asyncio.wait([taking])
        await taken_from(store, b"x" * 100)

    async def test_an_error_of_the_box_is_told_as_such(self, store: Snapshots) -> None:
        with pytest.raises(PermissionError) as caught:
            await taken_from(store, b"x", PermissionError(errno.EACCES, "Permission denied", "/workspace/f"))
        assert caught.value.filename == "/workspace/f"
        assert len(store.ids()) == 0

    async def test_to_open_one_waits_for_nothing(self, store: Snapshots) -> None:
        taken = await taken_from(store, b"first")
        opened = store.open(taken)
        with pytest.raises(StopIteration) as entered:
            opened.__aenter__().__await__().send(None)
        store.delete(taken.id)
        await taken_from(store, b"another")
        assert [piece async for piece in entered.value.value] == [b"first"]
        await opened.__aexit__(None, None, None)

    async def test_what_is_deleted_is_unknown(self, store: Snapshots) -> None:
        taken = await taken_from(store, b"first")
        store.delete(taken.id)
        with pytest.raises(ApiError) as caught:
            await content(store, taken)
        assert caught.value.code == "snapshot_unknown"

    async def test_freeing_holds_nobody_up(self, store: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = await taken_from(store, b"first")
        freed, remove = threading.Event(), store._storage.remove

        def slowly(snapshot_id: str) -> None:
            assert freed.wait(PATIENCE)
            remove(snapshot_id)

        monkeypatch.setattr(store._storage, "remove", slowly)
        store.delete(taken.id)
        await taken_from(store, b"x" * 100)
        freed.set()


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
        assert [path.name for path in snapshots.iterdir()] == [".lock"]

    def test_what_is_damaged_is_left_alone(self, running_lab: Lab, snapshots: Path) -> None:
        snapshots.mkdir(mode=0o700)
        (snapshots / "snap-1.json").write_text("{")
        (snapshots / "snap-2.json").write_text(json.dumps({"id": "snap-2", "policy": {"mode": "deny-all"}}))
        (snapshots / "snap-2.tar").write_text("")
        (snapshots / "other.tar").write_text("")
        with Server("--snapshots", str(snapshots)) as server:
            assert server.ask("GET", "/snapshots").ok() == {"snapshots": []}
        left = sorted(path.name for path in snapshots.iterdir())
        assert left == [".lock", "other.tar", "snap-1.json", "snap-2.json", "snap-2.tar"]

    @pytest.mark.parametrize("mode", [0o777, 0o770])
    def test_others_could_write_there(self, running_lab: Lab, snapshots: Path, mode: int) -> None:
        snapshots.mkdir()
        snapshots.chmod(mode)
        with pytest.raises(AssertionError, match="can be written to by others"):
            Server("--snapshots", str(snapshots))

    async def test_a_crash_leaves_no_archives(self, snapshots: Path) -> None:
        store = Snapshots(snapshots)
        kept, half = await taken_from(store, b"kept"), await taken_from(store, b"half")
        store.close()
        (snapshots / f"{half.id}.json").unlink()
        store = Snapshots(snapshots)
        assert store.ids() == [kept.id]
        assert sorted(path.name for path in snapshots.glob("snap-*")) == [f"{kept.id}.json", f"{kept.id}.tar"]
        store.close()

    def test_a_second_service_is_kept_out(self, snapshots: Path) -> None:
        first = Snapshots(snapshots)
        with pytest.raises(InvalidStorageError, match="another service"):
            Snapshots(snapshots)
        first.close()
        Snapshots(snapshots).close()

    async def test_who_gives_up_leaves_nothing(
        self, snapshots: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Snapshots(snapshots)
        begun, go_on, keep = threading.Event(), threading.Event(), store._storage.keep

        def slowly(*arguments: Any) -> None:
            begun.set()
            go_on.wait(PATIENCE)
            keep(*arguments)

        monkeypatch.setattr(store._storage, "keep", slowly)
        taking = asyncio.create_task(taken_from(store, b"x"))
        await asyncio.to_thread(begun.wait)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        go_on.set()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        await asyncio.sleep(0)
        store.close()
        assert [path.name for path in snapshots.iterdir()] == [".lock"]
