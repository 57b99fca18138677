"""Keyword arguments: which there are, and the requests that they become."""

import difflib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import values
from box_policy.sdk.errors import BoxError
from box_policy.sdk.types import (
    BoxConfig,
    BoxConnectionOptions,
    BoxGetOptions,
    EphemeralBoxConfig,
    ListOptions,
)
from box_policy.sdk.unsupported import unsupported

DEFAULT_TIMEOUT_MS: Final = 600_000

_ALIASES: Final = {"apiKey": "api_key", "baseUrl": "base_url", "networkPolicy": "network_policy"}
_SENT_AS: Final = {
    "name": "name",
    "labels": "labels",
    "size": "size",
    "keep_alive": "keep_alive",
    "runtime": "runtime",
    "image": "image",
    "ttl": "ttl",
    "env": "env_vars",
}
"""What a creation may say, and its name on the wire."""
_NOT_OURS: Final = {
    "agent": "agents are not run for you; run one in the box with box.exec",
    "attach_headers": "headers can only be added to decrypted traffic, and nothing is decrypted here",
    "browser": "there are no hosted browsers; run one in the box with box.exec",
    "git": "there is no git integration; run git in the box with box.exec",
    "git_token": "there is no git integration; run git in the box with box.exec",
    "init_command": "run the command with box.exec once the box is there",
    "mcp_servers": "MCP servers belong to hosted agents",
    "skills": "skills belong to hosted agents",
}

_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "backend": values.backend,
    "env": values.environment,
    "image": partial(values.text, name="image"),
    "labels": values.labels,
    **{name: partial(values.flag, name=name) for name in ("debug", "delete_on_exit", "keep_alive")},
}
"""What accepts the values of options. A service would take some of a wrong type for something else."""


def creation(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``Box.create`` and ``Box.from_snapshot``, checked; see :func:`checked`."""
    return checked(call, given, BoxConfig)


def ephemeral_creation(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``EphemeralBox.create`` and ``EphemeralBox.from_snapshot``."""
    return checked(call, given, EphemeralBoxConfig)


def getting(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``Box.get`` and ``Box.get_by_name``."""
    return checked(call, given, BoxGetOptions)


def listing(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``Box.list``."""
    return checked(call, given, ListOptions)


def connecting(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the calls that concern no one box."""
    return checked(call, given, BoxConnectionOptions)


def checked(call: str, given: Mapping[str, Any], form: Any) -> dict[str, Any]:
    """``given``, each under its canonical name.

    Args:
        form: the TypedDict that has them all.

    Raises:
        TypeError: an option that ``form`` doesn't have, or one that is given twice.
        BoxUnsupportedError: an option of the hosted product that is not supported.
        BoxError: a time that is none, or another value of a wrong type.
    """
    known: frozenset[str] = form.__optional_keys__
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {key!r}; {_nearest(key, known)}")
        name = _ALIASES.get(key, key)
        if name in options:
            raise TypeError(f"{call}() got {name!r} twice, in two spellings")
        if name in _NOT_OURS and value:
            raise unsupported(f"{call}({key}=...)", _NOT_OURS[name])
        if name in _CHECKS and value is not None:
            value = _CHECKS[name](value)
        options[name] = value
    options["timeout"] = timeout_ms(options.get("timeout", DEFAULT_TIMEOUT_MS))
    return options


def timeout_ms(value: Any) -> float | None:
    """``value`` if it is a number of milliseconds, or None for no limit.

    Raises:
        BoxError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BoxError(f"a timeout is a number of milliseconds above 0, or None for no limit; not {value!r}")
    return value


def creation_body(options: Mapping[str, Any], policy: PolicyModel | None) -> dict[str, Any]:
    """The body that creates a box: everything that is set."""
    body = {
        sent: options[name]
        for name, sent in _SENT_AS.items()
        if options.get(name) is not None and options[name] is not False
    }
    return body if policy is None else body | {"network_policy": policy.canonical()}


def ids(value: Any, name: str) -> list[str]:
    """The ids of a deletion. One that names nothing could be read as everything: it is refused.

    Raises:
        BoxError: it names nothing, or isn't made of text.
    """
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not found or any(not isinstance(one, str) or not one.strip() for one in found):
        raise BoxError(f"{name} must contain at least one non-empty id")
    return found


def _nearest(key: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"
