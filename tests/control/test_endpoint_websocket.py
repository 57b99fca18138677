"""Websockets on the endpoint: who may open one, and how it ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from box_policy.control.endpoint import Bounds, TcpAddress
from box_policy.control.http.websocket import MAX_MESSAGE
from tests.control.serving import LOOPBACK, TOKEN, Served, serving
from tests.control.websocket_peers import (
    BINARY,
    CLOSE,
    KEY,
    PING,
    PONG,
    TEXT,
    App,
    Raw,
    answer,
    connected,
    frame,
    handshake,
    opened,
)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, app.app) as served:
        yield served


class TestOpening:
    async def test_messages_go_both_ways(self, served: Served, app: App) -> None:
        async with connected(served, "/v2/echo") as peer:
            for message in ("text", b"bytes", "ünïcödé", "", b"x" * MAX_MESSAGE):
                await peer.send(message)
                assert await peer.recv() == message
        assert await app.ended.get() == "1000"
        await served.empty()

    async def test_there_is_no_compression(self, served: Served) -> None:
        async with connected(served, "/v2/echo", compression="deflate") as peer:
            assert "sec-websocket-extensions" not in peer.response.headers  # type: ignore[union-attr]

    @pytest.mark.parametrize("path", ["/v2/nothing", "/v2/plain", "/nothing", "/v1/plain", "/v1/status", "*"])
    async def test_only_where_there_is_one(self, served: Served, path: str) -> None:
        status, head, error = await answer(served, handshake(served, path))
        assert status == 404
        assert b"connection: close" in head
        if path.startswith("/v2/"):
            assert (error["code"], type(error["error"])) == ("not_found", str)
        else:
            assert error["error"]["code"] == "not_found"  # type: ignore[index]

    async def test_an_ordinary_request_for_a_websocket(self, served: Served) -> None:
        async with served.client() as client:
            assert (await client.get("/v2/echo")).status_code == 404
            assert (await client.get("/v2/plain")).text == "plain"

    async def test_where_there_are_none_it_is_not_asked_for(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, websockets=False) as served:
            request = handshake(served, "/v2/plain").replace(b"Upgrade\r\n", b"Upgrade, close\r\n")
            assert (await answer(served, request))[0] == 200

    async def test_the_app_refuses_it(self, served: Served) -> None:
        status, head, error = await answer(served, handshake(served, "/v2/refuse"))
        assert (status, error) == (409, {"error": "the box is paused", "code": "box_paused"})
        assert b"x-content-type-options: nosniff" in head
        with pytest.raises(InvalidStatus, match="409"):
            await connected(served, "/v2/refuse")

    async def test_the_app_fails(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        status, _, error = await answer(served, handshake(served, "/v2/fail"))
        assert (status, error["code"]) == (500, "internal_error")
        assert "a fault" in caplog.text

    async def test_the_app_fails_later(self, served: Served) -> None:
        async with connected(served, "/v2/fail-later") as peer:
            with pytest.raises(ConnectionClosed) as closed:
                await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        await served.empty()

    async def test_the_app_returns(self, served: Served) -> None:
        async with connected(served, "/v2/return") as peer:
            assert [message async for message in peer] == ["bye"]
        assert peer.close_code == 1000
        await served.empty()

    @pytest.mark.parametrize(
        ("lines", "without", "status"),
        [
            ([], "Sec-WebSocket-Key", 400),
            ([], "Sec-WebSocket-Version", 400),
            (["Sec-WebSocket-Version: 8"], "Sec-WebSocket-Version", 426),
            (["Sec-WebSocket-Version: 13"], "", 400),
            ([f"Sec-WebSocket-Key: {KEY}"], "", 400),
            (["Sec-WebSocket-Key: short"], "Sec-WebSocket-Key", 400),
            (["Sec-WebSocket-Key: \xff\xfe"], "Sec-WebSocket-Key", 400),
            (["Upgrade: websocket, h2c"], "Upgrade", 400),
            (["Content-Length: 5"], "", 400),
            (["Transfer-Encoding: chunked"], "", 400),
        ],
    )
    async def test_half_a_handshake(
        self, served: Served, lines: list[str], without: str, status: int
    ) -> None:
        request = handshake(served, "/v2/echo", without=without)[:-2] + "\r\n".join([*lines, "", ""]).encode(
            "latin-1"
        )
        got, head, error = await answer(served, request + b"hello")
        assert (got, error["code"]) == (status, "websocket_invalid"), error
        assert (b"sec-websocket-version: 13" in head) == (status == 426)

    async def test_another_method(self, served: Served) -> None:
        request = handshake(served).replace(b"GET", b"POST")
        assert (await answer(served, request))[2]["code"] == "websocket_invalid"

    async def test_http_1_0(self, served: Served) -> None:
        request = handshake(served).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert (await answer(served, request))[2]["code"] == "websocket_invalid"

    async def test_another_upgrade_is_ignored(self, served: Served) -> None:
        request = handshake(
            served, "/v2/plain", "Connection: close", "HTTP2-Settings: AAMAAABkAAQ", without="Upgrade"
        )
        request = request.replace(b"Sec-", b"Upgrade: h2c\r\nSec-", 1)
        assert (await answer(served, request))[0] == 200

    @pytest.mark.parametrize("known", [None, "bearer", "key"])
    async def test_the_guard_comes_first(self, app: App, known: str | None) -> None:
        async with serving(LOOPBACK, app.app, token=TOKEN) as served:
            headers = {"bearer": {"Authorization": f"Bearer {TOKEN}"}, "key": {"X-Box-Api-Key": TOKEN}}
            if known:
                async with connected(served, "/v2/echo", additional_headers=headers[known]) as peer:
                    await peer.send("x")
                    assert await peer.recv() == "x"
                return
            for lines in ([], ["Authorization: Bearer wrong"], ["X-Box-Api-Key: wrong"]):
                status, _, error = await answer(served, handshake(served, "/v2/echo", *lines))
                assert (status, error["code"]) == (401, "unauthorized")
            for line, code in (("Origin: null", "origin_refused"), ("Host: evil.test", "host_refused")):
                request = handshake(served, "/v2/echo", line, f"X-Box-Api-Key: {TOKEN}", without=line[:4])
                assert (await answer(served, request))[2]["code"] == code

    async def test_behind_another_request(self, served: Served) -> None:
        raw = Raw(*await served.open())
        get = f"GET /v2/plain HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode()
        raw.writer.write(get * 2 + handshake(served) + frame(TEXT, b"early"))
        for _ in range(2):
            assert (await raw.head()).startswith(b"HTTP/1.1 200")
            await raw.reader.readexactly(5)
        assert (await raw.head()).startswith(b"HTTP/1.1 101")
        assert await raw.frame() == (TEXT, b"early")
        raw.writer.close()

    async def test_what_comes_before_it_is_accepted_is_not_lost(self, served: Served, app: App) -> None:
        raw = Raw(*await served.open())
        messages = [frame(PING, b"?"), *(frame(BINARY, bytes([n]) * 5000) for n in range(5))]
        raw.writer.write(handshake(served, "/v2/late") + b"".join(messages))
        await asyncio.sleep(0.05)
        assert raw.reader._buffer == b""  # type: ignore[attr-defined]
        app.go.set()
        assert (await raw.head()).startswith(b"HTTP/1.1 101")
        assert await raw.frame() == (PONG, b"?")
        for number in range(5):
            assert await raw.frame() == (BINARY, bytes([number]) * 5000)
        raw.writer.close()

    async def test_who_leaves_before_it_is_accepted(self, served: Served, app: App) -> None:
        raw = Raw(*await served.open())
        raw.writer.write(handshake(served, "/v2/late") + frame(BINARY, bytes(20_000)))
        await raw.writer.drain()
        await asyncio.sleep(0.02)
        raw.writer.close()
        async with asyncio.timeout(5):
            while served.connections:
                await asyncio.sleep(0)
        app.go.set()
        await served.empty()


class TestEnding:
    async def test_the_endpoint_closes(self, served: Served, app: App) -> None:
        peers: list[ClientConnection] = [await connected(served, "/v2/echo") for _ in range(3)]
        stalled = await opened(served, "/v2/flood")
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        waiting = Raw(*await served.open())
        waiting.writer.write(handshake(served, "/v2/late"))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        await served.endpoint.close()
        assert time.monotonic() - begun < 1
        await served.empty()
        for peer in peers:
            await peer.wait_closed()
            assert peer.close_code == 1001
        stalled.writer.close()
        waiting.writer.close()

    async def test_it_has_its_place_until_it_is_gone(self, app: App) -> None:
        async with serving(LOOPBACK, app.app, token=TOKEN, bounds=Bounds(connections=2)) as served:
            assert isinstance(served.endpoint.address, TcpAddress)
            headers = {"X-Box-Api-Key": TOKEN}
            one = await connected(served, "/v2/echo", additional_headers=headers)
            two = await connected(served, "/v2/echo", additional_headers=headers)
            reader, writer = await served.open()
            async with asyncio.timeout(5):
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
            writer.close()
            for peer in (one, two):
                await peer.send("x")
                assert await peer.recv() == "x"
            await one.close()
            while served.connections > 1:
                await asyncio.sleep(0)
            async with connected(served, "/v2/echo", additional_headers=headers):
                pass
            await two.close()

    async def test_a_peer_that_does_not_answer_the_close(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(linger=0.1)) as served:
            raw = await opened(served, "/v2/return")
            assert await raw.frame() == (TEXT, b"bye")
            assert (await raw.frame())[0] == CLOSE
            await served.empty()
            raw.writer.close()
