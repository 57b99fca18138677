"""How many records of a box are written, and what is said of the others."""

import io
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from box_policy.audit.bucket import Bucket
from box_policy.audit.metrics import Metrics
from box_policy.audit.records import Entry, Event, Outcome, PolicyRecord, Record, SuppressedRecord
from box_policy.audit.sinks import Audit, Console
from box_policy.policy.reasons import Reason
from tests.audit.test_records import record

type Clock = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that goes on when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("box_policy.audit.pace.time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def written() -> list[Entry]:
    return []


@pytest.fixture
def audit(written: list[Entry], wait: Clock) -> Audit:
    audit = Audit()
    audit.add_paced(written.append)
    audit.set_pace(2, 5)
    return audit


def test_a_bucket_fills_up_to_a_burst() -> None:
    bucket = Bucket(2, 3)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5), bucket.take(0.5)] == [True, False]
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]


def test_what_is_too_much_is_counted_and_told_of_a_second_later(
    audit: Audit, written: list[Entry], wait: Clock
) -> None:
    counted: list[Entry] = []
    audit.add(counted.append)
    for number in range(20):
        audit(record(connection=number))
    assert [entry.connection for entry in written if isinstance(entry, Record)] == [0, 1, 2, 3, 4]
    assert len(counted) == 20
    wait(0.9)
    audit.tell()
    assert len(written) == 5
    wait(0.1)
    audit.tell()
    audit.tell()
    (told,) = written[5:]
    assert isinstance(told, SuppressedRecord)
    assert (told.box, told.records, counted[-1]) == ("b", 15, told)
    audit(record(connection=21))
    audit(record(connection=22))
    audit(record(connection=23))
    assert [entry.connection for entry in written[6:] if isinstance(entry, Record)] == [21, 22]


def test_each_box_has_its_own(audit: Audit, written: list[Entry]) -> None:
    for _ in range(100):
        audit(record())
    audit(record(box="other"))
    assert isinstance(written[-1], Record)
    assert written[-1].box == "other"


def test_what_is_rare_or_the_operators_doing_is_always_written(audit: Audit, written: list[Entry]) -> None:
    for _ in range(100):
        audit(record())
    for reason in (Reason.POLICY_CHANGED, Reason.BOX_CLOSED, Reason.LIMIT):
        audit(record(event=Event.END, reason=reason))
    audit(PolicyRecord(box="b", generation=2, outcome=Outcome.ACCEPTED, source="control"))
    assert len(written) == 5 + 4


def test_what_is_still_to_tell_of_a_box_that_goes_is_told(audit: Audit, written: list[Entry]) -> None:
    for _ in range(8):
        audit(record())
    audit.forget("b")
    audit.forget("b")
    (told,) = written[5:]
    assert json.loads(told.as_json())["records"] == 3
    audit(record())
    assert len(written) == 7, "another box of that name begins anew"


def test_a_paced_sink_that_fails_is_not_ignored(audit: Audit) -> None:
    def broken(_: Entry) -> None:
        raise RuntimeError("no sink")

    audit.add_paced(broken)
    with pytest.raises(RuntimeError):
        audit(record())


def test_people_and_metrics_are_told_of_it() -> None:
    stream = io.StringIO()
    console, metrics = Console(stream), Metrics("1")
    for sink in (console, metrics):
        sink(SuppressedRecord(box="b", records=15))
        sink(SuppressedRecord(box="b", records=2))
    console.close()
    assert stream.getvalue().splitlines()[0] == "(15 records of b left out: too many)"
    assert b"box_policy_records_suppressed_total 17.0" in metrics.render()
