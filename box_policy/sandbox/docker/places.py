"""Whether an image leaves alone what is a box's own: its runtime, its socket, the host directories."""

import posixpath
from collections.abc import Mapping
from typing import Any

from box_policy.sandbox.docker.container import Image
from box_policy.sandbox.docker.engine import Engine
from box_policy.sandbox.launcher import SandboxError

_SYSTEM = ("/dev", "/proc", "/sys")


def check_volumes(image: Image, config: Mapping[str, Any]) -> None:
    """SandboxError if the image has a volume where the container with this ``config`` has what is its own.

    One below the runtime, and the image's code is pid 1; one in a work directory, and the engine makes
    directories there.
    """
    for volume in _volumes(image):
        _check(image, volume, volume, _targets(config))


async def check_links(engine: Engine, container: str, image: Image, config: Mapping[str, Any]) -> None:
    """SandboxError if links of the image lead elsewhere. To be asked before the container is started.

    With /workspace -> /dev the engine would make devices in the work directory, and remove a file of it.
    """
    targets = _targets(config)
    for target in targets:
        real = await engine.real_path(container, target)
        if real != target:
            raise SandboxError(f"the image {image.name} can't be used: its {target} is a link to {real}")
    for volume in _volumes(image):
        _check(image, volume, await engine.real_path(container, volume), targets)


def _targets(config: Mapping[str, Any]) -> list[str]:
    return [mount["Target"] for mount in config["HostConfig"]["Mounts"]]


def _volumes(image: Image) -> list[str]:
    return [posixpath.normpath(f"/{path.lstrip('/')}") for path in image.config.get("Volumes") or ()]


def _check(image: Image, volume: str, place: str, targets: list[str]) -> None:
    # At a target itself what is mounted there takes its place.
    if place in targets and place == volume:
        return
    if place == "/" or any(f"{place}/".startswith(f"{own}/") for own in (*targets, *_SYSTEM)):
        raise SandboxError(
            f"the image {image.name} can't be used: it has a volume at {volume}, where boxes have their own"
        )
