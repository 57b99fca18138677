"""What concerns the whole service, and no one box."""

import builtins
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Unpack

from box_policy.sdk import answers, options, values
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk.connection import segment
from box_policy.sdk.types import BoxConnectionOptions, BoxData, ListOptions

_VARIABLES = "/v2/box/settings/env"


class AsyncServiceCalls:
    """Class methods of the box."""

    @classmethod
    async def list(cls, **options_: Unpack[ListOptions]) -> builtins.list[BoxData]:
        """Descriptions of all boxes, or of those that have a ``label``."""
        checked = options.listing("Box.list", options_)
        label = checked.get("label")
        async with _service(checked) as transport:
            found = await transport.request("GET", "/v2/box", query={"label": label} if label else None)
        return [answers.model(BoxData, one) for one in answers.as_list(found)]

    @classmethod
    async def delete_boxes(
        cls, *, box_ids: str | builtins.list[str], **options_: Unpack[BoxConnectionOptions]
    ) -> None:
        """Delete boxes by their ids."""
        checked = options.connecting("Box.delete_boxes", options_)
        body = {"ids": options.ids(box_ids, "box_ids")}
        async with _service(checked) as transport:
            await transport.request("DELETE", "/v2/box", body=body)

    @classmethod
    async def delete_snapshots(
        cls,
        *,
        snapshot_ids: str | builtins.list[str] | None = None,
        **options_: Unpack[BoxConnectionOptions],
    ) -> dict[str, Any]:
        """Delete snapshots by their ids; without any, all that there are."""
        checked = options.connecting("Box.delete_snapshots", options_)
        everything = snapshot_ids is None
        body = {} if everything else {"ids": options.ids(snapshot_ids, "snapshot_ids")}
        async with _service(checked) as transport:
            answer = await transport.request(
                "DELETE", "/v2/box/snapshots", body=body, query={"all": "true"} if everything else None
            )
        return answers.as_object(answer)

    @classmethod
    async def set_env(cls, key: str, value: str, **options_: Unpack[BoxConnectionOptions]) -> None:
        """Set a variable of every box that is made from now on."""
        checked = options.connecting("Box.set_env", options_)
        path = f"{_VARIABLES}/{segment(key, 'name of a variable')}"
        async with _service(checked) as transport:
            await transport.request("PUT", path, body={"value": values.text(value, "value")})

    @classmethod
    async def list_env(cls, **options_: Unpack[BoxConnectionOptions]) -> dict[str, str]:
        """The variables of every box that is made from now on."""
        checked = options.connecting("Box.list_env", options_)
        async with _service(checked) as transport:
            answer = answers.as_object(await transport.request("GET", _VARIABLES))
        return answers.as_object(answer.get("env_vars", answer))

    @classmethod
    async def delete_env(cls, key: str, **options_: Unpack[BoxConnectionOptions]) -> None:
        """Delete one of them."""
        checked = options.connecting("Box.delete_env", options_)
        path = f"{_VARIABLES}/{segment(key, 'name of a variable')}"
        async with _service(checked) as transport:
            await transport.request("DELETE", path)

    @classmethod
    async def set_all_env(cls, vars: dict[str, str], **options_: Unpack[BoxConnectionOptions]) -> None:
        """Replace them all."""
        checked = options.connecting("Box.set_all_env", options_)
        body = {"env_vars": values.environment(vars, "vars") or {}}
        async with _service(checked) as transport:
            await transport.request("PUT", _VARIABLES, body=body)


@asynccontextmanager
async def _service(checked: Mapping[str, Any]) -> AsyncIterator[AsyncTransport]:
    transport = AsyncTransport(checked)
    try:
        yield transport
    finally:
        await transport.aclose()
