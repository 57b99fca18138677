"""A box: a sandbox for code that nobody vouches for, with a network policy."""

import builtins
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, Self, Unpack

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import answers, options, policies
from box_policy.sdk._async.creation import box_path, created
from box_policy.sdk._async.exec import AsyncExecNamespace
from box_policy.sdk._async.files import AsyncFilesNamespace
from box_policy.sdk._async.labels import AsyncLabelsNamespace
from box_policy.sdk._async.policy import AsyncPolicyControl
from box_policy.sdk._async.service import AsyncServiceCalls
from box_policy.sdk._async.snapshots import AsyncSnapshots
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk._async.unsupported import AsyncUnsupportedCalls
from box_policy.sdk._async.workspace import AsyncWorkspace
from box_policy.sdk.connection import segment
from box_policy.sdk.errors import BoxConnectionError, BoxError, BoxNotFoundError
from box_policy.sdk.types import (
    BoxConfig,
    BoxGetOptions,
    NetworkPolicy,
    NetworkPolicyInput,
    Snapshot,
)
from box_policy.sdk.unsupported import NOT_SENT, namespace


class AsyncBox(AsyncServiceCalls, AsyncUnsupportedCalls):
    """A box. ``create`` makes one, ``get`` finds one that is there.

    As a context manager it closes its connections at the end; with ``delete_on_exit=True`` it is deleted.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        transport: AsyncTransport,
        policy: PolicyModel,
        *,
        delete_on_exit: bool = False,
    ) -> None:
        """Not called by users; see ``create`` and ``get``."""
        at = box_path(data)
        workspace = AsyncWorkspace(transport, at)
        self.id: str = answers.text(data, "id")
        self.size: str = answers.text(data, "size") or "small"
        self.keep_alive = bool(data.get("keep_alive"))
        self.delete_on_exit = delete_on_exit
        """Whether the box is deleted at the end of its ``with`` block."""
        self.exec = AsyncExecNamespace(transport, at, workspace)
        self.files = AsyncFilesNamespace(transport, at, workspace)
        self.labels = AsyncLabelsNamespace(transport, at)
        self.agent = namespace("agent")
        self.browser = namespace("browser")
        self.git = namespace("git")
        self.schedule = namespace("schedule")
        self.skills = namespace("skills")
        self._transport = transport
        self._at = at
        self._workspace = workspace
        self._policy = AsyncPolicyControl(transport, at, policy)
        self._snapshots = AsyncSnapshots(transport, at)

    @classmethod
    async def create(cls, **config: Unpack[BoxConfig]) -> Self:
        """Make a box. Its network policy is in force before anything runs in it.

        Without a ``base_url``, given or in the environment, this process starts a service of its own.

        Args:
            network_policy: in any form. Default: the service's own, which is ``allow-all`` unless its
                operator has chosen another.
            name: str, by which ``Box.get`` finds it. Default: none.
            labels: list of str, by which ``Box.list(label=...)`` finds it. Default: none.
            runtime: str, such as ``python``: demands that its programs are there. Default: no demand.
            image: str, such as ``python:3.13``: a container image, in place of a runtime. With a ``base_url``
                one that its operator allows. Default: the service's own.
            backend: ``namespaces`` (boxes with this machine's programs) or ``docker`` (containers), for the
                service of this process's own. Default: from ``BOX_POLICY_BACKEND``; ``docker`` if there is
                an image, given or in ``BOX_POLICY_IMAGE``; else ``namespaces``. Other calls that are to
                find the box take it as well.
            size: ``small``, ``medium`` or ``large``: bounds of memory, disk, processors. Default: ``small``.
            env: dict of str to str, variables of every program in it. Default: none.
            ttl: int, seconds after which it ends by itself, at most 259,200. Default: never.
            keep_alive: bool, it can't be paused. Default: False.
            delete_on_exit: bool, the end of its ``with`` block deletes it. Default: False.
            timeout: milliseconds that the service has for an answer; None: no limit. Default: 600,000.
            base_url: str, ``http://host:port``, ``https://host`` or ``unix:///path``. Default: from
                ``BOX_POLICY_BASE_URL`` or ``UPSTASH_BOX_BASE_URL``, else a service of this process's own.
            api_key: str, needed with an ``http`` address. Default: from ``BOX_POLICY_API_KEY`` or
                ``UPSTASH_BOX_API_KEY``.
            debug: bool, each request's method and path goes to the logger ``box_policy.sdk``, at level DEBUG.
                Default: False.

        Raises:
            TypeError: there is no such option.
            PolicyValidationError: the network policy can't be accepted.
            BoxUnsupportedError: the option is not supported here.
            BoxError: a value is of a wrong type, the box can't be made, or the service doesn't confirm its
                policy.
        """
        checked = options.creation("Box.create", config)
        box, _ = await cls.created_with_data("/v2/box", checked, {})
        return box

    @classmethod
    async def from_snapshot(cls, snapshot_id: str, **config: Unpack[BoxConfig]) -> Self:
        """Make a box with the files of a snapshot; else as ``create``."""
        checked = options.creation("Box.from_snapshot", config)
        more: dict[str, object] = {"snapshot_id": snapshot_id}
        box, _ = await cls.created_with_data("/v2/box/from-snapshot", checked, more)
        return box

    @classmethod
    async def get(cls, box_id: str, **options_: Unpack[BoxGetOptions]) -> Self:
        """A box that is there, by its id or its name.

        Raises:
            BoxNotFoundError: there is none such.
        """
        checked = options.getting("Box.get", options_)
        path = f"/v2/box/{segment(box_id, 'id or name of a box')}"
        transport = AsyncTransport(checked)
        try:
            data = answers.as_object(await transport.request("GET", path))
            return cls(
                data,
                transport,
                policies.in_force(data),
                delete_on_exit=bool(checked.get("delete_on_exit")),
            )
        except BaseException:
            await transport.aclose()
            raise

    @classmethod
    async def get_by_name(cls, name: str, **options: Unpack[BoxGetOptions]) -> Self:
        """A box that is there, by its name."""
        return await cls.get(name, **options)

    @classmethod
    async def created_with_data(
        cls, path: str, checked: Mapping[str, Any], more: Mapping[str, object]
    ) -> tuple[Self, dict[str, Any]]:
        """A new box, and all that the service says of it. Not called by users."""
        data, transport = await created(path, checked, more)
        delete_on_exit = bool(checked.get("delete_on_exit"))
        return cls(data, transport, policies.in_force(data), delete_on_exit=delete_on_exit), data

    @property
    def cwd(self) -> str:
        """Where programs start, and what relative paths count from."""
        return self._workspace.cwd

    @property
    def network_policy(self) -> NetworkPolicy:
        """The network policy in force, in a copy of its own.

        ``Box`` asks the service. ``AsyncBox`` can't, in a property: it shows what the service said last,
        and ``refresh_network_policy`` asks.

        Raises:
            BoxNotFoundError: the box was deleted.
        """
        self._transport.check_there()
        return self._policy.shown()

    async def refresh_network_policy(self) -> NetworkPolicy:
        """Ask the service which network policy is in force.

        Raises:
            BoxError: it doesn't say.
        """
        return await self._policy.refresh()

    async def update_network_policy(self, policy: NetworkPolicyInput) -> NetworkPolicy:
        """Put another network policy in force, at once.

        Connections that it doesn't allow are cut; the others go on.

        Returns:
            What is in force now.

        Raises:
            PolicyValidationError: the policy can't be accepted; the one before is still in force.
            BoxError: the change is refused, or the service doesn't confirm it.
        """
        return await self._policy.update(policy)

    def temporary_network_policy(
        self, policy: NetworkPolicyInput
    ) -> AbstractAsyncContextManager[NetworkPolicy]:
        """A context manager with another network policy in force inside; its value is that policy.

        At the end, however that comes, the policy from before is put in force again.

        Raises:
            PolicyValidationError: the policy can't be accepted; nothing has changed.
            BoxError: one of the changes failed. The message says which policy is in force.
        """
        return self._policy.temporary(policy)

    async def cd(self, path: str) -> None:
        """Change :attr:`cwd`.

        Raises:
            BoxError: there is no such directory.
        """
        await self._workspace.cd(path)

    async def get_status(self) -> dict[str, Any]:
        """The box's ``status``: ``idle``, ``running`` or ``paused``."""
        return answers.as_object(await self._transport.request("GET", f"{self._at}/status"))

    async def pause(self) -> None:
        """Stop everything in the box, until ``resume``."""
        self._transport.check_open()
        if self.keep_alive:
            raise BoxError("Keep-alive boxes cannot be paused")
        await self._transport.request("POST", f"{self._at}/pause")

    async def resume(self) -> None:
        """Let everything go on."""
        await self._transport.request("POST", f"{self._at}/resume")

    async def delete(self) -> None:
        """End the box, and everything in it, and close the connections to it.

        Whatever is asked of the object afterwards raises BoxNotFoundError.

        Raises:
            BoxNotFoundError: there is no such box any more.
        """
        await self._transport.request("DELETE", self._at)
        self._transport.is_deleted = True
        await self.aclose()

    async def snapshot(self, *, name: str) -> Snapshot:
        """Keep the files that are in the box now. ``from_snapshot`` makes boxes with them."""
        return await self._snapshots.take(name)

    async def list_snapshots(self) -> builtins.list[Snapshot]:
        """The snapshots that were taken of this box."""
        return await self._snapshots.all()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete one of them."""
        await self._snapshots.delete(snapshot_id)

    async def aclose(self) -> None:
        """Close the connections to the box. The box itself goes on."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        self._transport.check_there()
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if self.delete_on_exit:
                await self._delete_if_there(error)
        finally:
            await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_SENT)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def _delete_if_there(self, error: BaseException | None) -> None:
        if self._transport.is_closed:
            return  # by delete(), or somebody who wanted it to stay
        try:
            await self._transport.request("DELETE", self._at)
            self._transport.is_deleted = True
        except BoxNotFoundError:
            pass
        except BoxError as failure:
            service = self._transport.target.service
            if isinstance(failure, BoxConnectionError) and service is not None and service.has_ended():
                return  # and the box with it
            if error is None:
                raise
            error.add_note(f"the box {self.id} could not be deleted: {failure}")
