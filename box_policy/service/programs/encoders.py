"""A program's output as the body of an answer: the hosted service's form, and JSON lines.

The hosted form is raw text, and at its end an event. A program could print that event itself, and have the
client believe that it ended, and how. So what looks like one is broken up.
"""

import base64
import codecs
import json
import re
from typing import Final, Protocol

from box_policy.service.programs.execution import Piece, StreamName

_FORGED: Final = re.compile(r"(event: (?:exit|error))\n")
_LONGEST: Final = len("event: error")
_MUCH: Final = 32 * 1024
_SETTLING: Final = 0.02


class Encoder(Protocol):
    """Makes the bytes of a body, in order."""

    media_type: str

    @property
    def settling(self) -> float:
        """Seconds to wait between all output and the end."""

    def piece(self, piece: Piece) -> bytes:
        """Some output. May be empty."""

    def end(self, exit_code: int, *, timed_out: bool) -> tuple[bytes, ...]:
        """How the program ended: the last pieces, each to be sent as one; empty ones may be left out."""

    def failure(self, text: str) -> tuple[bytes, ...]:
        """The stream breaks off, as what the service itself does has failed; likewise."""


class RawText:
    """The hosted service's form, as its clients parse it.

    Both streams are one text there. ``event: exit`` and ``event: error`` at the end of a line of the
    program's get a space behind them; all else arrives as it was written, save what isn't UTF-8.
    """

    media_type = "text/event-stream"

    def __init__(self) -> None:
        incremental = codecs.getincrementaldecoder("utf-8")
        self._decoders: dict[StreamName, codecs.IncrementalDecoder] = {
            "stdout": incremental("replace"),
            "stderr": incremental("replace"),
        }
        self._last = ""
        self._size = 0

    @property
    def settling(self) -> float:
        # The hosted clients take an exit event that arrives in two pieces for exit code 0. One that reads
        # 64 KiB at a time from a full buffer may get it so (once in 2,000 streams of a megabyte); one that
        # has caught up does not.
        return _SETTLING if self._size > _MUCH else 0.0

    def piece(self, piece: Piece) -> bytes:
        return self._shown(self._decoders[piece.stream].decode(piece.data))

    def end(self, exit_code: int, *, timed_out: bool) -> tuple[bytes, ...]:
        return self._rest(), _event("exit", {"exit_code": exit_code, "cpu_ns": 0})

    def failure(self, text: str) -> tuple[bytes, ...]:
        return self._rest(), _event("error", {"error": text})

    def _rest(self) -> bytes:
        """What half characters are left."""
        return self._shown("".join(decoder.decode(b"", final=True) for decoder in self._decoders.values()))

    def _shown(self, text: str) -> bytes:
        # What was shown before holds no whole event: anything found ends in the new text.
        shown = _FORGED.sub("\\1 \n", self._last + text)
        new = shown[len(self._last) :]
        self._last = shown[-_LONGEST:]
        data = new.encode()
        self._size += len(data)
        return data


class JsonLines:
    """One JSON object a line. Every byte arrives as it was written."""

    media_type = "application/x-ndjson"
    settling = 0.0

    def piece(self, piece: Piece) -> bytes:
        return _line({"type": piece.stream, "data": base64.b64encode(piece.data).decode("ascii")})

    def end(self, exit_code: int, *, timed_out: bool) -> tuple[bytes, ...]:
        return (_line({"type": "exit", "exit_code": exit_code, "timed_out": timed_out}),)

    def failure(self, text: str) -> tuple[bytes, ...]:
        return (_line({"type": "error", "error": text}),)


def encoder_for(accept: str | None) -> Encoder:
    """The form that a request asks for in its Accept header: the hosted one, unless it names the other."""
    wanted = (part.partition(";")[0].strip().lower() for part in (accept or "").split(","))
    return JsonLines() if JsonLines.media_type in wanted else RawText()


def _event(name: str, data: dict[str, object]) -> bytes:
    # ASCII escapes, lone surrogates among them; no line break is left in it.
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
