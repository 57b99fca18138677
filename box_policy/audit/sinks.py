"""Where records go. No sink ever makes the gate wait."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from box_policy.audit.records import Event, Record

type Sink = Callable[[Record], None]

MAX_QUEUED = 65_536
"""Records that wait for a slow log. Past that they are counted, and the count is written."""


class Audit:
    """Hands every record to every sink.

    What a sink raises is raised here: a decision that cannot be recorded must not take effect.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def __call__(self, record: Record) -> None:
        for sink in self._sinks:
            sink(record)


class JsonLines:
    """Appends records to a file as JSON lines, from a thread of its own: a disk may stall, the gate may not.

    Raises OSError if the file can't be opened for appending, or is a symbolic link.
    """

    def __init__(self, path: Path | None, *, stream: IO[str] | None = None) -> None:
        if path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            stream = os.fdopen(os.open(path, flags, 0o640), "w", encoding="ascii")
        self._stream = stream or sys.stderr
        self._owned = path is not None
        self._queue: queue.Queue[Record | None] = queue.Queue(MAX_QUEUED)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="audit log", daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is queued, then close. Waits for at most 5 s."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(timeout=5)

    def _write(self) -> None:
        try:
            while (record := self._queue.get()) is not None:
                self._stream.write(record.as_json() + "\n")
                if lost := self._lost:
                    self._lost -= lost
                    self._stream.write(f'{{"event":"lost","records":{lost}}}\n')
                if self._queue.empty():
                    self._stream.flush()
        except (OSError, ValueError):
            # The disk is full or the pipe closed. Enforcement goes on; whoever reads the log sees it end.
            sys.stderr.write("box-policy: the audit log can't be written any more\n")
        finally:
            if self._owned:
                with contextlib.suppress(OSError):
                    self._stream.close()


class Console:
    """Writes decisions as readable lines, one each, to a terminal or a log for people."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._colour = self._stream.isatty()

    def __call__(self, record: Record) -> None:
        if record.event is Event.DECISION:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(self._line(record) + "\n")

    def _line(self, record: Record) -> str:
        verdict = "allow" if record.allowed else "deny "
        if self._colour:
            verdict = f"\x1b[{32 if record.allowed else 31}m{verdict}\x1b[0m"
        target = record.name or record.claimed_address or "?"
        if record.claimed_port is not None and record.protocol != "dns":
            target += f":{record.claimed_port}"
        parts = [verdict, record.box, record.protocol, target]
        if record.dialled and record.dialled != record.claimed_address:
            parts.append(f"-> {record.dialled}")
        parts.append(f"({record.rule or record.reason})")
        if not record.allowed and record.rule:
            parts.append(record.reason)
        if record.mismatch:
            parts.append(f"claimed {record.claimed_address}")
        return " ".join(parts)
