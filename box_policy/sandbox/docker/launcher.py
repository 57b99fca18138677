"""Boxes that are containers of a Docker engine on this machine.

The engine makes the container, without a network; pid 1 in it is this package's own, and speaks with this
process as the pid 1 of a namespace box does. Programs, files and signals never go through the engine.
"""

import asyncio
import contextlib
import secrets
import shutil
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from box_policy.sandbox.docker import (
    container,
    images,
    listeners,
    places,
    reaper,
    runtime_store,
    seccomp_profile,
)
from box_policy.sandbox.docker.box import DockerBox
from box_policy.sandbox.docker.container import Image
from box_policy.sandbox.docker.door import Door, make_parent
from box_policy.sandbox.docker.engine import Engine, NoSuchObjectError
from box_policy.sandbox.docker.paths import RUNTIME
from box_policy.sandbox.docker.runtime_store import StoredRuntime
from box_policy.sandbox.launcher import BoxSpec, Listeners, SandboxError
from box_policy.sandbox.namespaces import limits, messages, seccomp
from box_policy.sandbox.namespaces.filesystem import own_directories
from box_policy.sandbox.namespaces.messages import MessageError
from box_policy.sandbox.namespaces.served_box import START_TIMEOUT


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all boxes of a launcher need."""

    engine: Engine
    runtime: StoredRuntime
    doors: Path
    seccomp: str

    async def close(self) -> None:
        """Let go of it."""
        shutil.rmtree(self.doors, ignore_errors=True)
        await self.engine.close()


class DockerLauncher:
    """Starts boxes in an engine. Use it in one event loop, and close it there."""

    def __init__(self, image: str | None = None, address: str | None = None) -> None:
        """``image`` is that of boxes whose spec names none. ``address`` is the engine's (unix:///...); by
        default what DOCKER_HOST or Docker's current context says."""
        self._image = image
        self._address = address
        self._setting: asyncio.Task[_Setting] | None = None
        self._boxes: set[DockerBox] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    async def create(self, spec: BoxSpec) -> DockerBox:
        """Start a box. It runs nothing yet. SandboxError if this machine, or the engine, can't."""
        name = _checked(spec, self._image)
        setting = await self._set()
        found = await setting.engine.image(name, pull=True)
        image = Image(name, str(found["Id"]), found.get("Config") or {})
        try:
            box = await self._create(spec, image, setting)
        except SandboxError as error:
            if f"{RUNTIME}/ld.so" not in str(error):
                raise
            # Somebody has removed the volume (docker volume prune), so there is no interpreter.
            await runtime_store.ensure(setting.engine)
            box = await self._create(spec, image, setting)
        self._boxes.add(box)
        if self._closed:
            await box.close()
            raise SandboxError("the launcher is closed")
        self._in_background(self._forget_when_gone(box, setting.engine))
        await box.ready()
        return box

    async def has_image(self, image_id: str) -> bool:
        """Whether the engine has an image, and it is none that has been removed but for what uses it."""
        try:
            found = await (await self._set()).engine.image(image_id, pull=False)
        except NoSuchObjectError:
            return False
        return bool(found.get("RepoTags")) or not images.is_snapshot(found)

    async def remove_image(self, image_id: str) -> None:
        """Remove an image that was made of a box; nothing happens if there is none, or it is another.

        It may be in use by others: it is gone as far as anyone can see, and its files are removed with what
        uses them last. SandboxError if the engine can't.
        """
        engine = (await self._set()).engine
        try:
            found = await engine.image(image_id, pull=False)
        except NoSuchObjectError:
            return
        if images.is_snapshot(found):  # whatever a snapshot's description says
            await images.remove(engine, image_id)

    async def close(self) -> None:
        """Close every box of this launcher and stop what serves it."""
        self._closed = True
        await asyncio.gather(*(box.close() for box in tuple(self._boxes)))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._setting is not None:
            (setting,) = await asyncio.gather(self._setting, return_exceptions=True)
            if isinstance(setting, _Setting):
                await setting.close()

    async def _create(self, spec: BoxSpec, image: Image, setting: _Setting) -> DockerBox:
        engine = setting.engine
        request = _request(spec, image)
        door = Door(setting.doors, secrets.token_hex(8))
        try:
            config = container.box_container(
                spec, image, setting.runtime.volume, door.directory, setting.seccomp, engine.socket
            )
            places.check_volumes(image, config)
            container_id = await _made(engine, config)
            try:
                await places.check_links(engine, container_id, image, config)
                await engine.start(container_id)
                control = await door.accept(START_TIMEOUT, lambda: engine.is_running(container_id))
                _tell(control, request)
            except BaseException:
                with contextlib.suppress(SandboxError):
                    await asyncio.shield(engine.remove(container_id))
                raise
        finally:
            door.close()

        async def make_listeners(namespace: int) -> Listeners:
            return await _listeners(setting, container_id, namespace)

        return DockerBox(spec, control, engine, container_id, image, make_listeners)

    async def _set(self) -> _Setting:
        if self._closed:
            raise SandboxError("the launcher is closed")
        if self._setting is None or (self._setting.done() and self._setting.exception() is not None):
            self._setting = asyncio.create_task(self._prepare())
        return await asyncio.shield(self._setting)

    async def _prepare(self) -> _Setting:
        if sys.platform != "linux" or seccomp.native_architecture() is None:
            raise SandboxError("Docker boxes need Linux on x86_64 or aarch64, and an engine on this machine")
        engine = await Engine.connect(self._address)
        setting = _Setting(
            engine, await runtime_store.ensure(engine), make_parent(), seccomp_profile.profile()
        )
        self._in_background(reaper.reap_with(engine))
        return setting

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forget_when_gone(self, box: DockerBox, engine: Engine) -> None:
        await box.closed()
        self._boxes.discard(box)
        await images.remove_unnamed(engine, box.image.id)


def _checked(spec: BoxSpec, default_image: str | None) -> str:
    """The name of the image. SandboxError for a box that can't be a container."""
    limits.check_host_name(spec.hostname)
    limits.request(spec.limits)
    if spec.rootfs is not None:
        raise SandboxError("a Docker box has the file system of its image, not of a root directory")
    name = spec.image or default_image
    if not name:
        raise SandboxError("no image is named for a Docker box")
    return name


def _request(spec: BoxSpec, image: Image) -> messages.Message:
    """What pid 1 is told of the box."""
    architecture = seccomp.native_architecture()
    if architecture is None:
        raise SandboxError("this processor has no filter of system calls")
    filters = [seccomp.assemble(rules, architecture) for rules in (seccomp.init_rules(), seccomp.box_rules())]
    return {
        "user": image.user,
        "env": image.environment,
        "directories": own_directories(spec),
        "makes_workspace": spec.workdir is None,
        "filters": [program.hex() for program in filters],
    }


async def _made(engine: Engine, config: dict[str, Any]) -> str:
    """Make a container. It is removed again if the caller is cancelled, who then never learns its id."""
    creation = asyncio.ensure_future(engine.create(config))
    try:
        return await asyncio.shield(creation)
    except asyncio.CancelledError:
        with contextlib.suppress(SandboxError):
            await engine.remove(await creation)
        raise


def _tell(control: socket.socket, request: messages.Message) -> None:
    try:
        messages.send(control, request)
    except (OSError, MessageError) as error:
        control.close()
        raise SandboxError(f"the box can't be told what it is: {error}") from None


async def _listeners(setting: _Setting, container_id: str, namespace: int) -> Listeners:
    try:
        return await listeners.from_within(namespace)
    except OSError:
        return await listeners.by_helper(setting.engine, container_id, setting.runtime, setting.doors)
