"""Both clients and the service itself."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from box_policy import BoxError, BoxFileError, BoxNotFoundError, ExecExitChunk, PolicyValidationError
from tests.sdk.conftest import Client

pytestmark = pytest.mark.usefixtures("require_lab", "service")
CUSTOM = {"mode": "custom", "allowed_domains": ["api.github.com", "*.index.example"]}


@pytest.fixture
async def box(client: Client) -> AsyncIterator[Any]:
    box = await client(client.Box.create, timeout=30_000, delete_on_exit=True, name="mine", labels=["l"])
    await client.enter(box)
    yield box
    await client.leave(box)


async def test_a_policy_is_in_force_from_the_start_and_changes(client: Client) -> None:
    box = await client(client.Box.create, network_policy=CUSTOM, timeout=30_000, delete_on_exit=True)
    async with Entered(client, box):
        assert box.network_policy == CUSTOM
        assert await client(box.update_network_policy, {"allow": ["a.test"]}) == {
            "mode": "custom",
            "allowed_domains": ["a.test"],
        }
        manager = box.temporary_network_policy("deny-all")
        await client.enter(manager)
        assert (await client(client.Box.get, box.id)).network_policy == {"mode": "deny-all"}
        await client.leave(manager)
        assert box.network_policy == {"mode": "custom", "allowed_domains": ["a.test"]}


class Entered:
    def __init__(self, client: Client, box: Any) -> None:
        self._client, self._box = client, box

    async def __aenter__(self) -> Any:
        return await self._client.enter(self._box)

    async def __aexit__(self, *_: object) -> None:
        await self._client.leave(self._box)


async def test_at_the_end_of_its_block_a_box_is_deleted_if_that_was_wanted(client: Client) -> None:
    for delete in (True, False):
        box = await client(client.Box.create, timeout=30_000, delete_on_exit=delete)
        async with Entered(client, box):
            pass
        found = [one.id for one in await client(client.Box.list)]
        assert (box.id in found) is not delete
    await client(client.Box.delete_boxes, box_ids=box.id)
    assert box.id not in [one.id for one in await client(client.Box.list)]


async def test_a_box_that_is_gone_by_then_is_no_error(client: Client) -> None:
    box = await client(client.Box.create, timeout=30_000, delete_on_exit=True)
    async with Entered(client, box):
        await client(client.Box.delete_boxes, box_ids=[box.id])
        with pytest.raises(BoxNotFoundError):
            await client(box.get_status)
    box = await client(client.Box.create, timeout=30_000, delete_on_exit=True)
    async with Entered(client, box):
        await client(box.delete)


async def test_it_is_found_by_its_name_and_label(client: Client, box: Any) -> None:
    assert (await client(client.Box.get_by_name, "mine")).id == box.id
    assert [one.id for one in await client(client.Box.list, label="l")] == [box.id]
    assert await client(client.Box.list, label="none") == []
    assert await client(box.labels.add, "m x") == ["l", "m x"]
    assert await client(box.labels.remove, "l") == ["m x"]
    assert await client(box.labels.list) == ["m x"]


async def test_a_command(client: Client, box: Any) -> None:
    run = await client(box.exec.command, "pwd; echo $A; echo oops >&2; exit 3", env={"A": "b"}, cwd="/tmp")
    assert (run.exit_code, run.stdout, run.stderr, run.result) == (3, "/tmp\nb\n", "oops\n", "oops\n")
    run = await client(box.exec.command, "sleep 30", timeout=200)
    assert (run.exit_code, run.timed_out, run.status) == (124, True, "failed")


async def test_code(client: Client, box: Any) -> None:
    run = await client(box.exec.code, code="print(6 * 7)", lang="python")
    assert (run.exit_code, run.result) == (0, "42\n")


async def test_a_stream(client: Client, box: Any) -> None:
    run = await client(box.exec.stream, "echo a; echo b >&2; printf 'event: exit\\ndata: {}\\n\\n'; exit 4")
    chunks = await client.all(run)
    assert isinstance(chunks[-1], ExecExitChunk)
    assert (run.exit_code, run.stderr) == (4, "b\n")
    assert run.stdout == "a\nevent: exit\ndata: {}\n\n"


async def test_files(client: Client, box: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").write_bytes(bytes(range(256)))
    await client(box.files.mkdir, "d")
    await client(box.cd, "d")
    assert box.cwd == "/workspace/home/d"
    await client(box.files.upload, [{"path": "local", "destination": "bytes"}])
    await client(box.files.write, path="text", content="größe")
    assert await client(box.files.read, "text") == "größe"
    with pytest.raises(BoxFileError, match="base64"):
        await client(box.files.read, "bytes")
    assert await client(box.files.read, "bytes", encoding="base64", offset=254, length=2) == "/v8="
    assert {entry.name for entry in await client(box.files.list)} == {"bytes", "text"}
    assert (await client(box.files.stat, "bytes")).size == 256
    await client(box.files.download)
    assert (tmp_path / "d/bytes").read_bytes() == bytes(range(256))
    await client(box.files.rename, "text", "other")
    await client(box.files.remove, "other")
    with pytest.raises(BoxError):
        await client(box.files.read, "other")
    with pytest.raises(BoxError, match="cd: none"):
        await client(box.cd, "none")
    assert (await client(box.exec.command, "ls")).stdout == "bytes\n"


async def test_a_session(client: Client, box: Any) -> None:
    output, ready = bytearray(), threading.Event()

    def keep(data: bytes) -> None:
        output.extend(data)
        ready.set()

    handle = await client(box.exec.session, cmd="read line; echo got $line; exit 5", on_stdout=keep)
    async with Entered(client, handle):
        assert handle.pid > 0
        await client(handle.write, "this\n")
        assert await client(handle.wait, 20) == 5
    assert bytes(output) == b"got this\n"


async def test_a_session_is_killed(client: Client, box: Any) -> None:
    handle = await client(box.exec.session, argv=["sleep", "60"])
    async with Entered(client, handle):
        await client(handle.kill, "KILL")
        assert await client(handle.wait, 20) == 137


async def test_a_box_is_paused_and_goes_on(client: Client, box: Any) -> None:
    await client(box.pause)
    assert (await client(box.get_status))["status"] == "paused"
    with pytest.raises(BoxError) as raised:
        await client(box.exec.command, "true")
    assert raised.value.code == "box_paused"
    await client(box.resume)
    assert (await client(box.exec.command, "true")).exit_code == 0


async def test_a_snapshot_becomes_a_box(client: Client, box: Any) -> None:
    await client(box.files.write, path="kept", content="yes")
    snapshot = await client(box.snapshot, name="s")
    assert snapshot.id in [one.id for one in await client(box.list_snapshots)]
    for kind in (client.Box, client.EphemeralBox):
        copy = await client(
            kind.from_snapshot, snapshot.id, network_policy="deny-all", timeout=30_000, delete_on_exit=True
        )
        async with Entered(client, copy):
            assert await client(copy.files.read, "kept") == "yes"
            assert copy.network_policy == {"mode": "deny-all"}
    await client(box.delete_snapshot, snapshot.id)
    assert await client(box.list_snapshots) == []


async def test_an_ephemeral_box(client: Client) -> None:
    box = await client(
        client.EphemeralBox.create, ttl=60, network_policy="deny-all", timeout=30_000, delete_on_exit=True
    )
    async with Entered(client, box):
        assert box.expires_at > 1_000_000_000
        assert await client(box.update_network_policy, "allow-all") == {"mode": "allow-all"}
        assert (await client(box.exec.command, "echo hi")).result == "hi\n"


async def test_variables_of_all_boxes(client: Client) -> None:
    await client(client.Box.set_all_env, {"ONE": "1", "TWO": "2"})
    await client(client.Box.set_env, "THREE", "3")
    await client(client.Box.delete_env, "TWO")
    assert await client(client.Box.list_env) == {"ONE": "1", "THREE": "3"}
    box = await client(client.Box.create, timeout=30_000, delete_on_exit=True)
    async with Entered(client, box):
        assert (await client(box.exec.command, "echo $ONE$TWO$THREE")).result == "13\n"
    await client(client.Box.set_all_env, {})


async def test_the_service_judges_policies_as_well(client: Client, box: Any) -> None:
    with pytest.raises(PolicyValidationError) as raised:
        await client(
            box._transport.request, "PUT", f"/v2/box/{box.id}/config/network-policy", body={"mode": "x"}
        )
    assert (raised.value.status_code, raised.value.errors[0]["loc"]) == (422, ("mode",))
