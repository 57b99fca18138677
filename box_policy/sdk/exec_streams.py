"""The two forms in which a program's output is streamed, read piece by piece. No I/O."""

import base64
import binascii
import codecs
import json
from collections.abc import Iterator
from typing import Any, Final, Literal, Protocol

from box_policy.sdk.answers import printable
from box_policy.sdk.errors import BoxError
from box_policy.sdk.types import ExecExitChunk, ExecOutputChunk, ExecStreamChunk

LINES: Final = "application/x-ndjson"
"""Media type of the form in which nothing that a program prints can be taken for its end."""

_MAX_LINE: Final = 16 * 1024 * 1024
_MAX_EVENT: Final = 64 * 1024
_EXIT: Final = b"event: exit\n"
_ERROR: Final = b"event: error\n"


class ExecStream(Protocol):
    """Reads one of the forms."""

    ended: bool
    """Whether the program's end has been read. Nothing counts that comes after it."""

    def push(self, data: bytes) -> Iterator[ExecStreamChunk]:
        """What can be told with this piece.

        Raises:
            BoxError: the service says that the run has failed, or what it says can't be read.
        """
        ...

    def finish(self) -> Iterator[ExecStreamChunk]:
        """What can be told now that no more comes.

        Raises:
            BoxError: the end is missing.
        """
        ...


def exec_stream(media_type: str) -> ExecStream:
    """The reader for an answer of this media type."""
    return _LineStream() if media_type.partition(";")[0].strip().lower() == LINES else _RawStream()


class _Text:
    """One stream of bytes as text."""

    def __init__(self, stream: Literal["stdout", "stderr"] | None) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def chunk(self, data: bytes, *, final: bool = False) -> Iterator[ExecOutputChunk]:
        if text := self._decoder.decode(data, final):
            yield ExecOutputChunk(text, stream=self._stream)


class _LineStream:
    """One JSON object a line."""

    def __init__(self) -> None:
        self.ended = False
        self._buffer = bytearray()
        self._texts = {"stdout": _Text("stdout"), "stderr": _Text("stderr")}

    def push(self, data: bytes) -> Iterator[ExecStreamChunk]:
        # Only what is new can hold the end of a line: a long one that dribbles in is searched once.
        start = len(self._buffer)
        self._buffer += data
        while not self.ended and (end := self._buffer.find(b"\n", start)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            start = 0
            if line.strip():
                yield from self._read(line)
        if len(self._buffer) > _MAX_LINE:
            raise BoxError(f"the service streams a line of more than {_MAX_LINE} bytes")

    def finish(self) -> Iterator[ExecStreamChunk]:
        if not self.ended and self._buffer.strip():
            yield from self._read(bytes(self._buffer))
        if not self.ended:
            raise _cut_off()

    def _read(self, line: bytes) -> Iterator[ExecStreamChunk]:
        try:
            event: Any = json.loads(line)
            kind = event["type"]
            if kind in ("stdout", "stderr"):
                yield from self._texts[kind].chunk(base64.b64decode(event["data"], validate=True))
            elif kind == "exit":
                yield from self._exit(event)
            elif kind == "error":
                raise BoxError(printable(str(event.get("error") or "the run has failed")))
            # A newer service may say more.
        except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
            raise BoxError("the service streams something that can't be read") from None

    def _exit(self, event: dict[str, Any]) -> Iterator[ExecStreamChunk]:
        code = event["exit_code"]
        if not isinstance(code, int):
            raise TypeError("exit_code")
        for rest in self._texts.values():
            yield from rest.chunk(b"", final=True)
        self.ended = True
        yield ExecExitChunk(code, _number(event.get("cpu_ns")), timed_out=event.get("timed_out") is True)


class _RawStream:
    """The output as it is, then ``event: exit`` or ``event: error``, a line of data and an empty line."""

    def __init__(self) -> None:
        self.ended = False
        self._buffer = bytearray()
        self._event = b""
        self._text = _Text(None)

    def push(self, data: bytes) -> Iterator[ExecStreamChunk]:
        if self.ended:
            return
        self._buffer += data
        if not self._event:
            found = [(at, mark) for mark in (_EXIT, _ERROR) if (at := self._buffer.find(mark)) >= 0]
            if found:
                at, self._event = min(found)
                yield from self._text.chunk(self._take(at), final=True)
                self._take(len(self._event))
            else:
                yield from self._text.chunk(self._take(len(self._buffer) - self._held_back()))
        if self._event and (b"\n\n" in self._buffer or len(self._buffer) > _MAX_EVENT):
            yield from self._end()

    def finish(self) -> Iterator[ExecStreamChunk]:
        if self.ended:
            return
        if not self._event:
            yield from self._text.chunk(bytes(self._buffer), final=True)
            raise _cut_off()
        yield from self._end()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _held_back(self) -> int:
        """Bytes at the end that may be the beginning of an event."""
        longest = min(len(self._buffer), len(_ERROR) - 1)
        for length in range(longest, 0, -1):
            tail = bytes(self._buffer[-length:])
            if _EXIT.startswith(tail) or _ERROR.startswith(tail):
                return length
        return 0

    def _end(self) -> Iterator[ExecStreamChunk]:
        data = bytes(self._buffer).partition(b"\n")[0].removeprefix(b"data:")
        try:
            event = json.loads(data)
            code = event.get("exit_code")
        except (ValueError, AttributeError, RecursionError):
            raise _cut_off() from None
        if self._event == _ERROR:
            raise BoxError(printable(str(event.get("error") or "the run has failed")))
        if not isinstance(code, int):
            raise _cut_off()
        self.ended = True
        yield ExecExitChunk(code, _number(event.get("cpu_ns")), timed_out=event.get("timed_out") is True)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _cut_off() -> BoxError:
    return BoxError("the connection ended before the program did; the program has been ended with it")
