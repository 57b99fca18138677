"""Plain HTTP: each request judged by its own Host; what the origin sees is what was judged."""

import asyncio
import contextlib
import json

import pytest

from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.gate.conftest import Client, GateUnderTest, MakeGate
from tests.lab import Lab, plan

SHARED = plan.SHARED4  # front.cdn.test (allowed) and hidden.othercdn.test (not) are both here


def request(host: str = "front.cdn.test", *, line: str = "GET / HTTP/1.1", extra: str = "") -> bytes:
    return f"{line}\r\nHost: {host}\r\n{extra}\r\n".encode("latin-1")


async def error_of(client: Client, status: int) -> dict[str, object]:
    """The JSON of an error response, behind which the connection has to end in order."""
    got, body = await client.read_response()
    assert got == status
    assert await client.read() == b""
    error = json.loads(body)["error"]
    assert set(error) == {"reason", "host", "rule", "generation"}
    return dict(error)


def hidden_seen(lab: Lab) -> bool:
    return any(b"hidden.othercdn.test" in connection.received for connection in lab.connections())


class TestAllowed:
    @pytest.mark.parametrize(
        ("address", "name"), [(plan.ALLOWED4, "allowed.test"), (plan.ALLOWED6, "allowed.test")]
    )
    async def test_a_request(self, gate: GateUnderTest, lab: Lab, address: str, name: str) -> None:
        client = await gate.claim(address, 80)
        await client.send(request(name, line="GET /path?q=1 HTTP/1.1"))
        assert (await client.read_response())[0] == 200
        seen = lab.requests()[0]
        assert (seen.address, seen.target, seen.header("host")) == (address, "/path?q=1", name)
        record = await gate.decision()
        assert (record.protocol, record.name, record.dialled) == ("http", name, address)

    @pytest.mark.parametrize("host", ["ALLOWED.Test", "allowed.test:80", "allowed.test.", "  allowed.test\t"])
    async def test_a_host_in_another_spelling(self, gate: GateUnderTest, lab: Lab, host: str) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request(host))
        assert (await client.read_response())[0] == 200
        assert lab.requests(plan.ALLOWED4)

    async def test_another_port_that_the_host_names(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 8080)
        await client.send(request("allowed.test:8080"))
        assert (await client.read_response())[0] == 200
        assert lab.connections(plan.ALLOWED4, 8080)

    async def test_the_gate_dials_what_it_resolved(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.EVIL4, 80)
        await client.send(request("allowed.test"))
        assert (await client.read_response())[0] == 200
        assert lab.packets(plan.EVIL4) == []
        assert (await gate.decision()).mismatch

    async def test_requests_one_after_the_other_share_a_connection(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        for _ in range(3):
            await client.send(request("allowed.test"))
            assert (await client.read_response())[0] == 200
        assert len(lab.connections(plan.ALLOWED4)) == 1
        assert len([record for record in gate.records if record.allowed]) == 3

    async def test_another_allowed_name_gets_a_connection_of_its_own(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        for name in ("allowed.test", "a.wild.test", "allowed.test"):
            await client.send(request(name))
            assert (await client.read_response())[0] == 200
        assert [len(lab.connections(address)) for address in (plan.ALLOWED4, plan.WILDCARD4)] == [1, 1]

    async def test_a_request_byte_by_byte(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        for byte in request("allowed.test"):
            await client.send(bytes((byte,)))
        assert (await client.read_response())[0] == 200

    @pytest.mark.parametrize("size", [10, 300_000])
    async def test_a_body_with_a_length(self, gate: GateUnderTest, lab: Lab, size: int) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        head = request("allowed.test", line="POST /echo HTTP/1.1", extra=f"Content-Length: {size}\r\n")
        await client.send(head + b"x" * size)
        assert await client.read_response() == (200, b"x" * size)

    async def test_a_body_in_chunks(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        head = request("allowed.test", line="POST /echo HTTP/1.1", extra="Transfer-Encoding: chunked\r\n")
        await client.send(head + b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n")
        assert await client.read_response() == (200, b"abcde")

    async def test_a_large_response_is_not_collected(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line="GET /bytes/50000000 HTTP/1.1"))
        status, body = await client.read_response()
        assert (status, len(body)) == (200, 50_000_000)

    async def test_continue_comes_after_the_verdict(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        extra = "Content-Length: 2\r\nExpect: 100-continue\r\n"
        await client.send(request("allowed.test", line="POST /echo HTTP/1.1", extra=extra))
        assert (await client.read_response())[0] == 100
        await client.send(b"hi")
        assert await client.read_response() == (200, b"hi")

    async def test_an_upgrade_other_than_websocket_is_taken_out(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        extra = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
        await client.send(request("allowed.test", extra=extra))
        assert (await client.read_response())[0] == 200
        seen = lab.requests()[0]
        assert (seen.header("upgrade"), seen.header("http2-settings")) == (None, None)

    async def test_an_absolute_target_goes_up_in_origin_form(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line="GET http://allowed.test/x HTTP/1.1"))
        assert (await client.read_response())[0] == 200
        assert lab.requests()[0].target == "/x"

    async def test_a_websocket(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        extra = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        await client.send(request("allowed.test", line="GET /ws HTTP/1.1", extra=extra))
        assert (await client.read_response())[0] == 101
        await client.send(b"\x81\x82\0\0\0\0hi")  # a masked text frame, with a mask of zeros
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(4) == b"\x81\x02hi"


class TestDenied:
    @pytest.mark.parametrize("address", [plan.EVIL4, plan.EVIL6], ids=["IPv4", "IPv6"])
    async def test_a_host_that_is_not_allowed(self, gate: GateUnderTest, lab: Lab, address: str) -> None:
        client = await gate.claim(address, 80)
        await client.send(request("evil.test"))
        error = await error_of(client, 403)
        assert (error["reason"], error["host"], error["generation"]) == ("name_not_allowed", "evil.test", 1)
        assert lab.packets() == []

    async def test_a_client_that_is_still_sending_gets_the_answer(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        client = await gate.claim(plan.EVIL4, 80)
        extra = "Content-Length: 500000\r\nExpect: 100-continue\r\n"
        await client.send(request("evil.test", line="POST / HTTP/1.1", extra=extra) + bytes(200_000))
        assert (await error_of(client, 403))["reason"] == "name_not_allowed"
        assert lab.packets() == []

    async def test_an_allowed_name_with_a_special_address(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("a_10-66-0-1_x.rebind.test"))
        assert (await error_of(client, 403))["reason"] == "resolved_special"
        assert lab.packets(plan.PRIVATE4) == []

    async def test_deny_all(self, make_gate: MakeGate, lab: Lab) -> None:
        client = await make_gate("deny-all").claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        assert (await error_of(client, 403))["reason"] == "deny_all"
        assert lab.packets() == []

    async def test_a_second_request_for_a_hidden_host(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(SHARED, 80)
        await client.send(request())
        assert (await client.read_response())[0] == 200
        await client.send(request("hidden.othercdn.test"))
        assert (await error_of(client, 403))["reason"] == "name_not_allowed"
        assert not hidden_seen(lab)

    async def test_a_second_request_in_the_same_segment(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(SHARED, 80)
        await client.send(request() + request("hidden.othercdn.test"))
        assert (await client.read_response())[0] == 200
        await error_of(client, 403)
        assert not hidden_seen(lab)

    @pytest.mark.parametrize(
        ("data", "status", "reason"),
        [
            (request(extra="Host: hidden.othercdn.test\r\n"), 400, Reason.HOST_MISMATCH),
            (request("hidden.othercdn.test", extra="Host: front.cdn.test\r\n"), 400, Reason.HOST_MISMATCH),
            (request(line="GET http://hidden.othercdn.test/ HTTP/1.1"), 400, Reason.HOST_MISMATCH),
            (
                request("hidden.othercdn.test", line="GET http://front.cdn.test/ HTTP/1.1"),
                400,
                Reason.HOST_MISMATCH,
            ),
            (
                request(line="GET http://front.cdn.test@hidden.othercdn.test/ HTTP/1.1"),
                400,
                Reason.HTTP_INVALID,
            ),
            (request(line="GET https://front.cdn.test/ HTTP/1.1"), 400, Reason.HTTP_NOT_SUPPORTED),
            (request("front.cdn.test@hidden.othercdn.test"), 400, Reason.NAME_INVALID),
            (request("hidden.othercdn.test\0.front.cdn.test"), 400, Reason.HTTP_INVALID),
            (request("front.cdn.test\thidden.othercdn.test"), 400, Reason.NAME_INVALID),
            (request("front.cdn.test\r\n hidden.othercdn.test"), 400, Reason.HTTP_INVALID),
            (request(extra="X: 1\r\n Host: hidden.othercdn.test\r\n"), 400, Reason.HTTP_INVALID),
            (request(extra="Host : hidden.othercdn.test\r\n"), 400, Reason.HTTP_INVALID),
            (request("hidden%2eothercdn%2etest"), 400, Reason.NAME_INVALID),
            (request("front.cdn.test#.hidden.othercdn.test"), 400, Reason.NAME_INVALID),
            (request("front.cdn.test:80:hidden.othercdn.test"), 400, Reason.NAME_INVALID),
            (request("front.cdn.test:8080"), 400, Reason.HOST_MISMATCH),
            (request("front.cdn.test:"), 400, Reason.NAME_INVALID),
            (request(""), 400, Reason.NO_NAME),
            (b"GET / HTTP/1.1\r\nX-Forwarded-Host: front.cdn.test\r\n\r\n", 400, Reason.NO_NAME),
            (b"GET / HTTP/1.0\r\n\r\n", 400, Reason.NO_NAME),
            (request(SHARED), 403, Reason.ADDRESS_NOT_ALLOWED),
            (request(line="GET / HTTP/2.0"), 400, Reason.HTTP_NOT_SUPPORTED),
            (request(line="GET / HTTP/1.2"), 400, Reason.HTTP_NOT_SUPPORTED),
            (request(line="CONNECT hidden.othercdn.test:443 HTTP/1.1"), 400, Reason.HTTP_NOT_SUPPORTED),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, Reason.HTTP_NOT_SUPPORTED),
            (
                request(extra="Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
                400,
                Reason.HTTP_INVALID,
            ),
            (request(extra="Content-Length: 0\r\nContent-Length: 5\r\n"), 400, Reason.HTTP_INVALID),
            (request(extra="Content-Length: +5\r\n"), 400, Reason.HTTP_INVALID),
            (request(extra="Transfer-Encoding: xchunked\r\n"), 400, Reason.HTTP_INVALID),
            (request(extra="X: a\rb\r\n"), 400, Reason.HTTP_INVALID),
            (request(extra="no colon\r\n"), 400, Reason.HTTP_INVALID),
            (b"GET / x HTTP/1.1\r\nHost: front.cdn.test\r\n\r\n", 400, Reason.HTTP_INVALID),
        ],
    )
    async def test_a_request_that_means_two_things_or_none(
        self, gate: GateUnderTest, lab: Lab, data: bytes, status: int, reason: Reason
    ) -> None:
        client = await gate.claim(SHARED, 80)
        await client.send(data)
        assert (await error_of(client, status))["reason"] == reason
        record = await gate.decision()
        assert (record.allowed, record.reason) == (False, reason)
        assert lab.packets() == []

    async def test_a_head_without_end(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(SHARED, 80)
        await client.send(request()[:-2] + b"X: " + b"a" * 70_000)
        assert (await error_of(client, 431))["reason"] == "http_invalid"
        assert lab.packets() == []

    @pytest.mark.parametrize(
        "start", [b"2;", b"0000000000", b"0\r\nX: "], ids=["extension", "size", "trailer"]
    )
    async def test_framing_without_end(self, gate: GateUnderTest, start: bytes) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        head = request("allowed.test", line="POST /echo HTTP/1.1", extra="Transfer-Encoding: chunked\r\n")
        await client.send(head + start)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await client.send(b"0" * 2000)
        got, _ = await client.read_response()
        assert got == 400

    async def test_request_trailers_are_left_out(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        head = request("allowed.test", line="POST /echo HTTP/1.1", extra="Transfer-Encoding: chunked\r\n")
        await client.send(head + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert await client.read_response() == (200, b"hi")

    async def test_a_head_that_takes_too_long(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(verdict_timeout=0.5))
        client = await gate.claim(SHARED, 80)
        await client.send(request()[:-2])
        assert await client.is_reset()
        assert (await gate.decision()).reason is Reason.TIMEOUT
        assert lab.packets() == []

    async def test_an_answer_that_switches_protocols_unasked(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        extra = (
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        await client.send(request("allowed.test", line="GET /ws HTTP/1.1", extra=extra))
        status, _ = await client.read_response()
        assert status != 101


class TestUpstreamFails:
    async def test_a_refused_connection(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, plan.REFUSED_PORT)
        await client.send(request(f"allowed.test:{plan.REFUSED_PORT}"))
        assert (await error_of(client, 502))["reason"] == "upstream_failed"
        client.writer.close()
        assert (await gate.end()).reason is Reason.UPSTREAM_FAILED

    async def test_a_name_that_does_not_exist(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        gate.lab.dns.set("gone.wild.test", rcode="NXDOMAIN")
        await client.send(request("gone.wild.test"))
        assert (await error_of(client, 502))["reason"] == "resolution_failed"

    async def test_a_dead_address_is_followed_by_the_next(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(connect_timeout=0.3))
        lab.dns.set("two.wild.test", A=[plan.SILENT4, plan.WILDCARD4])
        client = await gate.claim(plan.SILENT4, 80)
        await client.send(request("two.wild.test"))
        assert (await client.read_response())[0] == 200


class TestEnds:
    async def test_the_box_goes_away(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line="GET /hold HTTP/1.1"))
        await lab.expect_async(lab.requests)
        gate.embedded.gate.drop("b")
        assert await client.is_reset()
        await lab.expect_async(lambda: [c for c in lab.connections(plan.ALLOWED4) if c.closed])

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
    async def test_the_box_goes_away_while_the_connection_is_handed_over(
        self, gate: GateUnderTest, lab: Lab, turns: int
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        gate.embedded.gate.lane.run_ready()
        for _ in range(turns):
            await asyncio.sleep(0)
        gate.embedded.gate.drop("b")
        await client.is_reset()
        assert lab.requests() == []

    async def test_when_a_denial_can_not_be_recorded(self, gate: GateUnderTest, lab: Lab) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("the disk is on fire")

        gate.embedded.gate.audit.add(broken)
        gate.may_fail = True
        for host, status in (("evil.test", 403), ("evil.test\t", 403), ("a b", 400), ("allowed.test", 502)):
            client = await gate.claim(plan.ALLOWED4, 80)
            await client.send(request(host))
            assert (await client.read_response())[0] == status
        assert lab.requests() == []

    async def test_sockets_do_not_outlive_the_connection(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line="GET /bytes/100000000 HTTP/1.1"))
        await lab.expect_async(lab.requests)
        client.writer.transport.abort()
        async with asyncio.timeout(10):
            while gate.embedded.gate.boxes["b"].live:
                await asyncio.sleep(0.01)
        await lab.expect_async(lambda: [c for c in lab.connections(plan.ALLOWED4) if c.closed])

    async def test_when_the_policy_raises(
        self, gate: GateUnderTest, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("box_policy.policy.rules.CompiledPolicy.judge_name", broken)
        gate.may_fail = True
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        assert (await error_of(client, 502))["reason"] == "internal_error"
        assert (await gate.decision()).reason is Reason.INTERNAL_ERROR
        assert lab.packets() == []

    async def test_the_end_is_recorded_with_what_moved(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(
            request("allowed.test", line="GET /bytes/1000 HTTP/1.1", extra="Connection: close\r\n")
        )
        assert len(await client.read()) > 1000
        end = await gate.end()
        assert (end.reason, end.protocol) == (Reason.CLOSED, "http")
        assert end.bytes_down is not None
        assert end.bytes_down > 1000
