"""h11's view of what a client sends, with bounds for what costs h11 much: lines, and tiny chunks."""

import re
from collections.abc import Callable
from typing import Any, Final

import h11

MAX_HEADER_LINES: Final = 100

_MAX_TINY_CHUNKS: Final = 4096
_TINY: Final = 64
"""Bytes of a chunk, on average."""

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_FOR_SERVICE: Final = re.compile(rb"[\r\n]*[!-~]{1,32} /v2/")


class Requests(h11.Connection):
    """The server's side of a connection."""

    def __init__(self, head_size: int, admit: Callable[[h11.Request], bool]) -> None:
        """Begin. ``admit`` is asked about each request as soon as its head is there; where it says no,
        nothing more is read."""
        super().__init__(h11.SERVER, head_size)
        self._admit = admit
        self._chunks = 0
        self._size = 0
        self.chunked = False
        """Has the last request a body in chunks?"""
        self.for_service = False
        """Is the last request for the service, as far as one can tell?"""

    def ended(self) -> None:
        """The connection is gone. Breaks the reference cycle with whoever admits requests."""
        self._admit = bool

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._check_lines()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._size = 0
            self.chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            if not self._admit(event):
                return h11.NEED_DATA
        elif isinstance(event, h11.Data) and self.chunked:
            self._count(event)
        return event

    def _check_lines(self) -> None:
        data, _ = self.trailing_data
        if data:
            self.for_service = _FOR_SERVICE.match(data) is not None
        end = _END_OF_HEAD.search(data)
        if data.count(b"\n", 0, end.start() if end else len(data)) > MAX_HEADER_LINES:
            raise h11.RemoteProtocolError(f"more than {MAX_HEADER_LINES} header lines")

    def _count(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._size += len(data.data)
        if self._chunks > _MAX_TINY_CHUNKS and self._size < self._chunks * _TINY:
            raise h11.RemoteProtocolError("too many tiny chunks")
