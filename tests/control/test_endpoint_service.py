"""What the endpoint does for the service's API: keys, flat errors, long answers."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from box_policy.control.endpoint import Bounds
from box_policy.control.http.answers import ApiError
from tests.control.serving import LOOPBACK, TOKEN, Served, serving


class App:
    """Works as long as the test wants, and sees who leaves meanwhile."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.left = asyncio.Event()
        self.sent = 0
        self.routes = Starlette(
            routes=[
                Route("/v2/work", self.work, methods=["GET", "POST"]),
                Route("/v1/work", self.work, methods=["GET", "POST"]),
                Route("/v2/stream", self.stream),
                Route("/v2/quick", self.quick),
            ]
        )

    async def quick(self, request: Request) -> Response:
        return PlainTextResponse("quick")

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/fail"):
            raise RuntimeError("a fault")
        await self.routes(scope, receive, send)

    async def work(self, request: Request) -> Response:
        await request.body()
        self.started.set()
        leaving = asyncio.create_task(self._leaving(request))
        going = asyncio.create_task(self.go.wait())
        await asyncio.wait([leaving, going], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        going.cancel()
        return PlainTextResponse("done")

    async def _leaving(self, request: Request) -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return

    async def stream(self, request: Request) -> Response:
        return _Stream(self)


class _Stream(Response):
    """Always has more to send."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sending = asyncio.create_task(self._send(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        self._app.left.set()

    async def _send(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": bytes(8192), "more_body": True})
            self._app.sent += 8192


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, app.app) as served:
        yield served


async def ask(served: Served, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    reader, writer = await served.open()
    head = [f"{method} {path} HTTP/1.1", f"Host: {served.host}", "Connection: close", *lines, "", ""]
    writer.write("\r\n".join(head).encode("latin-1") + body)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


class TestKeys:
    BEARER = f"Authorization: Bearer {TOKEN}"
    KEY = f"X-Box-Api-Key: {TOKEN}"

    @pytest.mark.parametrize(
        "lines",
        [[BEARER], [KEY], [BEARER, KEY], [KEY, BEARER], [BEARER, "X-Box-Api-Key:"],
         [BEARER, "X-Box-Api-Key:  "], [f"x-box-API-key:   {TOKEN}  "]],
    )  # fmt: skip
    async def test_the_right_one(self, app: App, lines: list[str]) -> None:
        async with serving(LOOPBACK, app.app, token=TOKEN) as served:
            assert (await ask(served, "/v2/quick", *lines)).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize(
        "lines",
        [
            [],
            ["X-Box-Api-Key:"],
            ["X-Box-Api-Key: wrong"],
            [f"X-Box-Api-Key: Bearer {TOKEN}"],
            [f"X-Box-Api-Key: {TOKEN}x"],
            [f"X-Box-Api-Key: {TOKEN[:-1]}"],
            ["X-Box-Api-Key: \xe9\xff"],
            [KEY, KEY],
            [KEY, "X-Box-Api-Key:"],
            [KEY, "X-Box-Api-Key: wrong"],
            [BEARER, "X-Box-Api-Key: wrong"],
            [KEY, "Authorization: Bearer wrong"],
            [KEY, "Authorization:"],
            [KEY, f"Authorization: Basic {TOKEN}"],
            [KEY, BEARER, BEARER],
            [f"X-Upstash-Key: {TOKEN}"],
        ],
    )
    async def test_no_other(self, app: App, lines: list[str]) -> None:
        async with serving(LOOPBACK, app.app, token=TOKEN) as served:
            answer = await ask(served, "/v2/quick", *lines)
            assert answer.startswith(b"HTTP/1.1 401")
            assert TOKEN.encode() not in answer

    async def test_on_a_unix_socket_without_one_nobody_looks(self, served: Served) -> None:
        answer = await ask(served, "/v2/quick", "X-Box-Api-Key: any", "Authorization: Bearer any")
        assert answer.startswith(b"HTTP/1.1 200")


class TestFlatErrors:
    """What the official clients print is the text in ``error``."""

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            ("Host: evil.test", b"host_refused"),
            ("Origin: null", b"origin_refused"),
            ("X: y", b"unauthorized"),
            (f"X-Box-Api-Key: {TOKEN}", b"internal_error"),
            (f"X-Box-Api-Key: {TOKEN}\r\nBad Header: x", b"http_invalid"),
        ],
    )
    async def test_below_v2(self, app: App, line: str, code: bytes) -> None:
        async with serving(LOOPBACK, app.app, token=TOKEN) as served:
            host = [] if line.startswith("Host") else [f"Host: {served.host}"]
            for version, form in (
                ("v2", b'{"error":".+","code":"%b"}'),
                ("v1", b'{"error":{"code":"%b","message":".+"}}'),
            ):
                reader, writer = await served.open()
                lines = [f"GET /{version}/fail HTTP/1.1", *host, line, "Connection: close", "", ""]
                writer.write("\r\n".join(lines).encode())
                body = (await reader.read()).partition(b"\r\n\r\n")[2]
                writer.close()
                assert re.fullmatch(form % code, body), body

    async def test_half_a_head_and_garbage_in_a_body(self, served: Served) -> None:
        for request in (b"GET /v2/box HTTP/3\r\n\r\n", b"GET /v2/box HTTP/1.1\r\nX: " + b"x" * 20_000):
            reader, writer = await served.open()
            writer.write(request)
            assert b'{"error":"the request is not HTTP/1.1' in await reader.read()
            writer.close()
        answer = await ask(served, "/v2/work", "Transfer-Encoding: chunked", method="POST", body=b"zz\r\n")
        assert b'"code":"http_invalid"}' in answer

    async def test_an_error_of_ones_own(self) -> None:
        error = ApiError("box_paused", "it is paused", status=409, box="b")
        assert error.response_at("/v2/box").body == b'{"error":"it is paused","code":"box_paused","box":"b"}'
        nested = b'{"error":{"code":"box_paused","message":"it is paused","box":"b"}}'
        assert error.response_at("/v1/boxes").body == nested
        assert error.response(flat=True).status_code == 409
        with pytest.raises(KeyError):
            ApiError("box_paused", "without a status")


class TestLongAnswers:
    async def test_no_timer_ends_what_is_worked_on(self, app: App, tmp_path: Path) -> None:
        bounds = Bounds(
            first_head_timeout=0.1, head_timeout=0.1, idle_timeout=0, stall_timeout=0.1, linger=0.1
        )
        async with serving(tmp_path, app.app, bounds=bounds) as served, served.client() as client:
            asking = asyncio.create_task(client.post("/v2/work", content=b"x"))
            await app.started.wait()
            await asyncio.sleep(0.5)
            assert not app.left.is_set()
            app.go.set()
            assert (await asking).text == "done"

    @pytest.mark.parametrize("how", ["close", "half", "abort", "pipelined", "pipelined much"])
    @pytest.mark.parametrize("tcp", [False, True])
    async def test_who_leaves_is_missed_at_once(self, app: App, tmp_path: Path, how: str, tcp: bool) -> None:
        if tcp and how == "pipelined much":
            pytest.skip("TCP itself tells of the end only when what comes before was taken")
        where = LOOPBACK if tcp else tmp_path
        async with serving(where, app.app, token=TOKEN) as served:
            _, writer = await served.open()
            key = f"X-Box-Api-Key: {TOKEN}"
            head = f"POST /v2/work HTTP/1.1\r\nHost: {served.host}\r\n{key}\r\nContent-Length: 1\r\n\r\nx"
            writer.write(head.encode())
            if how.startswith("pipelined"):
                writer.write(head.encode() * (2000 if how == "pipelined much" else 1))
            await app.started.wait()
            await asyncio.sleep(0.05)
            assert not app.left.is_set()
            match how:
                case "half":
                    writer.write_eof()
                case "abort":
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                case _:
                    writer.transport.abort()
            async with asyncio.timeout(1):
                await app.left.wait()
            await served.empty()
            writer.close()

    async def test_who_sends_no_more_to_the_control_api_is_answered(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app) as served:
            reader, writer = await served.open()
            writer.write(f"GET /v1/work HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode())
            writer.write_eof()
            await app.started.wait()
            await asyncio.sleep(0.05)
            assert not app.left.is_set()
            app.go.set()
            async with asyncio.timeout(5):
                assert (await reader.read()).endswith(b"done")
            writer.close()

    async def test_a_client_that_reads_slowly_holds_the_app_back(self, served: Served, app: App) -> None:
        reader, writer = await served.open()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /v2/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        before = -1
        while app.sent != before:
            before = app.sent
            await asyncio.sleep(0.05)
        assert 0 < app.sent < 2**22
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await reader.readexactly(2**23)
        assert not app.left.is_set()
        writer.close()
        async with asyncio.timeout(1):
            await app.left.wait()

    async def test_one_that_stalls_is_ended(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(stall_timeout=0.1)) as served:
            _, writer = await served.open()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /v2/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(5):
                await app.left.wait()
            await served.empty()
            writer.close()

    async def test_one_that_takes_a_little_of_the_end_is_ended_too(self, app: App, tmp_path: Path) -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse(bytes(2**20))(scope, receive, send)

        async with serving(tmp_path, large, bounds=Bounds(linger=0.2)) as served:
            _, writer = await served.open()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /v2/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(5):
                while not served.connections:
                    await asyncio.sleep(0)
                (connection,) = served.endpoint._state.connections
                while not connection.transport.is_closing():
                    await asyncio.sleep(0)
                assert connection.transport.get_write_buffer_size()
                connection.resume_writing()  # as the transport would say it
                await served.empty()
            writer.close()

    async def test_a_thousand_at_a_time(self, app: App, tmp_path: Path) -> None:
        async with serving(tmp_path, app.app, bounds=Bounds(connections=1024)) as served:
            opened = [await served.open() for _ in range(200)]
            for _, writer in opened:
                writer.write(b"GET /v2/work HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await app.started.wait()
            assert (await ask(served, "/v2/quick")).startswith(b"HTTP/1.1 200")
            app.go.set()
            for reader, writer in opened:
                async with asyncio.timeout(5):
                    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()
            await served.empty()
