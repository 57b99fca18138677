"""What dead launchers have left in an engine.

A box's container ends when its launcher does, as its pid 1 sees the connection end. Not so one that is
paused, or was never started; nor do images go by themselves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from docker import APIClient

from box_policy.sandbox.docker import door, identity, images, paths, runtime_store
from box_policy.sandbox.docker.engine import Engine
from box_policy.sandbox.launcher import SandboxError

_OLD = 600.0
"""Seconds after which a container that doesn't run is taken for left, if its launcher can't be seen."""
_OLD_RUNTIME = 86_400.0
"""Seconds after which the runtime of another version is taken for no longer used."""
_RUNS = ("running", "paused", "restarting")


async def reap(address: str | None = None, *, dry_run: bool = False) -> list[str]:
    """Remove what dead launchers have left in the engine at ``address``; say what, in words.

    With ``dry_run`` say so only.

    Containers, also paused ones and such as were never started; temporary images; and interpreters for
    boxes that no box uses, a day after they were made; and directories for sockets. A launcher of this
    pid namespace is dead if its process is gone. Of one in another nothing can be known: its container
    goes if it doesn't run and is older than ten minutes. SandboxError if there is no engine.
    """
    engine = await Engine.connect(address)
    try:
        return await reap_with(engine, dry_run=dry_run)
    finally:
        await engine.close()


async def reap_with(engine: Engine, *, dry_run: bool = False) -> list[str]:
    """As ``reap``, with the connection there is."""
    removed = []
    for sweep in (_containers, _images, _runtimes):
        async for words in sweep(engine, dry_run):
            removed.append(words)
    left = await asyncio.to_thread(door.remove_left, dry_run=dry_run)
    return [*removed, *(f"directory {path}" for path in left)]


async def _containers(engine: Engine, dry_run: bool) -> AsyncIterator[str]:
    for found in await _listed(engine, identity.LAUNCHER):
        labels = found["Labels"]
        if not labels[identity.LAUNCHER] or not _is_ours(found):
            continue  # somebody else's, of an image that has such a label
        lives = identity.may_live(labels[identity.LAUNCHER])
        if not identity.is_of_this_boot(labels[identity.LAUNCHER]) and found["State"] in _RUNS:
            continue  # nothing runs on from one boot to the next: it is another machine's engine
        is_left = found["State"] not in _RUNS and _age(found) > _OLD
        if lives is False or (lives is None and is_left):
            try:
                if not dry_run:
                    await engine.remove(found["Id"])
            except SandboxError:
                continue  # somebody else is at it, or the engine can't; the next sweep sees
            box = labels.get(identity.BOX, "unknown")
            yield f"container {found['Id'][:12]} of box {box}, which was {found['State']}"


def _is_ours(found: Mapping[str, Any]) -> bool:
    """Whether a container has the runtime. Its labels may be those of its image; its mounts are not."""
    return any(
        mount.get("Destination") == paths.RUNTIME
        and str(mount.get("Name") or "").startswith(f"{runtime_store.REPOSITORY}-")
        for mount in found.get("Mounts") or ()
    )


async def _images(engine: Engine, dry_run: bool) -> AsyncIterator[str]:
    for found in await _images_with(engine, f"{identity.SNAPSHOT}={identity.EPHEMERAL}"):
        # Not what somebody else has made of one.
        names = found.get("RepoTags") or ()
        is_ours = all(name.startswith(f"{images.REPOSITORY}:") for name in names)
        if is_ours and identity.may_live(found["Labels"].get(identity.IMAGE_LAUNCHER, "")) is False:
            try:
                if not dry_run:
                    await images.remove(engine, found["Id"])
            except SandboxError:
                continue
            yield f"temporary image {_short(found)}"
    for found in await _images_with(engine, identity.IMAGE_BOX, dangling="true"):
        remove = images.is_unused if dry_run else images.remove_unnamed
        if await remove(engine, found["Id"]):
            yield f"image {_short(found)}, which nothing uses any more"


def _short(found: Mapping[str, Any]) -> str:
    return str(found["Id"]).removeprefix("sha256:")[:12]


async def _images_with(engine: Engine, label: str, **filters: str) -> list[dict[str, Any]]:
    def listed(client: APIClient) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.images(filters={"label": label, **filters})
        return found

    return await engine.call("the images can't be listed", listed)


async def _runtimes(engine: Engine, dry_run: bool) -> AsyncIterator[str]:
    for found in await _listed(engine, identity.RUNTIME):
        version = found["Labels"][identity.RUNTIME]
        stored = runtime_store.names(version)
        if found["Names"] != [f"/{stored.volume}"]:
            continue  # of an image that merely has the label
        users = await _listed(engine, identity.LAUNCHER, volume=stored.volume)
        if users or _age(found) < _OLD_RUNTIME:
            continue
        try:
            if not dry_run:
                await engine.remove(found["Id"])
                await engine.remove_volume(stored.volume)
                await images.remove(engine, stored.image)
        except SandboxError:
            continue
        yield f"interpreter for boxes {version}"


async def _listed(engine: Engine, label: str, **filters: str) -> list[dict[str, Any]]:
    def listed(client: APIClient) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.containers(all=True, filters={"label": label, **filters})
        return found

    return await engine.call("the containers can't be listed", listed)


def _age(found: Mapping[str, Any]) -> float:
    return time.time() - float(found["Created"])
