"""The messages of a live command session: one JSON object each. No I/O."""

import base64
import binascii
import json
from typing import Any, Final

from box_policy.sdk.answers import printable
from box_policy.sdk.errors import BoxError

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of one message."""

_SIGNALS: Final = ("TERM", "KILL", "INT", "HUP", "TSTP", "QUIT", "USR1", "USR2")


def start(
    *,
    cmd: str | None,
    argv: list[str] | None,
    tty: bool,
    cwd: str,
    rows: int | None,
    cols: int | None,
    env: list[str] | None,
) -> dict[str, Any]:
    """The first message. ``argv`` comes before ``cmd``.

    Raises:
        BoxError: neither is there.
    """
    if not argv and not cmd:
        raise BoxError("exec.session requires cmd or argv")
    frame: dict[str, Any] = {"type": "start", "cwd": cwd}
    frame |= {"argv": list(argv)} if argv else {"cmd": cmd}
    if tty:
        frame["tty"] = True
    return frame | {key: value for key, value in (("rows", rows), ("cols", cols), ("env", env)) if value}


def stdin(data: str | bytes) -> dict[str, Any]:
    """Bytes for the program's standard input; text goes as UTF-8."""
    payload = data.encode() if isinstance(data, str) else bytes(data)
    return {"type": "stdin", "data": base64.b64encode(payload).decode("ascii")}


def signal(name: str | None) -> dict[str, Any]:
    """A signal, TERM unless another is named; with or without SIG.

    Raises:
        BoxError: there is no such signal, or none that can be sent.
    """
    short = ("TERM" if name is None else name).strip().upper().removeprefix("SIG")
    if short not in _SIGNALS:
        raise BoxError(f"unsupported signal {name!r}; there are: {', '.join(_SIGNALS)}")
    return {"type": "signal", "signal": short}


def terminate(grace_ms: int | None) -> dict[str, Any]:
    """SIGTERM now, SIGKILL after the grace."""
    return {"type": "terminate"} | ({"graceMs": grace_ms} if grace_ms and grace_ms > 0 else {})


def read(message: str | bytes) -> dict[str, Any]:
    """A message of the service's; what can't be read is an empty one."""
    try:
        frame = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    return frame if isinstance(frame, dict) else {}


def payload(frame: dict[str, Any]) -> bytes:
    """The output that a message carries."""
    try:
        return base64.b64decode(frame["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return b""


def exit_code(frame: dict[str, Any]) -> int:
    """How the program ended; -1 if that can't be told."""
    code = frame.get("code")
    return code if isinstance(code, int) else -1


def started(frame: dict[str, Any]) -> tuple[int, str] | None:
    """The program's pid and the session's id, once it runs; None as long as it doesn't.

    Raises:
        BoxError: it will not run.
    """
    match frame.get("type"):
        case "started":
            pid, exec_id = frame.get("pid"), frame.get("execId")
            # Nobody could signal a program without a pid: signals would go nowhere.
            if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
                raise BoxError("the session has started without a usable pid")
            return pid, exec_id if isinstance(exec_id, str) else ""
        case "error":
            raise BoxError(f"the session can't start: {error(frame)}")
        case "exit":
            raise BoxError("the session ended before it started")
    return None


def error(frame: dict[str, Any]) -> str:
    """Why the service ends the session."""
    message = frame.get("message")
    return printable(message) if isinstance(message, str) else "it doesn't say"
