"""What is said in a session: JSON objects, one a message."""

import base64
import binascii
import json
import signal
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

MAX_FRAME: Final = 16 << 20
"""Characters of a frame."""
DEFAULT_GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL, if a client doesn't say."""
MAX_GRACE: Final = 3600.0
DEFAULT_ROWS: Final = 24
DEFAULT_COLUMNS: Final = 80

_MAX_ARGUMENTS: Final = 4096
_MAX_SIZE: Final = 0xFFFF
"""Of a terminal, either way: struct winsize has 16 bits for it."""


class FrameError(Exception):
    """A frame that can't be understood. The message says why."""


class IgnoredFrameError(FrameError):
    """One that asks for something that can't be done. Not doing it loses nothing."""


@dataclass(frozen=True, slots=True)
class Start:
    """What to run."""

    argv: tuple[str, ...]
    cmd: str | None
    """A command line for a shell, if ``argv`` is empty."""
    cwd: str | None
    env: dict[str, str]
    terminal: tuple[int, int] | None
    """Rows and columns, if the program gets one."""


@dataclass(frozen=True, slots=True)
class Stdin:
    """Bytes for the program."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StdinClose:
    """There are no more."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The terminal has another size."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal for the program's process group."""

    number: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM, and after ``grace`` seconds SIGKILL."""

    grace: float


type Frame = Stdin | StdinClose | Resize | Signal | Terminate


def parse_start(text: str | bytes) -> Start:
    """The first frame. Raises FrameError; unknown keys mean nothing here."""
    frame = _object(text)
    if frame.get("type") != "start":
        raise FrameError('the first frame must be of type "start"')
    argv, cmd, cwd, env = (frame.get(key) for key in ("argv", "cmd", "cwd", "env"))
    if argv is not None and not (_is_texts(argv) and len(argv) <= _MAX_ARGUMENTS):
        raise FrameError(f"argv must be a list of at most {_MAX_ARGUMENTS} strings without NUL")
    if cmd is not None and not _is_text(cmd):
        raise FrameError("cmd must be a string without NUL")
    if not argv and not cmd:
        raise FrameError("there must be a cmd, or an argv")
    if cwd is not None and not _is_text(cwd):
        raise FrameError("cwd must be a string without NUL")
    return Start(
        argv=tuple(argv or ()),
        cmd=None if argv else cmd,
        cwd=cwd or None,
        env=_variables(env),
        terminal=_terminal(frame),
    )


def parse_frame(text: str | bytes) -> Frame:
    """Any later frame.

    Raises:
        IgnoredFrameError: it may be left out; those of unknown types among them.
        FrameError: what it carries would be lost.
    """
    frame = _object(text)
    match frame.get("type"):
        case "stdin":
            return Stdin(_bytes(frame.get("data")))
        case "stdin_close":
            return StdinClose()
        case "resize":
            rows, columns = frame.get("rows"), frame.get("cols")
            if not (_is_size(rows) and _is_size(columns)):
                raise IgnoredFrameError(f"resize: rows and cols must be whole numbers from 1 to {_MAX_SIZE}")
            return Resize(rows, columns)
        case "signal":
            return Signal(signal_number(frame.get("signal")))
        case "terminate":
            return Terminate(_grace(frame.get("graceMs")))
        case _:
            raise IgnoredFrameError("there is no such type of frame")


def signal_number(name: object) -> int:
    """The number of a signal by its name, with or without SIG; none means SIGTERM. Raises FrameError."""
    if name is None:
        return signal.SIGTERM
    if isinstance(name, str) and len(name) <= 16:
        word = name.strip().upper()
        try:
            return signal.Signals["SIG" + word.removeprefix("SIG")]
        except KeyError:
            pass
    raise IgnoredFrameError("signal: there is none of that name")


def encode(kind: str, **fields: object) -> str:
    """A frame of the service's."""
    return json.dumps({"type": kind, **fields}, separators=(",", ":"))


def encode_output(kind: str, data: bytes) -> str:
    """A frame with output."""
    return f'{{"type":"{kind}","data":"{base64.b64encode(data).decode("ascii")}"}}'


def _object(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_FRAME:
        raise FrameError(f"a frame has more than {MAX_FRAME} characters")
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("a frame must be a JSON object") from None
    if not isinstance(frame, dict):
        raise FrameError("a frame must be a JSON object")
    return frame


def _is_text(value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False  # half a surrogate pair
    return True


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_SIZE


def _variables(env: object) -> dict[str, str]:
    if env is None:
        return {}
    if not _is_texts(env):
        raise FrameError("env must be a list of strings without NUL")
    variables = {}
    for item in env:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise FrameError("env: each entry must be NAME=VALUE")
        variables[name] = value
    return variables


def _terminal(frame: dict[str, Any]) -> tuple[int, int] | None:
    if not frame.get("tty"):
        return None
    rows, columns = frame.get("rows") or DEFAULT_ROWS, frame.get("cols") or DEFAULT_COLUMNS
    if not (_is_size(rows) and _is_size(columns)):
        raise FrameError(f"rows and cols must be whole numbers from 1 to {_MAX_SIZE}")
    return rows, columns


def _bytes(data: object) -> bytes:
    try:
        if isinstance(data, str):
            return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise FrameError("stdin: data must be base64")


def _grace(milliseconds: object) -> float:
    if isinstance(milliseconds, int | float) and milliseconds > 0:
        return min(milliseconds, MAX_GRACE * 1000) / 1000
    return DEFAULT_GRACE
