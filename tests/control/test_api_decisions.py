"""The stream of records: live, filtered, resumed, and never waited for."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import httpx_sse
import pytest

from box_policy.audit.records import Event, Protocol
from box_policy.audit.stream import RecordStream
from box_policy.control.api import MAX_STREAMS
from box_policy.control.endpoint import Bounds
from box_policy.policy.reasons import Reason
from tests.control.conftest import POLICY, Control, MakeControl, World, record
from tests.control.test_api import error


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def streams(control: Control) -> int:
    return int((await control.client.get("/v1/status")).json()["streams"])


async def following(control: Control, count: int = 1) -> None:
    """Wait until so many streams are open."""
    async with asyncio.timeout(10):
        while await streams(control) != count:
            pass


async def take(
    events: AsyncIterator[httpx_sse.ServerSentEvent], count: int
) -> list[httpx_sse.ServerSentEvent]:
    return [await anext(events) for _ in range(count)]


async def backlog(control: Control, query: str) -> list[int]:
    """The connections of the kept records that pass a filter."""
    async with control.follow(f"backlog=10000&follow=false&{query}") as events:
        return [json.loads(event.data).get("connection", 0) async for event in events]


class TestFollowing:
    async def test_records_arrive_as_they_are_made(self, control: Control) -> None:
        async with control.follow() as events:
            control.world.audit(record(1, name="evil.test"))
            (event,) = await take(events, 1)
            assert (event.event, event.id) == ("decision", f"{control.world.stream.epoch}-2")
            assert json.loads(event.data) == record(1, name="evil.test").as_dict() | {
                "time": json.loads(event.data)["time"]
            }
            control.world.audit(record(1, event=Event.END, allowed=True, reason=Reason.CLOSED))
            await control.client.put(POLICY, json="allow-all")
            assert [event.event for event in await take(events, 2)] == ["end", "policy"]

    async def test_what_was_before_is_shown_only_when_asked_for(self, control: Control) -> None:
        for number in range(1, 6):
            control.world.audit(record(number))
        async with control.follow("backlog=2") as events:
            control.world.audit(record(6))
            shown = [json.loads(event.data)["connection"] for event in await take(events, 3)]
        assert shown == [4, 5, 6]

    async def test_the_backlog_counts_what_passes_the_filter(self, control: Control) -> None:
        for number in range(1, 3001):
            control.world.audit(record(number, name="rare.test" if number % 1000 == 1 else "common.test"))
        async with control.follow("backlog=2&follow=false&name=rare.test") as events:
            shown = [json.loads(event.data)["connection"] async for event in events]
        assert shown == [1001, 2001]

    async def test_a_comment_when_nothing_happens(self, make_control: MakeControl) -> None:
        control = make_control(keep_alive=0.01)
        async with control.client.stream("GET", "/v1/decisions") as response:
            parts = response.aiter_raw()
            place = f"id: {control.world.stream.epoch}-{control.world.stream.count}\n\n".encode()
            assert [await anext(parts), await anext(parts)] == [place, b": \n" + place]

    async def test_records_that_are_not_wanted_move_on_the_place(self, make_control: MakeControl) -> None:
        control = make_control(keep_alive=0.01)
        async with control.client.stream("GET", "/v1/decisions?verdict=allow") as response:
            parts = response.aiter_raw()
            first = await anext(parts)
            control.world.audit(record(1))
            later = await anext(parts)
        assert int(first.split(b"-")[1]) < int(later.split(b"-")[1])

    async def test_it_ends_when_the_gate_does(self, control: Control) -> None:
        async with control.follow("backlog=1") as events:
            await take(events, 1)
            control.world.audit(record(1))
            control.world.stream.close()
            assert [event.event async for event in events] == ["decision"]

    async def test_a_head_alone(self, control: Control) -> None:
        response = await control.client.head("/v1/decisions")
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"].startswith("text/event-stream")
        assert await streams(control) == 0


class TestFilters:
    @pytest.fixture(autouse=True)
    def records(self, world: World) -> None:
        world.audit(record(1, name="A.test", box="b"))
        world.audit(record(2, name="x.a.test", box="c", protocol=Protocol.HTTP))
        world.audit(record(3, name="b.test", allowed=True, reason=Reason.NAME_ALLOWED))
        world.audit(record(4, event=Event.END, allowed=True, reason=Reason.CLOSED, name="b.test"))
        world.audit(record(5, protocol=Protocol.TCP, reason=Reason.SPECIAL_ADDRESS))

    @pytest.mark.parametrize(
        ("query", "connections"),
        [
            ("", [0, 1, 2, 3, 4, 5]),
            ("box=c", [2]),
            ("box=c&box=b", [0, 1, 2, 3, 4, 5]),
            ("event=decision", [1, 2, 3, 5]),
            ("event=end&event=policy", [0, 4]),
            ("protocol=http&protocol=tcp", [2, 5]),
            ("verdict=allow", [3, 4]),
            ("verdict=deny&box=b", [1, 5]),
            ("reason=closed", [4]),
            ("name=a.test", [1]),
            ("name=A.TEST.", [1]),
            ("name=*.a.test", [2]),
            ("name=*.test", [1, 2, 3, 4]),
            ("name=*.a.test&name=b.test", [2, 3, 4]),
            ("name=st", []),
            ("box=nobody", []),
        ],
    )
    async def test_what_passes(self, control: Control, query: str, connections: list[int]) -> None:
        assert await backlog(control, query) == connections

    async def test_a_name_in_unicode_is_told_its_ascii_form(self, control: Control) -> None:
        response = await control.client.get("/v1/decisions", params={"name": "*.B\u00dccher.example"})
        assert error(response)["code"] == "query_invalid"
        assert "write it as *.xn--bcher-kva.example" in error(response)["message"]

    @pytest.mark.parametrize(
        "query",
        [
            "unknown=1",
            "Box=b",
            "box=",
            "box=a/b",
            "event=lost",
            "protocol=udp",
            "verdict=maybe",
            "reason=none",
            "name=",
            "name=*",
            "name=a*.test",
            "name=%00",
            "name=%ff",
            "backlog=-1",
            "backlog=10001",
            "backlog=1e3",
            "backlog=1&backlog=2",
            "follow=no",
            "last_event_id=x",
            "last_event_id=0123456789ab-",
            "last_event_id=0123456789ab-1&last_event_id=0123456789ab-2",
            "&".join(["box=b"] * 51),
            "&".join(["x=b"] * 501),
        ],
        ids=lambda query: query[:40],
    )
    async def test_a_query_that_can_not_be_answered(self, control: Control, query: str) -> None:
        response = await control.client.get(f"/v1/decisions?{query}")
        assert error(response)["code"] == "query_invalid"
        assert await streams(control) == 0


class TestResuming:
    @pytest.mark.parametrize("where", ["header", "query"])
    async def test_it_goes_on_behind_the_last_event(self, control: Control, where: str) -> None:
        async with control.follow() as events:
            for number in range(1, 4):
                control.world.audit(record(number))
            seen = (await take(events, 2))[-1].id
        control.world.audit(record(4))
        query = f"backlog=100&last_event_id={seen if where == 'query' else 'x'}"
        headers = {"Last-Event-ID": seen} if where == "header" else {}
        async with control.follow(query, headers) as events:
            shown = [json.loads(event.data)["connection"] for event in await take(events, 2)]
        assert shown == [3, 4]

    @pytest.mark.parametrize("event_id", ["0123456789ab-5", "{epoch}-999"])
    async def test_an_id_of_another_life(self, control: Control, event_id: str) -> None:
        control.world.audit(record(1))
        event_id = event_id.format(epoch=control.world.stream.epoch)
        async with control.follow(f"follow=false&last_event_id={event_id}") as events:
            found = [(event.event, event.data) async for event in events]
        assert found[0] == ("lost", '{"records":null}')
        assert [event for event, _ in found[1:]] == ["policy", "decision"]

    async def test_an_id_that_is_no_longer_kept(self, world: World, make_control: MakeControl) -> None:
        small = RecordStream(capacity=10)
        object.__setattr__(world.backend, "stream", small)
        world.audit.add(small)
        control = make_control()
        for number in range(1, 101):
            world.audit(record(number))
        async with control.follow(f"follow=false&last_event_id={small.epoch}-50") as events:
            found = [event async for event in events]
        assert (found[0].event, json.loads(found[0].data)) == ("lost", {"records": 40})
        assert [json.loads(event.data)["connection"] for event in found[1:]] == list(range(91, 101))
        small.close()


class TestSlowReaders:
    async def test_who_does_not_read_is_told_what_was_missed(self, control: Control) -> None:
        total = 60_000
        reader, writer = await control.open()
        writer.write(
            b"GET /v1/decisions?event=decision HTTP/1.1\r\nHost: box-policy\r\nConnection: close\r\n\r\n"
        )
        await following(control)
        for number in range(1, total + 1):
            control.world.audit(record(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
        # What the endpoint holds for this reader is what it has not read, and no more than a ring.
        buffers = [
            connection.transport.get_write_buffer_size() for connection in control.endpoint._state.connections
        ]
        assert sum(buffers) < 512 * 1024
        control.world.stream.close()
        async with asyncio.timeout(20):
            answer = await reader.read()
        shown, lost = answer.count(b"event: decision"), 0
        for part in answer.split(b"event: lost\ndata: ")[1:]:
            lost += json.loads(part.split(b"\n")[0])["records"]
        assert lost > 0
        assert shown + lost == total
        writer.close()

    async def test_who_never_reads_is_cut(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(stall_timeout=0.05))
        _, writer = await control.open()
        writer.write(b"GET /v1/decisions HTTP/1.1\r\nHost: box-policy\r\n\r\n")
        await following(control)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            while await streams(control):
                for number in range(500):
                    control.world.audit(record(number))
        writer.close()

    async def test_as_many_streams_as_there_may_be(self, control: Control) -> None:
        readers = []
        for _ in range(MAX_STREAMS):
            readers.append(await control.open())
            readers[-1][1].write(b"GET /v1/decisions HTTP/1.1\r\nHost: box-policy\r\n\r\n")
        await following(control, MAX_STREAMS)
        assert error(await control.client.get("/v1/decisions"))["code"] == "too_many_streams"
        readers.pop()[1].close()
        await following(control, MAX_STREAMS - 1)
        async with control.follow("backlog=1") as events:
            assert (await take(events, 1))[0].event == "policy"
        for _, writer in readers:
            writer.close()
        await following(control, 0)

    async def test_a_body_without_end_ends_the_stream(self, control: Control) -> None:
        reader, writer = await control.open()
        writer.write(
            b"GET /v1/decisions HTTP/1.1\r\nHost: box-policy\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"10000\r\n" + bytes(0x10000) + b"\r\n"
        )  # fmt: skip
        async with asyncio.timeout(10):
            await reader.read()
        assert await streams(control) == 0
        writer.close()


async def test_a_stream_that_fails_closes_its_connection(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    control.world.may_fail = True
    with pytest.raises(httpx.RemoteProtocolError):
        async with control.follow() as events:
            control.world.stream(object())  # type: ignore[arg-type]
            await take(events, 1)
    assert await streams(control) == 0
