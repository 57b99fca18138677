"""How boxes and snapshots come, go and are found, through the hosted product's Python clients."""

import asyncio
import time

import pytest
from upstash_box import BoxError

from tests.clients.conftest import Client, Make


async def gone(client: Client, box_id: str) -> str:
    """What is said of a box that is no more."""
    with pytest.raises(BoxError) as unknown:
        await client(client.Box.get(box_id))
    assert unknown.value.status_code == 404
    return str(unknown.value)


class TestBoxes:
    async def test_one_that_is_made(self, client: Client, make: Make) -> None:
        before = int(time.time())
        box = await make(size="medium", keep_alive=True, runtime="python", name="mine", labels=["a", "b"])
        assert (box.size, box.keep_alive) == ("medium", True)
        (listed,) = await client(client.Box.list())
        assert (listed.id, listed.name, listed.labels, listed.runtime) == (
            box.id,
            "mine",
            ["a", "b"],
            "python",
        )
        assert (listed.status, listed.size) == ("idle", "medium")
        assert before <= listed.created_at <= listed.updated_at <= time.time()

    async def test_found_by_label(self, client: Client, make: Make) -> None:
        red, blue = await make(labels=["red"]), await make(labels=["blue"])
        assert [box.id for box in await client(client.Box.list(label="red"))] == [red.id]
        assert await client(blue.labels.add("red")) == ["blue", "red"]
        assert [box.id for box in await client(client.Box.list(label="red"))] == [red.id, blue.id]
        assert await client(red.labels.remove("red")) == []
        assert await client(blue.labels.list()) == ["blue", "red"]

    async def test_deleted(self, client: Client, make: Make) -> None:
        box = await make(name="mine")
        await client(box.delete())
        assert "it was deleted" in await gone(client, box.id)
        assert await client(client.Box.list()) == []
        assert (await make(name="mine")).id != box.id

    async def test_several_deleted_at_once(self, client: Client, make: Make) -> None:
        boxes = [await make() for _ in range(3)]
        await client(client.Box.delete_boxes(box_ids=[box.id for box in boxes[:2]]))
        assert [box.id for box in await client(client.Box.list())] == [boxes[2].id]
        await client(client.EphemeralBox.delete_boxes(box_ids=boxes[2].id))
        assert await client(client.Box.list()) == []

    async def test_leaving_a_with_block_keeps_it(self, client: Client, make: Make) -> None:
        box = await make()
        if hasattr(box, "__aenter__"):
            async with box:
                pass
        else:
            with box:
                pass
        assert [one.id for one in await client(client.Box.list())] == [box.id]


class TestEphemeral:
    async def test_it_goes_when_its_time_is_over(self, client: Client, make: Make) -> None:
        box = await make(by=client.EphemeralBox.create, ttl=1, name="short")
        assert 0 <= box.expires_at - time.time() + 1 <= 3
        # Its end takes this with it, so there is nothing to poll for.
        run = await client(box.exec.command("sleep 20"))
        assert run.exit_code == 137
        assert "its time was over" in await gone(client, box.id)
        assert "its time was over" in await gone(client, "short")

    async def test_it_has_three_days_at_most(self, client: Client, make: Make) -> None:
        box = await make(by=client.EphemeralBox.create)
        assert abs(box.expires_at - time.time() - 259_200) < 10
        with pytest.raises(BoxError) as refused:
            await make(by=client.EphemeralBox.create, ttl=259_201)
        assert refused.value.status_code == 422
        assert "ttl" in str(refused.value)

    async def test_what_it_can_do(self, client: Client, make: Make) -> None:
        box = await make(by=client.EphemeralBox.create, ttl=60, env={"COLOUR": "blue"}, labels=["brief"])
        assert (await client(box.get_status())) == {"status": "idle"}
        await client(box.exec.command("mkdir below"))
        await client(box.cd("below"))
        assert (await client(box.exec.command("echo $COLOUR; pwd"))).result == "blue\n/workspace/home/below\n"
        snapshot = await client(box.snapshot(name="brief"))
        assert [one.id for one in await client(box.list_snapshots())] == [snapshot.id]
        await client(box.delete_snapshot(snapshot.id))
        as_box = await client(client.EphemeralBox.get_by_name(box.id))
        assert as_box.id == box.id
        await client.close(as_box)
        await client(box.delete())
        assert await client(client.Box.list()) == []


class TestPause:
    async def test_it_stops_and_goes_on(self, client: Client, make: Make) -> None:
        box = await make()
        await client(
            box.exec.command("(while :; do date +%s.%N >> ticks; sleep 0.01; done) > /dev/null 2>&1 &")
        )
        await client(box.exec.command("until [ -s ticks ]; do sleep 0.01; done"))
        await client(box.pause())
        paused_at = time.time()
        assert await client(box.get_status()) == {"status": "paused"}
        for refused in (box.exec.command, box.files.read):
            with pytest.raises(BoxError, match="paused") as error:
                await client(refused("ticks"))
            assert error.value.status_code == 409
        await asyncio.sleep(0.3)  # not for something to happen: for nothing to
        resumed_at = time.time()
        await client(box.resume())
        assert await client(box.get_status()) == {"status": "idle"}
        await client(
            box.exec.command("lines=$(wc -l < ticks); until [ $(wc -l < ticks) -gt $lines ]; do :; done")
        )
        ticks = [float(line) for line in (await client(box.files.read("ticks"))).splitlines()]
        assert [tick for tick in ticks if paused_at < tick < resumed_at] == []
        assert ticks[0] < paused_at
        assert ticks[-1] > resumed_at

    async def test_twice(self, client: Client, make: Make) -> None:
        box = await make()
        await client(box.pause())
        await client(box.pause())
        await client(box.resume())
        await client(box.resume())
        assert (await client(box.exec.command("echo on"))).result == "on\n"


class TestSnapshots:
    async def test_it_holds_the_files(self, client: Client, make: Make) -> None:
        box = await make(name="original", size="medium")
        await client(box.exec.command("echo mine > file; mkdir -p d; ln -s ../file d/link; chmod 750 file"))
        snapshot = await client(box.snapshot(name="first"))
        assert (snapshot.name, snapshot.box_id, snapshot.status) == ("first", box.id, "ready")
        assert snapshot.size_bytes > 0
        await client(box.exec.command("rm file"))
        restored = await make(snapshot.id, by=client.Box.from_snapshot)
        assert restored.size == "medium"
        shown = await client(restored.exec.command("cat d/link; stat -c %a file"))
        assert shown.result == "mine\n750\n"

    async def test_it_outlives_its_box(self, client: Client, make: Make) -> None:
        box = await make()
        await client(box.files.write(path="file", content="kept"))
        snapshot = await client(box.snapshot(name="kept"))
        await client(box.delete())
        restored = await make(snapshot.id, by=client.EphemeralBox.from_snapshot, ttl=60)
        assert await client(restored.files.read("file")) == "kept"

    async def test_listed_and_deleted(self, client: Client, make: Make) -> None:
        box = await make()
        first, second, third = [await client(box.snapshot(name=name)) for name in ("a", "b", "c")]
        assert [one.name for one in await client(box.list_snapshots())] == ["a", "b", "c"]
        await client(box.delete_snapshot(first.id))
        await client(client.Box.delete_snapshots(snapshot_ids=second.id))
        assert [one.id for one in await client(box.list_snapshots())] == [third.id]
        await client(client.Box.delete_snapshots())
        assert await client(box.list_snapshots()) == []
        with pytest.raises(BoxError) as unknown:
            await make(first.id, by=client.Box.from_snapshot)
        assert unknown.value.status_code == 404


async def test_variables_for_every_box_to_come(client: Client, make: Make) -> None:
    await client(client.Box.set_env("COLOUR", "blue"))
    await client(client.Box.set_env("SHAPE", "round"))
    assert await client(client.Box.list_env()) == {"COLOUR": "blue", "SHAPE": "round"}
    box = await make(env={"SHAPE": "flat"})
    assert (await client(box.exec.command('echo "$COLOUR $SHAPE"'))).result == "blue flat\n"
    await client(client.Box.delete_env("COLOUR"))
    assert await client(client.Box.list_env()) == {"SHAPE": "round"}
    await client(client.Box.set_all_env({"SIZE": "1"}))
    assert await client(client.Box.list_env()) == {"SIZE": "1"}
    later = await make()
    assert (await client(later.exec.command('echo "$COLOUR $SHAPE $SIZE"'))).result == "  1\n"
