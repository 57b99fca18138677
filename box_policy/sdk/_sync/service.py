# Written by scripts/make_sync from _async/service.py: change that one.
"""What concerns the whole service, and no one box."""

import builtins
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from box_policy.sdk import answers, options, values
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk.connection import segment
from box_policy.sdk.types import BoxConnectionOptions, BoxData, ListOptions

_VARIABLES = "/v2/box/settings/env"


class ServiceCalls:
    """Class methods of the box."""

    @classmethod
    def list(cls, **options_: Unpack[ListOptions]) -> builtins.list[BoxData]:
        """Descriptions of all boxes, or of those that have a ``label``."""
        checked = options.listing("Box.list", options_)
        label = checked.get("label")
        with _service(checked) as transport:
            found = transport.request("GET", "/v2/box", query={"label": label} if label else None)
        return [answers.model(BoxData, one) for one in answers.as_list(found)]

    @classmethod
    def delete_boxes(
        cls, *, box_ids: str | builtins.list[str], **options_: Unpack[BoxConnectionOptions]
    ) -> None:
        """Delete boxes by their ids."""
        checked = options.connecting("Box.delete_boxes", options_)
        body = {"ids": options.ids(box_ids, "box_ids")}
        with _service(checked) as transport:
            transport.request("DELETE", "/v2/box", body=body)

    @classmethod
    def delete_snapshots(
        cls,
        *,
        snapshot_ids: str | builtins.list[str] | None = None,
        **options_: Unpack[BoxConnectionOptions],
    ) -> dict[str, Any]:
        """Delete snapshots by their ids; without any, all that there are."""
        checked = options.connecting("Box.delete_snapshots", options_)
        everything = snapshot_ids is None
        body = {} if everything else {"ids": options.ids(snapshot_ids, "snapshot_ids")}
        with _service(checked) as transport:
            answer = transport.request(
                "DELETE", "/v2/box/snapshots", body=body, query={"all": "true"} if everything else None
            )
        return answers.as_object(answer)

    @classmethod
    def set_env(cls, key: str, value: str, **options_: Unpack[BoxConnectionOptions]) -> None:
        """Set a variable of every box that is made from now on."""
        checked = options.connecting("Box.set_env", options_)
        path = f"{_VARIABLES}/{segment(key, 'name of a variable')}"
        with _service(checked) as transport:
            transport.request("PUT", path, body={"value": values.text(value, "value")})

    @classmethod
    def list_env(cls, **options_: Unpack[BoxConnectionOptions]) -> dict[str, str]:
        """The variables of every box that is made from now on."""
        checked = options.connecting("Box.list_env", options_)
        with _service(checked) as transport:
            answer = answers.as_object(transport.request("GET", _VARIABLES))
        return answers.as_object(answer.get("env_vars", answer))

    @classmethod
    def delete_env(cls, key: str, **options_: Unpack[BoxConnectionOptions]) -> None:
        """Delete one of them."""
        checked = options.connecting("Box.delete_env", options_)
        path = f"{_VARIABLES}/{segment(key, 'name of a variable')}"
        with _service(checked) as transport:
            transport.request("DELETE", path)

    @classmethod
    def set_all_env(cls, vars: dict[str, str], **options_: Unpack[BoxConnectionOptions]) -> None:
        """Replace them all."""
        checked = options.connecting("Box.set_all_env", options_)
        body = {"env_vars": values.environment(vars, "vars") or {}}
        with _service(checked) as transport:
            transport.request("PUT", _VARIABLES, body=body)


@contextmanager
def _service(checked: Mapping[str, Any]) -> Iterator[Transport]:
    transport = Transport(checked)
    try:
        yield transport
    finally:
        transport.close()
