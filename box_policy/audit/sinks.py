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


class _Written:
    """Writes records to a stream from a thread of its own: a disk or a reader may stall, the gate may not.

    What can't be written is counted; the count is written as soon as that is possible again.
    """

    def __init__(self, stream: IO[str], name: str) -> None:
        self._stream = stream
        self._queue: queue.Queue[Record | None] = queue.Queue(MAX_QUEUED)
        self.lost = 0
        """Records that were never written."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what is queued. Waits for at most 5 s."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        reported = 0
        while (record := self._queue.get()) is not None:
            try:
                if self.lost > reported:
                    lost, count = self.lost, self.lost - reported
                    self._stream.write(self._lost_line(count) + "\n")
                    reported = lost
                line = self._line(record)
                if line is not None:
                    self._stream.write(line + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                self.lost += 1  # the disk is full, or the reader has gone

    def _line(self, record: Record) -> str | None:
        raise NotImplementedError

    def _lost_line(self, count: int) -> str:
        raise NotImplementedError


class JsonLines(_Written):
    """Appends records to a file as JSON lines.

    Raises OSError if the file can't be opened for appending, or is a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        # Line-buffered: what can't be written must not stay behind and make every later write fail.
        stream = os.fdopen(os.open(path, flags, 0o640), "w", encoding="ascii", buffering=1)
        super().__init__(stream, "audit log")

    def close(self) -> None:
        super().close()
        with contextlib.suppress(OSError):
            self._stream.close()

    def _line(self, record: Record) -> str:
        return record.as_json()

    def _lost_line(self, count: int) -> str:
        return f'{{"event":"lost","records":{count}}}'


class Console(_Written):
    """Writes decisions as readable lines, one each, to a terminal or a log for people."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        stream = stream or sys.stderr
        self._colour = stream.isatty()
        super().__init__(stream, "audit console")

    def _lost_line(self, count: int) -> str:
        return f"({count} decisions not shown)"

    def _line(self, record: Record) -> str | None:
        if record.event is not Event.DECISION:
            return None
        verdict = "allow" if record.allowed else "deny "
        if self._colour:
            verdict = f"\x1b[{32 if record.allowed else 31}m{verdict}\x1b[0m"
        target = record.name or record.claimed_address or "?"
        if record.claimed_port is not None:
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
