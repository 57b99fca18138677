"""What may be done to the endpoint by those who have no token."""

import asyncio
import gc
import time
import weakref
from typing import Any

import h11
import pytest

from box_policy.control.endpoint import Bounds
from box_policy.control.http import protocol
from box_policy.control.http.admission import Admission
from box_policy.control.http.requests import MAX_HEADER_LINES, Requests
from box_policy.control.store import StaleGenerationError
from tests.control.conftest import POLICY, TOKEN, Control, MakeControl
from tests.control.test_endpoint import LOOPBACK
from tests.control.test_endpoint_http import code


@pytest.fixture
async def control(make_control: MakeControl) -> Control:
    return make_control(LOOPBACK, token=TOKEN, bounds=Bounds(connections=4))


def head(control: Control, *lines: str, known: bool = False) -> bytes:
    authorization = [f"Authorization: Bearer {TOKEN}"] if known else []
    all_lines = [f"PUT {POLICY} HTTP/1.1", f"Host: {control.host}", *authorization, *lines, "", ""]
    return "\r\n".join(all_lines).encode()


CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")


class TestTheLoop:
    async def test_nothing_parses_the_body_of_a_stranger(
        self, control: Control, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[object] = []
        given: list[int] = []
        next_event, receive_data = Requests.next_event, Requests.receive_data

        def watched_event(self: Requests) -> Any:
            events.append(next_event(self))
            return events[-1]

        def watched_data(self: Requests, data: bytes) -> None:
            given.append(len(data))
            receive_data(self, data)

        monkeypatch.setattr(Requests, "next_event", watched_event)
        monkeypatch.setattr(Requests, "receive_data", watched_data)
        status, answer = await control.say(
            *head(control, *CHUNKED).decode().splitlines()[:-1], body=b"1\r\n \r\n" * 100_000
        )
        assert (status, code(answer)) == (401, "unauthorized")
        assert b"connection: close" in answer.lower()
        assert events == [h11.NEED_DATA]
        assert sum(given) <= 4096

    async def test_the_head_is_taken_in_slices(
        self, control: Control, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[int] = []
        receive_data = Requests.receive_data

        def watched(self: Requests, data: bytes) -> None:
            given.append(len(data))
            receive_data(self, data)

        monkeypatch.setattr(Requests, "receive_data", watched)
        status, _ = await control.say(*head(control, "X: " + "x" * 10_000).decode().splitlines()[:-1])
        assert status == 401
        assert len(given) >= 3
        assert max(given) <= 4096

    @pytest.mark.parametrize(("count", "status"), [(MAX_HEADER_LINES - 2, 401), (MAX_HEADER_LINES, 400)])
    async def test_so_many_header_lines(self, control: Control, count: int, status: int) -> None:
        lines = head(control, *["a: b"] * count).decode().splitlines()[:-1]
        assert (await control.say(*lines))[0] == status

    @pytest.mark.parametrize(
        ("chunk", "status"), [(b"1\r\n \r\n", 400), (b"50\r\n%b\r\n" % (b" " * 80), 200)]
    )
    async def test_so_many_chunks_are_not_tiny(self, control: Control, chunk: bytes, status: int) -> None:
        reader, writer = await control.open()
        writer.write(head(control, *CHUNKED, "Connection: close", known=True))
        writer.write(chunk * 5000 + b'b\r\n"allow-all"\r\n0\r\n\r\n')
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert int(answer.split()[1]) == status
        writer.close()

    async def test_strangers_share_what_a_turn_has_for_them(self) -> None:
        admission = Admission(1)
        done: list[int] = []

        def work() -> None:
            time.sleep(0.002)
            done.append(len(done))

        for _ in range(10):
            admission.in_turn(work)
        seen = []
        while len(done) < 10:
            await asyncio.sleep(0)
            seen.append(len(done))
        assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= 3
        assert done == list(range(10))

    async def test_what_one_leaves_behind_is_no_work_for_the_garbage_collector(
        self, control: Control, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[weakref.ref[Any]] = []
        connected = protocol.ControlProtocol.connection_made

        def watched(self: protocol.ControlProtocol, transport: asyncio.Transport) -> None:
            made.append(weakref.ref(self))
            connected(self, transport)

        monkeypatch.setattr(protocol.ControlProtocol, "connection_made", watched)
        gc.collect()
        gc.disable()
        try:
            await control.say(*head(control).decode().splitlines()[:-1])
            async with asyncio.timeout(5):
                while made[0]() is not None:
                    await asyncio.sleep(0)
        finally:
            gc.enable()


class TestPlaces:
    async def test_a_refused_connection_is_over(self, control: Control) -> None:
        reader, writer = await control.open()
        writer.write(f"GET /healthz HTTP/1.1\r\nHost: {control.host}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer.lower()
        writer.close()

    async def test_strangers_make_room(self, control: Control, caplog: pytest.LogCaptureFixture) -> None:
        await control.client.get(POLICY)  # has authenticated, and stays
        strangers = [await control.open() for _ in range(10)]
        async with asyncio.timeout(5):
            for reader, _ in strangers[:7]:
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
        assert not strangers[-1][0].at_eof()
        assert len(control.endpoint._state.connections) == 4
        metrics = (await control.client.get("/metrics")).text
        assert "box_policy_control_connections_displaced_total 7.0" in metrics
        warnings = [record for record in caplog.records if "as many as there may be" in record.getMessage()]
        assert 1 <= len(warnings) <= 6
        for _, writer in strangers:
            writer.close()

    async def test_the_bounds_as_they_are(self) -> None:
        bounds = Bounds()
        assert (bounds.first_head_timeout, bounds.stall_timeout, bounds.head_size) == (3, 15, 16 * 1024)


class TestHalfClosed:
    @pytest.mark.parametrize("entries", [1, 3000])
    async def test_who_sends_no_more_is_answered(self, control: Control, entries: int) -> None:
        body = ",".join(f'"host-{number}.test"' for number in range(entries))
        body = f'{{"mode": "custom", "allowed_domains": [{body}]}}'
        reader, writer = await control.open()
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        writer.write(head(control, *lines, known=True) + body.encode())
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"}}")
        writer.close()

    async def test_every_request_that_came_before(self, control: Control) -> None:
        get = f"GET {POLICY} HTTP/1.1\r\nHost: {control.host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        reader, writer = await control.open()
        writer.write(get.encode() * 3)
        writer.write_eof()
        async with asyncio.timeout(5):
            assert (await reader.read()).count(b"HTTP/1.1 200") == 3
        writer.close()

    async def test_but_not_for_ever(self, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "_HALF_CLOSED", 0.05)
        waiting = asyncio.Event()

        async def never(*_: object, **__: object) -> None:
            await waiting.wait()
            raise StaleGenerationError(1)

        monkeypatch.setattr(control.world.store, "put", never)
        reader, writer = await control.open()
        lines = ("Content-Type: application/json", "Content-Length: 11")
        writer.write(head(control, *lines, known=True) + b'"allow-all"')
        writer.write_eof()
        async with asyncio.timeout(5):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        waiting.set()
        writer.close()
