"""Arguments of a wrong type, refused in the caller's own words before anything is sent."""

import os
from collections.abc import Mapping
from typing import Any, Final, get_args

from box_policy.sdk.errors import BoxError
from box_policy.sdk.types import Backend, CodeLanguage

_ENVIRONMENT: Final = 'is a dict of strings, such as {"PORT": "8080"}'
BACKENDS: Final[tuple[str, ...]] = get_args(Backend)
_LANGUAGES: Final[tuple[str, ...]] = get_args(CodeLanguage)


def environment(value: Any, name: str = "env") -> dict[str, str] | None:
    """Variables.

    Raises:
        BoxError: they are no mapping from text to text. The message shows no value: it may be a secret.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise BoxError(f"{name} {_ENVIRONMENT}; not {_kind(value)}")
    for key, one in value.items():
        if not isinstance(key, str):
            raise BoxError(f"{name} {_ENVIRONMENT}; the key {key!r} is {_kind(key)}")
        if not isinstance(one, str):
            raise BoxError(f"{name} {_ENVIRONMENT}; the value of {key!r} is {_kind(one)}")
    return dict(value)


def session_environment(value: Any) -> list[str] | None:
    """Variables as a live session has them, ``KEY=VALUE`` each, of such a list or a mapping.

    Raises:
        BoxError: they are neither.
    """
    if isinstance(value, Mapping):
        return [f"{key}={one}" for key, one in (environment(value) or {}).items()]
    if value is not None and not _are_texts(value):
        raise BoxError(f'env {_ENVIRONMENT}, or a list of strings, such as ["PORT=8080"]')
    return None if value is None else list(value)


def command(value: Any) -> str:
    """A shell command.

    Raises:
        BoxError: it is no string.
    """
    if not isinstance(value, str):
        raise BoxError(
            f'command is a string: exec.command("ls -l"); not {_kind(value)}; '
            "for arguments without a shell use exec.session(argv=...)"
        )
    return value


def arguments(value: Any) -> list[str] | None:
    """A program and its arguments.

    Raises:
        BoxError: they are no list of strings.
    """
    if value is not None and not _are_texts(value):
        raise BoxError(
            'argv is a list of strings: exec.session(argv=["ls", "-l"]); for a shell command use cmd='
        )
    return None if value is None else list(value)


def text(value: Any, name: str) -> str:
    """Text.

    Raises:
        BoxError: it is none.
    """
    if not isinstance(value, str):
        raise BoxError(f"{name} is a string; not {_kind(value)}")
    return value


def language(value: Any) -> str:
    """The language of some code.

    Raises:
        BoxError: there is none such.
    """
    if not isinstance(value, str) or value not in _LANGUAGES:
        raise BoxError(f"lang is one of {', '.join(_LANGUAGES)}; not {value!r}")
    return value


def content(value: Any) -> str:
    """What a file is to hold.

    Raises:
        BoxError: it is no text.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        raise BoxError(
            'content is a string; for bytes use files.write(content=base64.b64encode(data).decode("ascii"), '
            'encoding="base64", ...)'
        )
    return text(value, "content")


def labels(value: Any) -> list[str]:
    """The labels of a box.

    Raises:
        BoxError: they are no list of strings.
    """
    if not _are_texts(value):
        raise BoxError(f'labels is a list of strings, such as ["ci"]; not {value!r}')
    return list(value)


def backend(value: Any) -> str:
    """What boxes are made of.

    Raises:
        BoxError: there is none such.
    """
    if not isinstance(value, str) or value not in BACKENDS:
        raise BoxError(f"backend is one of {', '.join(BACKENDS)}; not {value!r}")
    return value


def flag(value: Any, name: str) -> bool:
    """A truth value. Nothing else is taken for one: ``"false"`` would be true.

    Raises:
        BoxError: it is something else.
    """
    if not isinstance(value, bool):
        raise BoxError(f"{name} is True or False; not {value!r}")
    return value


def uploads(value: Any) -> list[tuple[str | os.PathLike[str], str]]:
    """Local files, each with its place in the box.

    Raises:
        BoxError: an entry has other keys than ``path`` and ``destination``, or something else there.
    """
    form = 'files.upload() takes a list of {"path": a local file, "destination": its place in the box}'
    if not isinstance(value, list | tuple):
        raise BoxError(f"{form}; not {_kind(value)}")
    found = []
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise BoxError(f"{form}; entry {index} is {_kind(entry)}")
        if set(entry) != {"path", "destination"}:
            raise BoxError(f"{form}; entry {index} has the keys {', '.join(map(repr, entry)) or 'none'}")
        path, destination = entry["path"], entry["destination"]
        if not isinstance(path, str | os.PathLike) or not isinstance(destination, str):
            raise BoxError(f"{form}, which are strings; those of entry {index} are not")
        found.append((path, destination))
    return found


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
