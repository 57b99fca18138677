"""How many records of a box are written: what one does must not fill the log, nor hide what others do."""

import time
from typing import Final

from box_policy.audit.bucket import Bucket
from box_policy.audit.records import Entry, Record, SuppressedRecord
from box_policy.policy.reasons import Reason

_TELL: Final = 1.0
"""Seconds from the first record that is left out until it is told how many were."""
_ALWAYS: Final = frozenset({Reason.POLICY_CHANGED, Reason.BOX_CLOSED, Reason.LIMIT})
"""What the operator does to a box, and what it does at its caps, of which there is one a second."""


class _Box:
    """What one box has left, and what was left out."""

    __slots__ = ("bucket", "left_out", "since")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.left_out = 0
        self.since = 0.0  # when the first one was left out


class Pace:
    """Says which records are written, and counts the others."""

    def __init__(self, rate: float, burst: int) -> None:
        """``rate``: records a second in the long run; ``burst``: of which so many may come at once."""
        self._rate = rate
        self._burst = burst
        self._boxes: dict[str, _Box] = {}

    def admits(self, record: Entry) -> bool:
        """Is this one written? Those of policies always are."""
        if not isinstance(record, Record) or record.reason in _ALWAYS:
            return True
        now = time.monotonic()
        box = self._boxes.get(record.box)
        if box is None:
            box = self._boxes[record.box] = _Box(Bucket(self._rate, self._burst))
        if box.bucket.take(now):
            return True
        if not box.left_out:
            box.since = now
        box.left_out += 1
        return False

    def due(self) -> list[SuppressedRecord]:
        """What has to be told now of records that were left out, one record a box."""
        now = time.monotonic()
        return [
            _told(name, box) for name, box in self._boxes.items() if box.left_out and now - box.since >= _TELL
        ]

    def forget(self, name: str) -> list[SuppressedRecord]:
        """The box has gone. What is still to be told of it."""
        box = self._boxes.pop(name, None)
        return [_told(name, box)] if box is not None and box.left_out else []


def _told(name: str, box: _Box) -> SuppressedRecord:
    count, box.left_out = box.left_out, 0
    return SuppressedRecord(box=name, records=count)
