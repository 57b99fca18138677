"""Hostile HTTP: too much, too slow, too often, or none."""

import asyncio
import json
import logging

import pytest

from box_policy.control.endpoint import Bounds, TcpAddress
from box_policy.control.http import protocol
from box_policy.control.http.bodies import MAX_BODY
from tests.control.conftest import POLICY, TOKEN, Control, MakeControl
from tests.control.test_endpoint import LOOPBACK

PUT = f"PUT {POLICY} HTTP/1.1\r\nHost: box-policy\r\nContent-Type: application/json\r\n".encode()
GET = f"GET {POLICY} HTTP/1.1\r\nHost: box-policy\r\n".encode()


def code(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return str(json.loads(body)["error"]["code"])


def unchanged(control: Control) -> bool:
    return control.world.gate.in_force["b"][1] == 1


class TestTooMuch:
    async def test_an_announced_gigabyte_is_refused_unread(self, control: Control) -> None:
        status, answer = await control.say(
            f"PUT {POLICY} HTTP/1.1",
            "Host: box-policy",
            "Content-Type: application/json",
            f"Content-Length: {2**30}",
            "Expect: 100-continue",
        )
        assert (status, code(answer)) == (413, "body_too_large")
        assert b"connection: close" in answer.lower()

    @pytest.mark.parametrize("address", [None, LOOPBACK], ids=["unix", "TCP"])
    async def test_a_chunked_gigabyte_stops_at_the_cap(
        self, make_control: MakeControl, address: TcpAddress | None
    ) -> None:
        control = make_control(address, token=TOKEN)
        reader, writer = await control.open()
        head = (
            PUT.replace(b"box-policy", control.host.encode()) + f"Authorization: Bearer {TOKEN}\r\n".encode()
        )
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        answered = asyncio.create_task(reader.readuntil(b"}}"))
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        sent = 0
        try:
            while sent < 2**30:
                writer.write(chunk)
                await writer.drain()
                sent += 0x100000
        except ConnectionError:
            pass
        assert MAX_BODY <= sent < MAX_BODY + 2**25
        assert code(await answered) == "body_too_large"
        assert unchanged(control)
        writer.close()

    @pytest.mark.parametrize("address", [None, LOOPBACK], ids=["unix", "TCP"])
    async def test_who_sends_too_much_can_read_why(
        self, make_control: MakeControl, address: TcpAddress | None
    ) -> None:
        control = make_control(address, token=TOKEN)
        reader, writer = await control.open()
        head = (
            PUT.replace(b"box-policy", control.host.encode()) + f"Authorization: Bearer {TOKEN}\r\n".encode()
        )
        size = MAX_BODY + 2**20
        writer.write(head + f"Content-Length: {size}\r\n\r\n".encode() + bytes(size))
        async with asyncio.timeout(5):
            assert code(await reader.read()) == "body_too_large"
        writer.close()

    async def test_a_body_of_exactly_the_cap(self, control: Control) -> None:
        body = b'"allow-all"'.ljust(MAX_BODY)
        response = await control.client.put(
            POLICY, content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200
        response = await control.client.put(
            POLICY, content=body + b" ", headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413

    async def test_a_length_beyond_any_number(self, control: Control) -> None:
        status, _ = await control.say(*PUT.decode().splitlines(), f"Content-Length: {'9' * 5000}")
        assert status in (400, 413)
        assert unchanged(control)

    async def test_a_head_beyond_its_bound(self, control: Control) -> None:
        reader, writer = await control.open()
        writer.write(GET + b"X: " + b"x" * 100_000)
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert code(answer) == "http_invalid"
        writer.close()

    async def test_more_connections_than_there_may_be(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(connections=3))
        open_ones = [await control.open() for _ in range(3)]
        for reader, writer in open_ones:
            writer.write(GET + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await control.open()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        for _, each in (*open_ones, (reader, writer)):
            each.close()
        async with asyncio.timeout(5):
            while (await control.say(*GET.decode().splitlines(), "Connection: close"))[0] != 200:
                pass

    @pytest.mark.parametrize(
        "framing", [b"Content-Length: 4\r\n\r\nGET ", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
    )
    async def test_a_get_with_a_body_is_answered_once(self, control: Control, framing: bytes) -> None:
        """What follows the head is the body, and no request: the connection ends with the answer."""
        reader, writer = await control.open()
        writer.write(GET + framing + GET + b"\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        writer.close()

    async def test_pipelined_requests(self, control: Control) -> None:
        reader, writer = await control.open()
        writer.write((GET + b"\r\n") * 50 + GET + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).count(b"HTTP/1.1 200") == 51
        writer.close()


class TestTooSlow:
    async def test_a_body_that_trickles(self, make_control: MakeControl) -> None:
        control = make_control(body_timeout=0.3)
        reader, writer = await control.open()
        writer.write(PUT + b"Content-Length: 1000\r\n\r\n")

        async def trickle() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"}}")
        trickling.cancel()
        assert code(answer) == "body_timeout"
        assert unchanged(control)
        writer.close()

    @pytest.mark.parametrize("begun", [b"", b"GET", GET])
    async def test_a_head_that_trickles(self, make_control: MakeControl, begun: bytes) -> None:
        control = make_control(bounds=Bounds(first_head_timeout=0.2))
        reader, writer = await control.open()
        writer.write(begun)

        async def trickle() -> None:
            while begun:
                writer.write(b"X")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(5):
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
        trickling.cancel()
        writer.close()

    async def test_a_second_head_that_trickles(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(head_timeout=0.2, idle_timeout=30))
        reader, writer = await control.open()
        writer.write(GET + b"\r\n")
        await reader.readuntil(b"}")
        writer.write(b"GET /")
        async with asyncio.timeout(5):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()

    async def test_a_head_in_time_has_no_deadline_left(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(first_head_timeout=0.1), keep_alive=0.05)
        async with control.client.stream("GET", "/v1/decisions") as response:
            parts = response.aiter_raw()
            await anext(parts)
            for _ in range(6):
                assert (await anext(parts)).startswith(b": \n")

    async def test_an_idle_connection(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(idle_timeout=0))
        reader, writer = await control.open()
        writer.write(GET + b"\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    async def test_an_answer_that_nobody_takes(self, make_control: MakeControl) -> None:
        control = make_control(bounds=Bounds(stall_timeout=0.1, linger=0.1))
        names = [f"host-{number}.example.com" for number in range(50_000)]
        await control.client.put(POLICY, json={"allow": names}, timeout=30)
        _, writer = await control.open()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(10):
            while len(control.endpoint._state.connections) != 2:
                await asyncio.sleep(0)
            while len(control.endpoint._state.connections) != 1:
                await asyncio.sleep(0)
        writer.close()


class TestNoHttp:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x00" * 100 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            GET + b"Host: box-policy\r\n\r\n",
            GET + b"Bad Header: x\r\n\r\n",
            PUT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
            PUT + b"Content-Length: -1\r\n\r\n",
            PUT + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        ],
        ids=lambda data: repr(data[-30:]),
    )
    async def test_what_is_none(self, control: Control, data: bytes) -> None:
        reader, writer = await control.open()
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
        assert code(answer) == "http_invalid"
        assert unchanged(control)
        writer.close()

    @pytest.mark.parametrize("garbage", [b"zz\r\n", b'5\r\n"alloXX'])
    async def test_a_body_that_breaks_off(self, control: Control, garbage: bytes) -> None:
        reader, writer = await control.open()
        writer.write(PUT + b"Transfer-Encoding: chunked\r\n\r\n" + garbage)
        writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read()
        assert unchanged(control)
        writer.close()

    async def test_a_client_that_leaves_in_the_middle(self, control: Control) -> None:
        _, writer = await control.open()
        writer.write(PUT + b"Content-Length: 11\r\n\r\n" + b'"allow-al')
        await writer.drain()
        writer.close()
        assert (await control.client.get(POLICY)).json() == {"mode": "deny-all"}
        async with asyncio.timeout(5):
            while len(control.endpoint._state.connections) > 1 or control.endpoint._state.tasks:
                await asyncio.sleep(0)
        assert unchanged(control)

    async def test_garbage_in_the_middle_of_a_stream(self, control: Control) -> None:
        reader, writer = await control.open()
        writer.write(
            b"GET /v1/decisions?backlog=1 HTTP/1.1\r\nHost: box-policy\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await reader.readuntil(b"event: policy")
        writer.write(b"this is no chunk\r\n")
        async with asyncio.timeout(5):
            try:
                await reader.read()
            except ConnectionResetError:
                pass
        writer.close()

    @pytest.mark.parametrize("known", [True, False])
    async def test_garbage_behind_a_head_is_the_peers_mistake(
        self, make_control: MakeControl, caplog: pytest.LogCaptureFixture, known: bool
    ) -> None:
        """The fixture sees to it that nothing is logged as an error."""
        control = make_control(LOOPBACK, token=TOKEN)
        authorization = [f"Authorization: Bearer {TOKEN}"] if known else []
        lines = [f"PUT {POLICY} HTTP/1.1", f"Host: {control.host}"]  # which the app would answer with 415
        for _ in range(3):
            status, answer = await control.say(
                *lines, "Transfer-Encoding: chunked", *authorization, body=b"ZZZ\r\n"
            )
            assert (status, code(answer)) == ((400, "http_invalid") if known else (401, "unauthorized"))
        assert "Traceback" not in caplog.text

    async def test_an_upgrade_is_ignored(
        self, control: Control, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(protocol._log, "filters", [])
        status, _ = await control.say(
            *GET.decode().splitlines(),
            "Connection: Upgrade, close",
            "Upgrade: websocket",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        assert status == 200
        assert caplog.records == []

    async def test_it_does_not_fill_the_log(self, control: Control, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(40):
            await control.say("none")
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) <= 12

    async def test_a_proxys_headers_mean_nothing(self, control: Control) -> None:
        headers = {"X-Forwarded-For": "203.0.113.1", "X-Forwarded-Host": "evil.test", "Forwarded": "for=_x"}
        assert (await control.client.get(POLICY, headers=headers)).status_code == 200
