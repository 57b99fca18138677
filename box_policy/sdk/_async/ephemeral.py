"""A box with an end."""

import builtins
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, Self, Unpack

from box_policy.sdk import options
from box_policy.sdk._async.box import AsyncBox
from box_policy.sdk.types import (
    BoxConnectionOptions,
    BoxGetOptions,
    EphemeralBoxConfig,
    NetworkPolicy,
    NetworkPolicyInput,
    Snapshot,
)
from box_policy.sdk.unsupported import NOT_SENT


class AsyncEphemeralBox:
    """A box that ends by itself, ``ttl`` seconds after it was made."""

    def __init__(self, box: AsyncBox, expires_at: int) -> None:
        """Not called by users; see ``create``."""
        self.id = box.id
        self.expires_at = expires_at
        """When it ends, in seconds since the epoch; 0 if the service doesn't say."""
        self.exec = box.exec
        self.files = box.files
        self.schedule = box.schedule
        self._box = box

    @classmethod
    async def create(cls, **config: Unpack[EphemeralBoxConfig]) -> Self:
        """Make a box that ends by itself; see ``Box.create``."""
        checked = options.ephemeral_creation("EphemeralBox.create", config)
        return await cls._created("/v2/box", checked, {})

    @classmethod
    async def from_snapshot(cls, snapshot_id: str, **config: Unpack[EphemeralBoxConfig]) -> Self:
        """Make one with the files of a snapshot."""
        checked = options.ephemeral_creation("EphemeralBox.from_snapshot", config)
        return await cls._created("/v2/box/from-snapshot", checked, {"snapshot_id": snapshot_id})

    @classmethod
    async def get_by_name(cls, name: str, **options: Unpack[BoxGetOptions]) -> AsyncBox:
        """A box that is there, by its name. As in the official client it is a plain box object."""
        return await AsyncBox.get(name, **options)

    @classmethod
    async def delete_boxes(
        cls, *, box_ids: str | builtins.list[str], **options: Unpack[BoxConnectionOptions]
    ) -> None:
        """Delete boxes by their ids."""
        await AsyncBox.delete_boxes(box_ids=box_ids, **options)

    @classmethod
    async def delete_snapshots(
        cls,
        *,
        snapshot_ids: str | builtins.list[str] | None = None,
        **options: Unpack[BoxConnectionOptions],
    ) -> dict[str, Any]:
        """Delete snapshots by their ids; without any, all that there are."""
        return await AsyncBox.delete_snapshots(snapshot_ids=snapshot_ids, **options)

    @classmethod
    async def _created(cls, path: str, checked: dict[str, Any], more: dict[str, object]) -> Self:
        box, data = await AsyncBox.created_with_data(path, checked, {"ephemeral": True} | more)
        expires_at = data.get("expires_at")
        return cls(box, expires_at if isinstance(expires_at, int) else 0)

    @property
    def cwd(self) -> str:
        """Where programs start, and what relative paths count from."""
        return self._box.cwd

    @property
    def network_policy(self) -> NetworkPolicy:
        """The network policy in force; see ``Box.network_policy``."""
        return self._box.network_policy

    async def refresh_network_policy(self) -> NetworkPolicy:
        """Ask the service which network policy is in force."""
        return await self._box.refresh_network_policy()

    async def update_network_policy(self, policy: NetworkPolicyInput) -> NetworkPolicy:
        """Put another network policy in force, at once; see ``Box.update_network_policy``."""
        return await self._box.update_network_policy(policy)

    def temporary_network_policy(
        self, policy: NetworkPolicyInput
    ) -> AbstractAsyncContextManager[NetworkPolicy]:
        """A context manager with another network policy in force inside."""
        return self._box.temporary_network_policy(policy)

    async def cd(self, path: str) -> None:
        """Change :attr:`cwd`."""
        await self._box.cd(path)

    async def get_status(self) -> dict[str, Any]:
        """The box's ``status``."""
        return await self._box.get_status()

    async def delete(self) -> None:
        """End the box, and everything in it."""
        await self._box.delete()

    async def snapshot(self, *, name: str) -> Snapshot:
        """Keep the files that are in the box now."""
        return await self._box.snapshot(name=name)

    async def list_snapshots(self) -> builtins.list[Snapshot]:
        """The snapshots that were taken of this box."""
        return await self._box.list_snapshots()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete one of them."""
        await self._box.delete_snapshot(snapshot_id)

    async def aclose(self) -> None:
        """Close the connections to the box."""
        await self._box.aclose()

    async def __aenter__(self) -> Self:
        await self._box.__aenter__()
        return self

    async def __aexit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        await self._box.__aexit__(type_, error, traceback)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_SENT)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"
