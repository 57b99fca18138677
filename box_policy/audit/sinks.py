"""Where records go. No sink ever makes the gate wait."""

import errno
import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from box_policy.audit.pace import Pace
from box_policy.audit.records import Entry, Event, Outcome, PolicyRecord, SuppressedRecord
from box_policy.policy.reasons import Reason

log = logging.getLogger(__name__)

type Sink = Callable[[Entry], None]

MAX_QUEUED = 65_536
"""Records that wait for a slow log. Past that they are counted, and the count is written."""

_BATCH = 8192
"""Records that are written at once."""

_PAUSE = 0.05
"""Seconds for which records are collected. While they are written the gate has to share the interpreter: that
should not begin in the middle of a burst of them."""


class Audit:
    """Hands every record to every sink, but to those that keep or write them no more of a box than its pace
    allows.

    What a sink raises is raised here: a decision that cannot be recorded must not take effect.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)
        self._paced: list[Sink] = []
        self._pace: Pace | None = None

    def add(self, sink: Sink) -> None:
        """Add one that gets every record: it counts, say."""
        self._sinks.append(sink)

    def add_paced(self, sink: Sink) -> None:
        """Add one to which records cost something. Of those that it doesn't get it gets the number."""
        self._paced.append(sink)

    def set_pace(self, rate: float, burst: int) -> None:
        """How many records of each box the paced sinks get: so many a second, and so many at once. Until this
        is called they get all."""
        self._pace = Pace(rate, burst)

    def __call__(self, record: Entry) -> None:
        for sink in self._sinks:
            sink(record)
        if self._pace is None or self._pace.admits(record):
            for sink in self._paced:
                sink(record)

    def note(self, make: Callable[[], Entry]) -> None:
        """Record what stands whether it can be recorded or not: a denial, or an end. Never raises."""
        try:
            self(make())
        except Exception:
            log.exception("a denial, or an end, could not be recorded")

    def tell(self) -> None:
        """Record how many were left out, where it is time to. To be called a few times a second."""
        if self._pace is not None:
            self._record_all(self._pace.due())

    def forget(self, box: str) -> None:
        """A box has gone: record what is still to be told of it."""
        if self._pace is not None:
            self._record_all(self._pace.forget(box))

    def _record_all(self, records: Iterable[SuppressedRecord]) -> None:
        for record in records:
            for sink in (*self._sinks, *self._paced):
                sink(record)


class _Written:
    """Writes records from a thread of its own: a disk or a reader may stall, the gate may not.

    What can't be written is counted; the count is written as soon as that is possible again.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self.lost = 0
        """Records that were never written."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __call__(self, record: Entry) -> None:
        if self._queue.qsize() < MAX_QUEUED:
            self._queue.put(record)
        else:
            self.lost += 1

    def close(self) -> None:
        """Write what is queued. Waits for at most 5 s."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        reported = 0
        open_ended = True
        while open_ended:
            batch = [self._queue.get()]
            if batch[0] is not None:
                time.sleep(_PAUSE)
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            open_ended = all(record is not None for record in batch)
            records = [record for record in batch if record is not None]
            lines = [line for record in records if (line := self._line(record)) is not None]
            lost = self.lost
            if lost > reported:
                lines.insert(0, self._lost_line(lost - reported))
            if not lines:
                continue
            try:
                self._write("\n".join(lines) + "\n")
                reported = lost
            except (OSError, ValueError):
                self.lost += len(records)  # the disk is full, or the reader has gone

    def _line(self, record: Entry) -> str | None:
        raise NotImplementedError

    def _lost_line(self, count: int) -> str:
        raise NotImplementedError

    def _write(self, text: str) -> None:
        raise NotImplementedError


class JsonLines(_Written):
    """Appends records to a file as JSON lines.

    Raises OSError if it can't be opened for appending, is a symbolic link, or no regular file.
    """

    def __init__(self, path: Path) -> None:
        # Not blocking: to open a FIFO that nobody reads would take for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(path, flags, 0o640)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        super().__init__("audit log")

    def close(self) -> None:
        super().close()
        if not self._thread.is_alive():  # else it is still stuck in a write, and needs the descriptor
            os.close(self._fd)

    def _line(self, record: Entry) -> str:
        return record.as_json()

    def _lost_line(self, count: int) -> str:
        return f'{{"event":"lost","records":{count}}}'

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("ascii"))
        while data:
            data = data[os.write(self._fd, data) :]


class Console(_Written):
    """Writes decisions as readable lines, one each, to a terminal or a log for people."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._colour = self._stream.isatty()
        super().__init__("audit console")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _lost_line(self, count: int) -> str:
        return f"({count} decisions not shown)"

    def _line(self, record: Entry) -> str | None:
        if isinstance(record, PolicyRecord):
            return _policy_line(record)
        if isinstance(record, SuppressedRecord):
            return f"({record.records} records of {record.box} left out: too many)"
        if record.event is not Event.DECISION and record.reason is not Reason.POLICY_CHANGED:
            return None
        cut = record.event is Event.END
        verdict = "cut  " if cut else "allow" if record.allowed else "deny "
        if self._colour:
            verdict = f"\x1b[{32 if record.allowed and not cut else 31}m{verdict}\x1b[0m"
        target = record.name or record.claimed_address or "?"
        if record.claimed_port is not None:
            target += f":{record.claimed_port}"
        parts = [verdict, record.box, record.protocol, target]
        if record.dialled and record.dialled != record.claimed_address:
            parts.append(f"-> {record.dialled}")
        parts.append(f"({record.rule or record.reason})")
        if record.rule and (cut or not record.allowed):
            parts.append(record.reason)
        if record.mismatch:
            parts.append(f"claimed {record.claimed_address}")
        return " ".join(parts)


def _policy_line(record: PolicyRecord) -> str:
    said = f": {record.detail}" if record.detail else ""
    if record.outcome is Outcome.ACCEPTED:
        return f"policy {record.box} generation {record.generation} from {record.source}{said}"
    if record.outcome is Outcome.REMOVED:
        return f"policy {record.box} removed{said}"
    return f"policy {record.box} {record.outcome}, generation {record.generation} stays{said}"
