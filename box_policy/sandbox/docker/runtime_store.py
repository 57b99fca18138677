"""The runtime in the engine: an image, and the volume made from it that boxes mount."""

import asyncio
import contextlib
import functools
from dataclasses import dataclass

from box_policy.sandbox.docker import container, identity, runtime
from box_policy.sandbox.docker.engine import ConflictError, Engine, NoSuchObjectError
from box_policy.sandbox.launcher import SandboxError

REPOSITORY = "box-policy-runtime"
_WAIT = 0.1
_WAITS = 600


@dataclass(frozen=True, slots=True)
class StoredRuntime:
    """Its names in the engine."""

    image: str
    volume: str


def names(version: str) -> StoredRuntime:
    """Those of the runtime with this version."""
    return StoredRuntime(f"{REPOSITORY}:{version}", f"{REPOSITORY}-{version}")


async def ensure(engine: Engine) -> StoredRuntime:
    """Bring this interpreter's runtime into the engine, if it isn't there. SandboxError if that fails."""
    version = await asyncio.to_thread(_version)
    stored = names(version)
    try:
        await engine.image(stored.image, pull=False)
    except NoSuchObjectError:
        await _import(engine, version)
    await _fill(engine, version)
    return stored


@functools.cache
def _version() -> str:
    return runtime.collect().version


async def _import(engine: Engine, version: str) -> None:
    tar = await asyncio.to_thread(lambda: runtime.collect().tar())
    # Others that do it at the same time get the same image.
    await engine.call(
        "the image of the interpreter for boxes can't be made",
        lambda client: client.import_image_from_data(
            tar, REPOSITORY, version, changes=[f"LABEL {identity.RUNTIME}={version}"]
        ),
    )


async def _fill(engine: Engine, version: str) -> None:
    """Fill the volume, once.

    The engine copies the image's directory into an empty volume while it makes a container, and tells of
    the container only when it is made. So its name, of which there is one, keeps two launchers from copying
    at the same time, and that it is there says that the volume is whole.
    """
    stored = names(version)
    for _ in range(_WAITS):
        if await _is_there(engine, stored.volume):
            return
        # Left half filled by an engine that died: not where a box uses it, or another one fills it.
        with contextlib.suppress(NoSuchObjectError, ConflictError):
            await engine.remove_volume(stored.volume)
        config = container.runtime_container(version, stored.image, stored.volume)
        try:
            await engine.create(config, stored.volume)
            return
        except ConflictError:
            await asyncio.sleep(_WAIT)  # another launcher is at it
    raise SandboxError(f"the volume {stored.volume} was not made within {_WAIT * _WAITS:.0f} seconds")


async def _is_there(engine: Engine, name: str) -> bool:
    try:
        await engine.call("", lambda client: client.inspect_container(name))
    except NoSuchObjectError:
        return False
    return True
