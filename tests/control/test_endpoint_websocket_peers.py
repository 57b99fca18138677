"""What the peer of a websocket may do with it: hostile frames, too much, too slow, or nothing at all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from box_policy.control.endpoint import Bounds
from box_policy.control.http.websocket import MAX_MESSAGE, WebSocketSession
from tests.control.serving import Served, serving
from tests.control.websocket_peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    App,
    Raw,
    connected,
    frame,
    opened,
)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, app.app) as served:
        yield served


class TestHostileFrames:
    async def closed(self, raw: Raw) -> int:
        """The code that the endpoint closes with."""
        while True:
            opcode, data = await raw.frame()
            if opcode == CLOSE:
                assert await raw.rest() == b""
                raw.writer.close()
                return int.from_bytes(data[:2])

    async def test_fragments(self, served: Served) -> None:
        raw = await opened(served)
        raw.writer.write(
            frame(TEXT, b"a", fin=False) + frame(PING, b"?") + frame(CONTINUATION, b"b", fin=False)
        )
        assert await raw.frame() == (PONG, b"?")
        for byte in frame(CONTINUATION, "ç".encode()):
            raw.writer.write(bytes([byte]))
            await raw.writer.drain()
        assert await raw.frame() == (TEXT, "abç".encode())
        raw.writer.close()

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(BINARY, size=MAX_MESSAGE + 1), 1009),
            (frame(BINARY, size=2**63 - 1), 1009),
            (frame(BINARY, bytes(600_000), fin=False) + frame(CONTINUATION, size=600_000), 1009),
            (frame(TEXT, b"", fin=False) + frame(CONTINUATION, fin=False) * 5000, 1008),
            (frame(TEXT, b"\xff"), 1007),
            (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"("), 1007),
            (b"\x81\x01x", 1002),
            (frame(CONTINUATION, b"x"), 1002),
            (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
            (frame(3), 1002),
            (frame(11), 1002),
            (b"\xf1" + frame(TEXT)[1:], 1002),
            (frame(PING, bytes(126)), 1002),
            (frame(PING, b"x", fin=False), 1002),
            (frame(CLOSE, b"x"), 1002),
            (frame(CLOSE, b"\x00\x01"), 1002),
            (frame(CLOSE, b"\x03\xe8\xff"), 1007),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1002),
        ],
        ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else str(value),
    )
    async def test_what_ends_it(
        self, served: Served, app: App, data: bytes, code: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        raw = await opened(served)
        raw.writer.write(data)
        assert await self.closed(raw) == code
        async with asyncio.timeout(5):
            assert await app.ended.get() == str(code)
        await served.empty()
        assert caplog.records == []

    async def test_nothing_behind_a_mistake_is_taken(self, served: Served, app: App) -> None:
        raw = await opened(served, "/v2/deaf")
        raw.writer.write(frame(BINARY, b"abc") + frame(TEXT, b"\xff") + frame(BINARY, b"defg"))
        assert await self.closed(raw) == 1007
        assert await app.ended.get() == "3"

    async def test_what_comes_before_a_close_frame_is(self, served: Served, app: App) -> None:
        raw = await opened(served, "/v2/deaf")
        raw.writer.write(frame(BINARY, b"abc") + frame(CLOSE))
        assert (await raw.frame())[0] == CLOSE
        assert await app.ended.get() == "3"
        raw.writer.close()

    async def test_who_sends_on_can_read_why(self, served: Served) -> None:
        raw = await opened(served)
        raw.writer.write(frame(BINARY, bytes(4 * 2**20)))
        assert await self.closed(raw) == 1009

    async def test_a_close_frame_is_answered(self, served: Served, app: App) -> None:
        raw = await opened(served)
        raw.writer.write(frame(CLOSE, b"\x03\xe9bye"))
        assert await raw.frame() == (CLOSE, b"\x03\xe9bye")
        assert await raw.rest() == b""
        assert await app.ended.get() == "1001"
        raw.writer.close()
        await served.empty()

    async def test_a_peer_that_breaks_off(self, served: Served, app: App) -> None:
        raw = await opened(served)
        raw.writer.write(frame(BINARY, bytes(10), size=1000))
        await raw.writer.drain()
        raw.writer.transport.abort()
        async with asyncio.timeout(5):
            assert await app.ended.get() == "1006"
        await served.empty()

    async def test_pings_without_end_cost_no_memory(self, app: App, tmp_path: Path) -> None:
        """Of a peer that takes no pongs, no more pings are read."""
        async with serving(tmp_path, app.app, bounds=Bounds(stall_timeout=0.5)) as served:
            raw = await opened(served)
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            (connection,) = served.endpoint._state.connections

            async def ping() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        raw.writer.write(frame(PING, bytes(125)) * 500)
                        await raw.writer.drain()

            pinging = asyncio.create_task(ping())
            most = 0
            async with asyncio.timeout(5):
                while served.connections:
                    most = max(most, connection.transport.get_write_buffer_size())
                    await asyncio.sleep(0)
            assert 64 * 1024 < most < 128 * 1024
            raw.writer.transport.abort()
            await pinging
            await served.empty()

    async def test_tiny_frames_leave_the_loop_to_others(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[int] = []
        received = WebSocketSession.received

        def watched(self: WebSocketSession, data: bytes) -> None:
            given.append(len(data))
            received(self, data)

        monkeypatch.setattr(WebSocketSession, "received", watched)
        raw = await opened(served)
        raw.writer.write(frame(PONG) * 100_000 + frame(TEXT, b"x"))
        assert await raw.frame() == (TEXT, b"x")
        assert max(given) <= 4096
        raw.writer.close()


class TestBackpressure:
    async def test_a_peer_that_does_not_read_holds_the_app_back(self, served: Served, app: App) -> None:
        raw = await opened(served, "/v2/flood")
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        while app.sent != before:
            before = app.sent
            await asyncio.sleep(0.05)
        assert 0 < app.sent < 2**22
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await raw.reader.readexactly(2**23)
        raw.writer.transport.abort()
        assert await app.ended.get() == "flood"
        await served.empty()

    async def test_but_not_for_ever(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(stall_timeout=0.1)) as served:
            raw = await opened(served, "/v2/flood")
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(5):
                assert await app.ended.get() == "flood"
            await served.empty()
            raw.writer.transport.abort()

    async def test_an_app_that_takes_nothing_holds_the_peer_back(self, served: Served, app: App) -> None:
        raw = await opened(served, "/v2/deaf")
        raw.writer.transport.set_write_buffer_limits(0)
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    raw.writer.write(frame(BINARY, bytes(8192)))
                    await raw.writer.drain()
                    sent += 8192
        assert sent < 2**22
        app.go.set()
        async with asyncio.timeout(5):
            await raw.writer.drain()
        raw.writer.write(frame(CLOSE))
        assert int(await app.ended.get()) >= sent

    async def test_one_that_is_held_back_and_leaves_is_missed(self, served: Served, app: App) -> None:
        raw = await opened(served, "/v2/deaf")
        raw.writer.write(frame(BINARY, bytes(8192)) * 100)
        await asyncio.sleep(0.05)
        assert served.connections == 1
        raw.writer.transport.abort()
        async with asyncio.timeout(2):
            assert int(await app.ended.get()) >= 64 * 1024
        await served.empty()

    @pytest.mark.parametrize("path", ["/v2/echo", "/v2/deaf"])
    async def test_a_dead_peer_is_noticed(self, app: App, tmp_path: Path, path: str) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(ping_interval=0.02)) as served:
            raw = await opened(served, path)
            for _ in range(3):
                assert (await raw.frame())[0] == PING
            opcode, data = await raw.frame()
            assert (opcode, data[:2]) == (CLOSE, b"\x03\xf3")
            app.go.set()
            await served.empty()
            raw.writer.close()

    async def test_a_living_one_stays(self, app: App, tmp_path: Path) -> None:
        async with (
            serving(tmp_path, app.app, bounds=Bounds(ping_interval=0.01)) as served,
            connected(served, "/v2/echo", ping_interval=None) as peer,
        ):
            await asyncio.sleep(0.3)
            await peer.send("x")
            assert await peer.recv() == "x"

    async def test_one_that_is_held_back_is_not_dead(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(ping_interval=0.01)) as served:
            raw = await opened(served, "/v2/deaf")
            raw.writer.write(frame(BINARY, bytes(8192)) * 100)
            await asyncio.sleep(0.3)
            assert app.ended.empty()
            app.go.set()
            raw.writer.transport.abort()

    async def test_no_timer_of_requests_ends_it(self, app: App, tmp_path: Path) -> None:
        bounds = Bounds(first_head_timeout=0.1, head_timeout=0.1, idle_timeout=0, stall_timeout=0.1)
        async with (
            serving(tmp_path, app.app, bounds=bounds) as served,
            connected(served, "/v2/echo") as peer,
        ):
            await asyncio.sleep(0.4)
            await peer.send("x")
            assert await peer.recv() == "x"
