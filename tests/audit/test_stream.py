"""The last records: kept in a ring, read at any pace."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.audit.records import Entry, Outcome, PolicyRecord, Record
from box_policy.audit.stream import InvalidEventId, Reader, RecordStream
from tests.audit.test_records import record


def numbered(number: int) -> Record:
    return record(connection=number)


def fill(stream: RecordStream, count: int) -> None:
    for _ in range(count):
        stream(numbered(stream.count + 1))


def numbers(entries: tuple[Entry, ...]) -> list[int]:
    return [entry.connection for entry in entries if isinstance(entry, Record)]


async def read_all(reader: Reader) -> tuple[list[int], list[int | None]]:
    """The numbers of all records, and how many were missed at each gap."""
    shown: list[int] = []
    missed = []
    async for batch in reader:
        assert numbers(batch.entries) == list(range(batch.first, batch.first + len(batch.entries)))
        shown += numbers(batch.entries)
        if batch.missed != 0:
            missed.append(batch.missed)
    return shown, missed


async def test_a_reader_is_shown_what_comes_after_it_has() -> None:
    stream = RecordStream()
    fill(stream, 3)
    reader = stream.follow()
    fill(stream, 2)
    stream.close()
    assert await read_all(reader) == ([4, 5], [])


async def test_a_reader_that_waits_is_woken() -> None:
    stream = RecordStream()
    readers = [asyncio.create_task(anext(stream.follow())) for _ in range(3)]
    await asyncio.sleep(0)
    stream(PolicyRecord(box="b", generation=1, outcome=Outcome.ACCEPTED, source="test"))
    for batch in await asyncio.gather(*readers):
        assert (batch.first, len(batch.entries), batch.missed) == (1, 1, 0)


async def test_closing_ends_readers_after_what_they_have() -> None:
    stream = RecordStream()
    reader = stream.follow()
    waiting = asyncio.create_task(read_all(reader))
    await asyncio.sleep(0)
    fill(stream, 2)
    stream.close()
    async with asyncio.timeout(5):
        assert await waiting == ([1, 2], [])
        assert await read_all(stream.follow()) == ([], [])


async def test_one_that_stops_waiting_loses_nothing() -> None:
    stream = RecordStream()
    reader = stream.follow()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await reader.wait()
    fill(stream, 1)
    batch = reader.take()
    assert batch is not None
    assert numbers(batch.entries) == [1]


async def test_one_that_falls_behind_is_told_how_many_it_missed() -> None:
    stream = RecordStream(capacity=10)
    reader = stream.follow()
    fill(stream, 25)
    batch = reader.take()
    assert batch is not None
    assert (batch.missed, numbers(batch.entries)) == (15, list(range(16, 26)))
    assert reader.take() is None
    fill(stream, 11)
    stream.close()
    assert await read_all(reader) == (list(range(27, 37)), [1])


async def test_it_keeps_no_more_than_its_ring() -> None:
    stream = RecordStream(capacity=10)
    fill(stream, 1000)
    assert (stream.oldest, stream.count) == (991, 1000)
    for gone in (0, 990, 1001):
        with pytest.raises(LookupError):
            stream.entry(gone)


async def test_a_batch_is_small() -> None:
    stream = RecordStream()
    reader = stream.follow()
    fill(stream, 1000)
    batch = reader.take()
    assert batch is not None
    assert len(batch.entries) < 100


class TestResuming:
    async def test_behind_an_id(self) -> None:
        stream = RecordStream()
        fill(stream, 5)
        reader = stream.resume(stream.id_of(3)).until_now()
        fill(stream, 5)
        assert await read_all(reader) == ([4, 5], [])

    async def test_behind_the_last(self) -> None:
        stream = RecordStream()
        fill(stream, 5)
        assert await read_all(stream.resume(stream.id_of(5)).until_now()) == ([], [])

    async def test_behind_one_that_is_gone(self) -> None:
        stream = RecordStream(capacity=10)
        fill(stream, 100)
        assert await read_all(stream.resume(stream.id_of(50)).until_now()) == (list(range(91, 101)), [40])

    @pytest.mark.parametrize("kept", [0, 3])
    async def test_in_another_life(self, kept: int) -> None:
        stream = RecordStream()
        fill(stream, kept)
        reader = stream.resume(RecordStream().id_of(2)).until_now()
        assert await read_all(reader) == (list(range(1, kept + 1)), [None])

    async def test_behind_one_that_was_never_given(self) -> None:
        stream = RecordStream()
        fill(stream, 2)
        assert await read_all(stream.resume(stream.id_of(3)).until_now()) == ([1, 2], [None])

    @pytest.mark.parametrize(
        "text", ["", "1", "x-1", "0123456789ab", "0123456789ab-", "0123456789ab--1", "é" * 14]
    )
    async def test_not_behind_what_is_no_id(self, text: str) -> None:
        with pytest.raises(InvalidEventId):
            RecordStream().resume(text)


class TestBacklog:
    @pytest.mark.parametrize(("most", "first"), [(0, None), (1, 21), (3, 7), (4, 7), (100, 7)])
    async def test_the_last_that_are_wanted(self, most: int, first: int | None) -> None:
        stream = RecordStream(capacity=20)
        fill(stream, 21)

        def wanted(entry: Entry) -> bool:
            return isinstance(entry, Record) and entry.connection in (1, 7, 14, 21)

        shown, missed = await read_all((await stream.backlog(most, wanted)).until_now())
        expected = [] if first is None else list(range(first if most < 4 else 2, 22))
        assert (shown, missed) == (expected, [])

    async def test_of_an_empty_stream(self) -> None:
        reader = await RecordStream().backlog(5, lambda _: True)
        assert await read_all(reader.until_now()) == ([], [])

    async def test_records_that_come_during_the_search_are_shown(self) -> None:
        stream = RecordStream()
        fill(stream, 5000)
        searching = asyncio.create_task(stream.backlog(1, lambda _: False))
        await asyncio.sleep(0)
        fill(stream, 1)
        shown, _ = await read_all((await searching).until_now())
        assert shown[-1] == 5001


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=30), st.integers(1, 20))
async def test_nothing_is_shown_twice_or_lost_without_a_word(
    steps: list[tuple[int, bool]], capacity: int
) -> None:
    stream = RecordStream(capacity)
    reader = stream.follow()
    shown: list[int] = []
    missed = 0
    for count, takes in [*steps, (0, True)]:
        fill(stream, count)
        while takes and (batch := reader.take()) is not None:
            assert batch.missed is not None
            missed += batch.missed
            shown += numbers(batch.entries)
    assert len(shown) + missed == stream.count
    assert shown == sorted(set(shown))
