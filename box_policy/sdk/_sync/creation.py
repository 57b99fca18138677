# Written by scripts/make_sync from _async/creation.py: change that one.
"""Making a box: not there before it is ready, and never without the policy that was asked for."""

import time
from collections.abc import Mapping
from typing import Any, Final

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import answers, policies
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk.concurrency import sleep
from box_policy.sdk.connection import segment
from box_policy.sdk.errors import BoxError, BoxNotFoundError, BoxTimeoutError
from box_policy.sdk.options import creation_body

_READY_WITHIN: Final = 300.0
_DELETED_WITHIN_MS: Final = 10_000.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


def created(
    path: str, options: Mapping[str, Any], more: Mapping[str, object]
) -> tuple[dict[str, Any], Transport]:
    """The service's description of a new box, and the connections to it.

    Args:
        options: checked keyword arguments of the creation.
        more: what the request says besides.

    Raises:
        PolicyValidationError: the policy can't be accepted.
        BoxError: the box can't be made, or is not as it was asked for. It has been deleted then.
    """
    policy = options.get("network_policy")
    wanted = None if policy is None else policies.requested(policy)
    body = creation_body(options, wanted) | dict(more)
    transport = Transport(options)
    try:
        data = answers.as_object(transport.request("POST", path, body=body))
        return _checked(transport, data, wanted), transport
    except BaseException:
        transport.close()
        raise


def box_path(data: Mapping[str, Any]) -> str:
    """The path of the box that the service describes.

    Raises:
        BoxError: it has no id.
    """
    return f"/v2/box/{segment(answers.text(data, 'id'), 'id of a box')}"


def _checked(transport: Transport, data: dict[str, Any], wanted: PolicyModel | None) -> dict[str, Any]:
    at = box_path(data)
    try:
        data = _ready(transport, at, data)
        found = policies.in_force(data)
        if wanted is not None:
            policies.check_agreement(wanted, found)
    except BaseException as error:
        outcome = _delete(transport, at)
        if isinstance(error, BoxError):
            error.message += f"; {outcome}"
        raise
    return data


def _ready(transport: Transport, at: str, data: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + _READY_WITHIN
    pause = _FIRST_PAUSE
    while data.get("status") == "creating":
        if time.monotonic() > end:
            raise BoxTimeoutError("Box creation timed out")
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        data = answers.as_object(transport.request("GET", at))
    if data.get("status") == "error":
        raise BoxError("Box creation failed")
    return data


def _delete(transport: Transport, at: str) -> str:
    """Delete a box that nobody is given, and say in words what came of it."""
    # The connections are closed after this. A service that hangs must not be waited for twice.
    transport.timeout_ms = min(transport.timeout_ms or _DELETED_WITHIN_MS, _DELETED_WITHIN_MS)
    try:
        transport.request("DELETE", at)
    except BoxNotFoundError:
        pass
    except BoxError as error:
        return f"the new box, {at.rpartition('/')[2]}, could not be deleted: {error}"
    return "the new box has been deleted"
