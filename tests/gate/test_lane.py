"""TLS and everything that isn't HTTP: what is dialled, what is not, and what a denied box sees."""

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl

import pytest

from box_policy.gate.limits import Limits
from box_policy.gate.relay import PIPE
from box_policy.policy.reasons import Reason
from tests.gate.conftest import GateUnderTest, MakeGate
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

ALERT_ACCESS_DENIED = bytes.fromhex("15030300020231")
ALERT_INTERNAL_ERROR = bytes.fromhex("15030300020250")

FAMILIES = {"IPv4": (plan.ALLOWED4, plan.EVIL4), "IPv6": (plan.ALLOWED6, plan.EVIL6)}
both_families = pytest.mark.parametrize(("allowed", "evil"), FAMILIES.values(), ids=FAMILIES)


def untouched(lab: Lab) -> bool:
    """Nothing but DNS questions has left the gate's host: not even a SYN."""
    return [packet for packet in lab.packets() if packet.port != plan.DNS_PORT] == []


class TestAllowed:
    @both_families
    async def test_a_handshake_is_the_origins_own(
        self, gate: GateUnderTest, lab: Lab, allowed: str, evil: str
    ) -> None:
        client, tls = await gate.handshake(allowed, 443, "allowed.test")
        await client.send(b"GET /x HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n")
        assert (await client.read()).startswith(b"HTTP/1.1 200")
        assert tls.getpeercert() is not None
        assert lab.connections(allowed, 443)[0].sni == "allowed.test"
        record = await gate.decision()
        assert (record.allowed, record.reason, record.name) == (True, Reason.NAME_ALLOWED, "allowed.test")
        assert record.rule == "allowed_domains: allowed.test"
        assert record.dialled == record.claimed_address == allowed
        assert not record.mismatch

    async def test_a_subdomain_of_a_wildcard_in_any_case(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.WILDCARD4, 443)
        await client.send(client_hello(b"A-2.b.WILD.test"))
        await lab.expect_async(lambda: lab.connections(plan.WILDCARD4, 443))

    @pytest.mark.parametrize("fragment", [1, 5, 64])
    async def test_a_hello_in_small_records_and_segments(
        self, gate: GateUnderTest, lab: Lab, fragment: int
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 443)
        for byte in client_hello(fragment=fragment):
            await client.send(bytes((byte,)))
        connection = (await lab.expect_async(lambda: [c for c in lab.connections(plan.ALLOWED4) if c.sni]))[0]
        assert connection.sni == "allowed.test"

    async def test_the_gate_dials_what_it_resolved_not_what_was_claimed(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        client, _ = await gate.handshake(plan.EVIL4, 443, "allowed.test")
        record = await gate.decision()
        assert (record.claimed_address, record.dialled, record.mismatch) == (plan.EVIL4, plan.ALLOWED4, True)
        assert lab.packets(plan.EVIL4) == []
        client.writer.close()

    async def test_the_port_is_the_claimed_one(self, gate: GateUnderTest, lab: Lab) -> None:
        await gate.handshake(plan.ALLOWED4, 8443, "allowed.test")
        assert lab.connections(plan.ALLOWED4, 8443)

    async def test_a_dead_address_is_followed_by_the_next(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("two.wild.test", A=[plan.SILENT4, plan.WILDCARD4])
        gate.embedded.gate.lane.connecting._seconds = 0.3
        await gate.handshake("51.81.10.99", 443, "two.wild.test")
        assert lab.packets(plan.SILENT4, 443)
        assert lab.connections(plan.WILDCARD4, 443)


class TestByAddress:
    async def test_a_server_that_speaks_first(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.BANNER_PORT)
        async with asyncio.timeout(5):
            assert await client.reader.readline() == b"SSH-2.0-lab\r\n"
        record = await gate.decision()
        assert (record.reason, record.rule) == (Reason.CIDR_ALLOWED, f"allowed_cidrs: {plan.CIDR}")

    async def test_any_protocol_and_any_name(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(client_hello(b"evil.test"))
        client.end()
        assert await client.read() == client_hello(b"evil.test")
        assert lab.packets(plan.EVIL4) == []

    async def test_the_end_is_recorded_with_what_moved(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(bytes(100_000))
        client.end()
        await client.read()
        end = await gate.end()
        assert (end.reason, end.allowed, end.bytes_up, end.bytes_down) == (
            Reason.CLOSED,
            True,
            100_000,
            100_000,
        )
        assert end.duration is not None

    async def test_a_half_closed_connection_still_answers(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(b"last words")
        client.end()
        assert await client.read() == b"last words"

    async def test_many_bytes_arrive_whole_in_both_directions(self, gate: GateUnderTest) -> None:
        payload = bytes(range(256)) * (4096 * 16)
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)

        async def send() -> None:
            await client.send(payload)
            client.end()

        sending = asyncio.create_task(send())
        digest = hashlib.sha256()
        async with asyncio.timeout(30):
            while data := await client.reader.read(1 << 20):
                digest.update(data)
        await sending
        assert digest.digest() == hashlib.sha256(payload).digest()

    async def test_a_reset_reaches_the_other_side(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(b"x")
        await lab.expect_async(lambda: [c for c in lab.connections(plan.CIDR4) if c.received])
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER, zero seconds
        client.writer.transport.abort()
        assert (await gate.end()).reason is Reason.RESET
        await lab.expect_async(lambda: lab.connections(plan.CIDR4)[0].closed == "reset")

    async def test_allow_all_opens_public_addresses_only(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("allow-all")
        client = await gate.claim(plan.EVIL4, plan.ECHO_PORT)
        await client.send(b"hello")
        client.end()
        assert await client.read() == b"hello"
        assert await (await gate.claim(plan.PRIVATE4, plan.ECHO_PORT)).is_reset()
        assert lab.packets(plan.PRIVATE4) == []


class TestDenied:
    @both_families
    async def test_a_name_that_is_not_allowed_at_its_own_address(
        self, gate: GateUnderTest, lab: Lab, allowed: str, evil: str
    ) -> None:
        client = await gate.claim(evil, 443)
        await client.send(client_hello(b"evil.test"))
        assert await client.read() == ALERT_ACCESS_DENIED
        assert (await gate.decision()).reason is Reason.NAME_NOT_ALLOWED
        assert untouched(lab)
        assert lab.dns.questions == []

    async def test_a_client_reports_the_alert(self, gate: GateUnderTest) -> None:
        with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
            await gate.handshake(plan.EVIL4, 443, "evil.test")

    @pytest.mark.parametrize(
        ("hello", "reason"),
        [
            (client_hello(None), Reason.NO_NAME),
            (client_hello(b""), Reason.NO_NAME),
            (client_hello(b"51.81.10.10"), Reason.NAME_INVALID),
            (client_hello(b"evil.test\0.wild.test"), Reason.NAME_INVALID),
            (client_hello(b"evil.test\n.wild.test"), Reason.NAME_INVALID),
            (client_hello("w\u0131ld.test".encode()), Reason.NAME_INVALID),
            (client_hello(b"wild.test"), Reason.NAME_NOT_ALLOWED),
            (client_hello(b"xallowed.test"), Reason.NAME_NOT_ALLOWED),
            (client_hello(duplicate_sni=b"evil.test"), Reason.NAME_INVALID),
            (client_hello(b"evil.test", record_version=0x0304), Reason.NAME_NOT_ALLOWED),
            (client_hello(b"evil.test", record_version=0x03FF), Reason.NAME_NOT_ALLOWED),
            (client_hello(b"evil.test", fragment=1), Reason.NAME_NOT_ALLOWED),
            (client_hello(b"evil.test") + b"\x17\x03\x03\x00\x05early", Reason.NAME_NOT_ALLOWED),
            (b"\x16\x03\x01\x00\x05\x02\0\0\0\0", Reason.HELLO_INVALID),
            (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff", Reason.HELLO_TOO_LARGE),
        ],
    )
    async def test_a_hello_that_names_nothing_allowed(
        self, gate: GateUnderTest, lab: Lab, hello: bytes, reason: Reason
    ) -> None:
        client = await gate.claim(plan.EVIL4, 443)
        await client.send(hello)
        assert await client.read() == ALERT_ACCESS_DENIED
        assert (await gate.decision()).reason is reason
        assert untouched(lab)

    @pytest.mark.parametrize("first", [1, 2])
    async def test_a_first_segment_of_one_or_two_bytes(
        self, gate: GateUnderTest, lab: Lab, first: int
    ) -> None:
        client = await gate.claim(plan.EVIL4, 443)
        hello = client_hello(b"evil.test")
        await client.send(hello[:first])
        await asyncio.sleep(0)
        await client.send(hello[first:])
        assert await client.read() == ALERT_ACCESS_DENIED
        assert untouched(lab)

    @pytest.mark.parametrize(
        "data",
        [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
            b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",
            b"\x05\x01\x00\x05\x01\x00\x03\x09evil.test\x01\xbb",
            b"\x15\x03\x01\x00\x02\x02\x28" + client_hello(),
            bytes(100),
        ],
        ids=["SSH", "leading CRLF", "SSLv2", "SOCKS", "alert first", "zeros"],
    )
    @pytest.mark.parametrize("address", [plan.EVIL4, plan.EVIL6], ids=["IPv4", "IPv6"])
    async def test_bytes_that_name_no_host(
        self, gate: GateUnderTest, lab: Lab, data: bytes, address: str
    ) -> None:
        client = await gate.claim(address, 443)
        await client.send(data)
        assert await client.is_reset()
        assert (await gate.decision()).reason is Reason.PROTOCOL_UNKNOWN
        assert untouched(lab)

    @pytest.mark.parametrize(
        "address",
        [plan.PRIVATE4, plan.METADATA4, "127.0.0.1", "0.0.0.0", "::1", "fd00:ec2::254", "::ffff:10.66.0.1",
         "64:ff9b::a42:1", plan.GATE4, plan.GATE6],
    )  # fmt: skip
    async def test_a_special_address_whatever_is_sent(
        self, gate: GateUnderTest, lab: Lab, address: str
    ) -> None:
        client = await gate.claim(address, 443)
        assert await client.is_reset()
        assert (await gate.decision()).reason is Reason.SPECIAL_ADDRESS
        assert untouched(lab)
        assert lab.loopback_packets(address, 443) == []

    @pytest.mark.parametrize(
        "address", ["10.66.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "100.100.100.200"]
    )
    async def test_an_allowed_name_with_a_special_address(
        self, gate: GateUnderTest, lab: Lab, address: str
    ) -> None:
        name = f"a_{address.replace('.', '-')}_x.rebind.test"
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello(name.encode()))
        assert await client.read() == ALERT_ACCESS_DENIED
        record = await gate.decision()
        assert (record.reason, record.resolved) == (Reason.RESOLVED_SPECIAL, (address,))
        assert untouched(lab)

    async def test_bad_addresses_among_good_ones_are_left_out(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("mixed.wild.test", A=[plan.PRIVATE4, plan.WILDCARD4])
        await gate.handshake(plan.PRIVATE4.replace("10.66", "51.81"), 443, "mixed.wild.test")
        assert plan.PRIVATE4 in (await gate.decision()).detail
        assert lab.packets(plan.PRIVATE4) == []

    async def test_a_denied_range_beats_an_allowed_name(self, make_gate: MakeGate, lab: Lab) -> None:
        denied = f"{plan.ALLOWED4}/32"
        gate = make_gate({"mode": "custom", "allowed_domains": ["allowed.test"], "denied_cidrs": [denied]})
        lab.dns.set("allowed.test", A=[plan.ALLOWED4])
        client = await gate.claim(plan.EVIL4, 443)
        await client.send(client_hello())
        assert await client.read() == ALERT_ACCESS_DENIED
        assert (await gate.decision()).rule == f"denied_cidrs: {denied}"
        assert untouched(lab)

    async def test_deny_all_denies_in_the_clients_protocol(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("deny-all")
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello())
        assert await client.read() == ALERT_ACCESS_DENIED
        assert (await gate.decision()).reason is Reason.DENY_ALL
        assert lab.packets() == []

    async def test_a_name_that_would_forge_a_record(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.EVIL4, 443)
        await client.send(client_hello(b"evil\n{\x1b[2J\xff.test"))
        await client.read()
        assert (await gate.decision()).name == "evil\\n{\\x1b[2J\\xff.test"

    async def test_encrypted_hellos_can_be_denied(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(deny_ech=True)
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello(ech=True))
        assert await client.read() == ALERT_ACCESS_DENIED
        record = await gate.decision()
        assert (record.reason, record.ech) == (Reason.ECH_DENIED, True)
        assert lab.packets() == []

    async def test_a_hello_that_never_ends(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(verdict_timeout=0.5))
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello()[:30])
        assert await client.read() == ALERT_ACCESS_DENIED
        assert (await gate.decision()).reason is Reason.TIMEOUT
        assert lab.packets() == []


class TestUpstreamFails:
    @both_families
    async def test_a_refused_connection(self, gate: GateUnderTest, allowed: str, evil: str) -> None:
        client = await gate.claim(allowed, plan.REFUSED_PORT)
        await client.send(client_hello())
        assert await client.read() == ALERT_INTERNAL_ERROR
        end = await gate.end()
        assert (end.reason, "refused" in end.detail.lower()) == (Reason.UPSTREAM_FAILED, True)

    async def test_a_silent_upstream(self, make_gate: MakeGate) -> None:
        gate = make_gate(limits=Limits(connect_timeout=0.3))
        client = await gate.claim(plan.ALLOWED4, plan.SILENT_PORT)
        await client.send(client_hello())
        assert await client.read() == ALERT_INTERNAL_ERROR

    async def test_a_name_that_does_not_exist(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("gone.wild.test", rcode="NXDOMAIN")
        client = await gate.claim(plan.WILDCARD4, 443)
        await client.send(client_hello(b"gone.wild.test"))
        assert await client.read() == ALERT_INTERNAL_ERROR
        record = await gate.decision()
        assert (record.reason, record.detail) == (Reason.RESOLUTION_FAILED, "no such name")

    async def test_raw_tcp_is_reset(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.REFUSED_PORT)
        assert await client.is_reset()
        assert (await gate.end()).reason is Reason.UPSTREAM_FAILED


class TestRelay:
    async def test_a_client_that_does_not_read_holds_the_origin_back(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        client = await gate.claim(plan.CIDR4, 80)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(b"GET /bytes/200000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        relay = gate.embedded.gate.lane.relay
        async with asyncio.timeout(10):
            while not any(pair.down.blocked for pair in relay.pairs):
                await asyncio.sleep(0.01)
        (pair,) = relay.pairs
        assert pair.down.carried < 32 * 1024 * 1024
        assert pair.down.in_pipe <= PIPE
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            while pair.down.carried < 200_000_000:
                await client.reader.read(1 << 20)

    async def test_urgent_data_neither_stops_nor_truncates_the_rest(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        reading = asyncio.create_task(client.read())
        await client.send(bytes(1_000_000))
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as sock:
            sock.send(b"!", socket.MSG_OOB)
        await client.send(bytes(4_000))
        client.end()
        assert len(await reading) in (1_004_000, 1_004_001)  # the urgent byte itself may be left out

    async def test_an_idle_connection_is_ended(self, make_gate: MakeGate) -> None:
        gate = make_gate(limits=Limits(idle_timeout=0.4))
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(b"x")
        assert await client.is_reset()
        assert (await gate.end()).reason is Reason.IDLE

    async def test_an_idle_connection_owns_no_pipe(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(bytes(1_000_000))
        async with asyncio.timeout(10):
            await client.reader.readexactly(1_000_000)
        (pair,) = gate.embedded.gate.lane.relay.pairs
        assert pair.down.bulk
        assert [direction.pipe for direction in (pair.up, pair.down)] == [None, None]

    async def test_who_connects_to_the_listener_itself_is_reset_and_forgotten(
        self, make_gate: MakeGate
    ) -> None:
        gate = make_gate()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            gate.embedded.gate.serve("b", tcp=[listener])
            for _ in range(20):
                with contextlib.suppress(ConnectionResetError):
                    reader, writer = await asyncio.open_connection(*listener.getsockname())
                    gate.writers.append(writer)
                    assert await reader.read() == b""
        assert {record.reason for record in gate.records} == {Reason.SPECIAL_ADDRESS}
        assert gate.embedded.gate.boxes["b"].pending == 0
        assert not gate.embedded.gate.boxes["b"].live


class TestCaps:
    async def test_a_box_has_only_so_many_connections_without_a_verdict(self, make_gate: MakeGate) -> None:
        gate = make_gate(limits=Limits(pending=3))
        clients = [await gate.claim(plan.ALLOWED4, 443) for _ in range(6)]
        assert [await client.is_reset() for client in clients[3:]] == [True] * 3
        assert [record.reason for record in gate.records] == [Reason.LIMIT]
        clients[0].writer.close()
        await gate.record(lambda record: record.reason is Reason.CLIENT_GONE)
        await (await gate.claim(plan.ALLOWED4, 443)).send(client_hello())
        await gate.record(lambda record: record.allowed)

    async def test_and_only_so_many_connections(self, make_gate: MakeGate) -> None:
        gate = make_gate(limits=Limits(connections=2))
        clients = [await gate.claim(plan.CIDR4, plan.ECHO_PORT) for _ in range(3)]
        assert await clients[2].is_reset()
        await clients[0].send(b"x")
        async with asyncio.timeout(5):
            assert await clients[0].reader.read(1) == b"x"


class TestEnds:
    async def test_the_box_goes_away(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        await client.send(b"x")
        await lab.expect_async(lambda: lab.connections(plan.CIDR4))
        gate.embedded.gate.drop("b")
        assert await client.is_reset()
        assert (await gate.end()).reason is Reason.BOX_CLOSED


class TestFailsClosed:
    async def test_when_the_record_can_not_be_written(self, gate: GateUnderTest, lab: Lab) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("the disk is on fire")

        gate.embedded.gate.audit.add(broken)
        gate.may_fail = True
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
        assert await client.is_reset()
        assert untouched(lab)

    async def test_when_the_policy_raises(
        self, gate: GateUnderTest, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("box_policy.policy.rules.CompiledPolicy.judge_name", broken)
        gate.may_fail = True
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello())
        assert await client.is_reset()
        assert (await gate.decision()).reason is Reason.INTERNAL_ERROR
        assert untouched(lab)
