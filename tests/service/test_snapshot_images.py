"""Snapshots that are images, against an engine that does as it is told."""

import asyncio
import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from box_policy.control.http.answers import ApiError
from box_policy.policy.model import NetworkPolicy
from box_policy.sandbox.docker import identity
from box_policy.sandbox.launcher import SandboxError
from box_policy.service import snapshot_images
from box_policy.service.snapshots import Snapshot, Snapshots

ABOUT: Any = {
    "name": "n",
    "box_id": "box-1",
    "policy": NetworkPolicy.parse("deny-all"),
    "runtime": None,
    "size": "small",
}


class FakeEngine:
    """Images, some of which others need."""

    def __init__(self) -> None:
        self.images: dict[str, Mapping[str, str]] = {}
        self.needed: dict[str, str] = {}
        """By an image, the one that was made of it."""
        self.answers = True

    async def has_image(self, image_id: str) -> bool:
        return image_id in self.images

    async def remove_image(self, image_id: str) -> None:
        if not self.answers:
            await asyncio.Event().wait()
        if self.needed.get(image_id) in self.images:
            raise SandboxError("another image needs it")
        self.images.pop(image_id, None)


class FakeBox:
    """A box that is committed once it may be."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.begun = asyncio.Event()
        self.may = asyncio.Event()
        self.may.set()

    async def commit(self, *, labels: Mapping[str, str]) -> str:
        self.begun.set()
        await self.may.wait()
        image = f"sha256:{len(self._engine.images):064x}"
        self._engine.images[image] = labels
        return image


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(params=["", "kept"])
def directory(request: pytest.FixtureRequest, snapshots: Path) -> Path | None:
    return snapshots if request.param else None


async def taken_from(store: Snapshots, fake: FakeEngine) -> Snapshot:
    return await store.take_image(FakeBox(fake), **ABOUT)


async def close(store: Snapshots) -> None:
    await store.close_images()
    store.close()


async def test_what_is_known_of_one(fake: FakeEngine, directory: Path | None) -> None:
    store = Snapshots(directory, engine=fake)
    taken = await taken_from(store, fake)
    label = taken.id if directory else identity.EPHEMERAL
    assert fake.images == {taken.image: {identity.SNAPSHOT: label}}
    assert store.get(taken.id).fields() | {"status": "ready", "size_bytes": 0} == taken.fields()
    await close(store)
    assert bool(fake.images) == (directory is not None), "an image stays if a directory tells of it"


async def test_nobody_waits_for_it_any_more(fake: FakeEngine, directory: Path | None) -> None:
    store, box = Snapshots(directory, engine=fake), FakeBox(fake)
    box.may.clear()
    taking = asyncio.create_task(store.take_image(box, **ABOUT))
    await box.begun.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    asyncio.get_running_loop().call_soon(box.may.set)
    await close(store)
    assert (fake.images, store.ids()) == ({}, [])
    assert directory is None or [path.name for path in directory.iterdir()] == [".lock"]


async def test_it_can_not_be_described(
    fake: FakeEngine, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Snapshots(snapshots, engine=fake)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store._storage, "keep_image", fail)
    with pytest.raises(ApiError) as caught:
        await taken_from(store, fake)
    assert (caught.value.code, fake.images, store.ids()) == ("storage_full", {}, [])
    await close(store)


async def test_those_that_others_need_go_after_them(fake: FakeEngine, directory: Path | None) -> None:
    store = Snapshots(directory, engine=fake)
    first, second, third = [await taken_from(store, fake) for _ in range(3)]
    fake.needed = {first.image or "": second.image or "", second.image or "": third.image or ""}
    store.delete(first.id)
    store.delete(second.id)
    await store.sweep()
    assert len(fake.images) == 3 and store.ids() == [third.id]
    store.delete(third.id)
    await store.sweep()
    assert fake.images == {}
    await close(store)


async def test_one_is_held_for_the_boxes_that_are_made_of_it(
    fake: FakeEngine, directory: Path | None
) -> None:
    store = Snapshots(directory, engine=fake)
    taken = await taken_from(store, fake)
    async with store.used(taken, "box-2") as archive:
        assert archive is None
        store.delete(taken.id)
        await store.sweep()
        assert len(fake.images) == 1
    await store.sweep()
    assert len(fake.images) == 1, "the box runs"
    await store.release("box-3")
    assert len(fake.images) == 1
    await store.release("box-2")
    await store.release("box-2")
    assert fake.images == {}
    await close(store)


async def test_a_box_that_could_not_be_made_holds_nothing(fake: FakeEngine) -> None:
    store = Snapshots(engine=fake)
    taken = await taken_from(store, fake)
    with pytest.raises(SandboxError):
        async with store.used(taken, "box-2"):
            raise SandboxError("it can't be made")
    store.delete(taken.id)
    await store.sweep()
    assert fake.images == {}
    await close(store)


async def test_an_engine_that_hangs_at_the_end(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot_images, "_FAREWELL", 0.01)
    store = Snapshots(engine=fake)
    taken = await taken_from(store, fake)
    fake.answers = False
    await close(store)
    assert f"the image {taken.image} of the deleted snapshot {taken.id} is left" in caplog.text


class TestInADirectory:
    async def test_a_deletion_is_finished_by_the_next_service(
        self, fake: FakeEngine, snapshots: Path
    ) -> None:
        store = Snapshots(snapshots, engine=fake)
        taken = await taken_from(store, fake)
        store.delete(taken.id)
        store.close()  # and the process ends
        store = Snapshots(snapshots, engine=fake)
        assert store.ids() == []
        await store.begin()
        assert fake.images == {} and [path.name for path in snapshots.iterdir()] == [".lock"]
        await close(store)

    async def test_what_is_missing_is_said(
        self, fake: FakeEngine, snapshots: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Snapshots(snapshots, engine=fake)
        taken = await taken_from(store, fake)
        await close(store)
        fake.images.clear()
        store = Snapshots(snapshots, engine=fake)
        with caplog.at_level(logging.WARNING):
            await store.begin()
        assert f"the image of snapshot {taken.id!r} is gone" in caplog.text
        with pytest.raises(ApiError) as caught:
            async with store.used(taken, "box-2"):
                pass
        assert caught.value.code == "snapshot_unusable"
        await close(store)

    @pytest.mark.parametrize(
        "changed",
        [{"image": None}, {"image": "python:3.13"}, {"id": "snap-other"}, {"more": 1}, {"policy": {}}],
    )
    async def test_what_is_damaged_is_left_alone(
        self, fake: FakeEngine, snapshots: Path, changed: dict[str, Any]
    ) -> None:
        store = Snapshots(snapshots, engine=fake)
        taken = await taken_from(store, fake)
        await close(store)
        description = snapshots / f"{taken.id}.image"
        description.write_text(json.dumps(json.loads(description.read_text()) | changed))
        store = Snapshots(snapshots, engine=fake)
        await store.begin()
        assert store.ids() == [] and len(fake.images) == 1 and description.exists()
        await close(store)

    async def test_an_archive_is_of_another_backend(self, fake: FakeEngine, snapshots: Path) -> None:
        store = Snapshots(snapshots, engine=fake)
        taken = await taken_from(store, fake)
        await close(store)
        store = Snapshots(snapshots)
        assert store.ids() == [taken.id]
        with pytest.raises(ApiError, match="--backend docker") as caught:
            store.delete(taken.id)
        assert caught.value.code == "snapshot_unusable"
        with pytest.raises(ApiError, match="--backend docker"):
            async with store.used(taken, "box-2"):
                pass
        await close(store)
