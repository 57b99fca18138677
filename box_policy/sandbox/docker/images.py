"""Images that are made of boxes.

Each has a name of its own in one repository. The name is what is removed: the engine keeps an image that a
container or another image is made from, and removes it with the last image that is made from it, if it has
no name any more.
"""

from collections.abc import Mapping
from typing import Any

from docker import APIClient

from box_policy.sandbox.docker import identity
from box_policy.sandbox.docker.engine import ConflictError, Engine, NoSuchObjectError
from box_policy.sandbox.launcher import SandboxError

REPOSITORY = "box-policy-snapshot"


def is_snapshot(image: Mapping[str, Any]) -> bool:
    """Whether an image, as the engine describes it, was made of a box."""
    return identity.IMAGE_BOX in ((image.get("Config") or {}).get("Labels") or {})


async def remove(engine: Engine, image_id: str) -> None:
    """Remove an image, or if it was made of a box and is in use, its name. Nothing happens if there is none.

    SandboxError if another image is in use, or a container that doesn't run is made of it.
    """
    try:
        found = await engine.image(image_id, pull=False)
    except NoSuchObjectError:
        return
    names = [name for name in found.get("RepoTags") or () if name.startswith(f"{REPOSITORY}:")]
    for name in names:
        try:
            await _remove(engine, name, force=False)
        except ConflictError:
            # By force, so that the name goes; but the files would go, too, if no container runs on them.
            if not await _is_all_running(engine, image_id):
                raise
            await _remove(engine, name, force=True)
    if not names and is_snapshot(found):
        await remove_unnamed(engine, image_id)
    elif not names:
        await _remove(engine, image_id, force=False)


async def remove_unnamed(engine: Engine, image_id: str) -> bool:
    """Remove an image that was made of a box and has no name any more, if nothing uses it. Whether it did."""
    try:
        found = await engine.image(image_id, pull=False)
        if found.get("RepoTags") or found.get("RepoDigests") or not is_snapshot(found):
            return False
        await _remove(engine, image_id, force=False)
    except SandboxError:
        return False
    return True


async def is_unused(engine: Engine, image_id: str) -> bool:
    """Whether no container is made of an image."""
    return not await _users(engine, image_id)


async def _is_all_running(engine: Engine, image_id: str) -> bool:
    """Whether each container that is made of an image runs."""
    return all(found["State"] in ("running", "paused") for found in await _users(engine, image_id))


async def _users(engine: Engine, image_id: str) -> list[dict[str, Any]]:
    def listed(client: APIClient) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.containers(all=True, filters={"ancestor": image_id})
        return found

    return await engine.call("the containers can't be listed", listed)


async def _remove(engine: Engine, name: str, *, force: bool) -> None:
    def remove(client: APIClient) -> None:
        client.remove_image(name, force=force)

    try:
        await engine.call(f"the image {name} can't be removed", remove)
    except NoSuchObjectError:
        pass
