"""A box that is a container, seen from the caller's event loop."""

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from box_policy.sandbox.docker import container, identity, images
from box_policy.sandbox.docker.container import Image
from box_policy.sandbox.docker.engine import Engine
from box_policy.sandbox.launcher import BoxPausedError, BoxSpec, Listeners, SandboxError
from box_policy.sandbox.namespaces.messages import Message
from box_policy.sandbox.namespaces.served_box import BoxProgram, ServedBox, taken

_PAUSED = "the box is paused"


class DockerBox(ServedBox):
    """A box. ``control`` leads to its pid 1; ``container`` is the container's id.

    ``make_listeners`` is called with a descriptor of the box's network namespace.
    """

    def __init__(
        self,
        spec: BoxSpec,
        control: socket.socket,
        engine: Engine,
        container_id: str,
        image: Image,
        make_listeners: Callable[[int], Awaitable[Listeners]],
    ) -> None:
        self._engine = engine
        self.container = container_id
        self.image = image
        """What it was made of."""
        self._make_listeners = make_listeners
        self._network: asyncio.Task[None] | None = None
        self._burial: asyncio.Task[None] | None = None
        self._is_removed = False
        self._turn = asyncio.Lock()
        """Pausing, resuming and committing, one after the other."""
        super().__init__(spec, control)
        self._limits = MappingProxyType(container.describe_limits(spec, engine.info))

    async def pause(self) -> None:
        """Stop every process of the box, pid 1 too: by the freezer."""
        async with self._turn:
            self._next_number()
            if self.is_paused:
                return
            self.is_paused = True
            # Those under way would be told of only once it goes on; what starts after all is killed then.
            for waiting in self._starting.values():
                if not waiting.done():
                    waiting.set_exception(BoxPausedError(_PAUSED))
            try:
                what = "the box can't be paused"
                await self._engine.settle(what, lambda client: client.pause(self.container))
            except SandboxError:
                self.is_paused = False
                raise

    async def resume(self) -> None:
        """Let the processes go on."""
        async with self._turn:
            self._next_number()
            if not self.is_paused:
                return
            what = "the box can't go on"
            await self._engine.settle(what, lambda client: client.unpause(self.container))
            self.is_paused = False

    async def commit(self, *, labels: Mapping[str, str]) -> str:
        """Make an image of the box's file system as it is; return the image's id.

        The box stands still meanwhile. What is mounted in it is no part of the image: a ``workdir``, the
        ``read_only`` directories, an image's own volumes. SandboxError if the box has ended, or it fails.
        """
        async with self._turn:
            self._next_number()
            config = dict(self.image.config)
            config["Labels"] = {
                **(config.get("Labels") or {}),
                **labels,
                identity.IMAGE_BOX: self.id,
                identity.IMAGE_LAUNCHER: identity.own(),
                # Else the engine would take those of the container, as it does below.
                identity.BOX: "",
                identity.LAUNCHER: "",
            }
            for name in ("Entrypoint", "Cmd"):
                config[name] = config.get(name) or []
            config["User"] = self.image.user or "0:0"
            tag = secrets.token_hex(16)
            return await self._engine.commit(self.container, images.REPOSITORY, tag, config)

    async def close(self) -> None:
        """Kill every process in the box and close its listeners. Repeating it does nothing."""
        if self._network is not None:
            self._network.cancel()
        if self._listeners is not None:
            self._listeners.close()
        self._close_channel()
        await self.closed()

    async def _start(self, request: Message, fds: Sequence[int], name: str) -> BoxProgram:
        if self.is_paused and self._channel_open:
            raise BoxPausedError(_PAUSED)
        return await super()._start(request, fds, name)

    def _handle(self, message: Message, fds: list[int]) -> None:
        if message["event"] == "network" and self._network is None:
            self._network = asyncio.create_task(self._connect(taken(fds, 1)[0]))
        else:
            super()._handle(message, fds)

    async def _connect(self, namespace: int) -> None:
        try:
            listeners = await self._make_listeners(namespace)
        except SandboxError as error:
            self._failure = str(error)
            self._close_channel()
        except Exception as error:
            self._failure = f"the box's network can't be made: {error!r}"
            self._close_channel()
        else:
            self._listeners = listeners
            self._check_ready()
            if not self._channel_open:
                listeners.close()
        finally:
            os.close(namespace)

    def _on_end(self) -> None:
        if self._burial is None:
            self._burial = asyncio.create_task(self._bury())
        super()._on_end()

    async def _bury(self) -> None:
        try:
            # pid 1 ends with its channel, unless it is frozen, or taken; and then the engine removes it.
            await self._engine.remove(self.container)
        except SandboxError:
            # No engine any more, or a hanging one. It has nobody to talk to and no network.
            pass
        self._is_removed = True
        self._check_gone()

    def _abandon(self) -> None:
        pass  # the end of the channel is enough

    def _has_ended(self) -> bool:
        return self._is_removed
