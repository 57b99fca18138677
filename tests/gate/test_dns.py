"""DNS: what a box may ask, what it is told, and what reaches the name servers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import dnslib
import pytest

from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.gate.conftest import BOX, GateUnderTest, MakeGate
from tests.lab import Lab, plan


class Asker:
    """A box's resolver: asks the gate over UDP or TCP."""

    def __init__(self, gate: GateUnderTest) -> None:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        tcp = socket.create_server(("127.0.0.1", 0))
        self.udp_address, self.tcp_address = udp.getsockname(), tcp.getsockname()
        gate.sockets += [udp, tcp]
        gate.embedded.gate.serve(BOX, dns_udp=[udp], dns_tcp=[tcp])

    async def ask(
        self, name: str, kind: str = "A", *, edns: bool = True, tcp: bool = False
    ) -> dnslib.DNSRecord:
        question = dnslib.DNSRecord.question(name, kind)
        if edns:
            question.add_ar(dnslib.EDNS0(udp_len=4096))
        return await (self.send_tcp if tcp else self.send)(question.pack())

    async def send(self, message: bytes) -> dnslib.DNSRecord:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.udp_address)
            await loop.sock_sendall(sock, message)
            async with asyncio.timeout(10):
                return dnslib.DNSRecord.parse(await loop.sock_recv(sock, 65535))

    async def send_tcp(self, message: bytes) -> dnslib.DNSRecord:
        reader, writer = await asyncio.open_connection(*self.tcp_address)
        writer.write(len(message).to_bytes(2) + message)
        async with asyncio.timeout(10):
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        writer.close()
        return dnslib.DNSRecord.parse(answer)


def addresses(reply: dnslib.DNSRecord) -> list[str]:
    return [str(record.rdata) for record in reply.rr]


def extended_error(reply: dnslib.DNSRecord) -> tuple[int, bytes] | None:
    for record in reply.ar:
        for option in record.rdata or ():
            if option.code == 15:
                return int.from_bytes(option.data[:2]), option.data[2:]
    return None


@pytest.fixture
async def asker(gate: GateUnderTest) -> AsyncIterator[Asker]:
    yield Asker(gate)


class TestAllowlist:
    @pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
    @pytest.mark.parametrize(("kind", "address"), [("A", plan.ALLOWED4), ("AAAA", plan.ALLOWED6)])
    async def test_an_allowed_name(self, asker: Asker, kind: str, address: str, tcp: bool) -> None:
        reply = await asker.ask("allowed.test", kind, tcp=tcp)
        assert (reply.header.rcode, addresses(reply)) == (dnslib.RCODE.NOERROR, [address])

    async def test_a_second_question_is_answered_from_the_cache(self, asker: Asker, lab: Lab) -> None:
        for _ in range(3):
            assert addresses(await asker.ask("allowed.test")) == [plan.ALLOWED4]
        assert len(lab.dns.questions) == 1

    async def test_questions_at_the_same_time_are_asked_once(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.2)
        replies = await asyncio.gather(*(asker.ask("slow.wild.test") for _ in range(20)))
        assert {tuple(addresses(reply)) for reply in replies} == {(plan.WILDCARD4,)}
        assert len(lab.dns.questions) == 1

    @pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
    @pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "HTTPS", "MX", "NULL", "CNAME"])
    async def test_any_other_name_is_not_asked_for(
        self, asker: Asker, lab: Lab, kind: str, tcp: bool
    ) -> None:
        reply = await asker.ask("secret.data.evil.test", kind, tcp=tcp)
        assert reply.header.rcode == dnslib.RCODE.REFUSED
        assert extended_error(reply) == (17, b"name_not_allowed")
        assert lab.packets() == []

    async def test_a_client_without_edns_gets_no_option(self, asker: Asker) -> None:
        reply = await asker.ask("evil.test", edns=False)
        assert (reply.header.rcode, reply.ar) == (dnslib.RCODE.REFUSED, [])

    async def test_nothing_but_the_question_travels_on(self, asker: Asker, lab: Lab) -> None:
        question = dnslib.DNSRecord.question("aLLoWeD.TeSt")
        question.header.id = 0x1234
        question.add_ar(dnslib.EDNS0(udp_len=4096, opts=[dnslib.EDNSOption(65001, b"secret-payload")]))
        reply = await asker.send(question.pack())
        assert bytes(reply.q.qname.label[0]) == b"aLLoWeD"
        assert addresses(reply) == [plan.ALLOWED4]
        asked = lab.dns.questions[0]
        assert b"secret" not in asked.raw
        assert asked.name == "allowed.test"

    @pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
    async def test_records_that_hide_names_are_answered_as_empty(
        self, asker: Asker, lab: Lab, kind: str
    ) -> None:
        lab.dns.set("allowed.test", HTTPS="1 . alpn=h3 ipv4hint=51.81.66.66")
        reply = await asker.ask("allowed.test", kind)
        assert (reply.header.rcode, reply.rr) == (dnslib.RCODE.NOERROR, [])
        assert lab.dns.questions == []

    @pytest.mark.parametrize("address", ["10.66.0.1", "169.254.169.254", "127.0.0.1", "100.100.100.200"])
    async def test_special_addresses_are_left_out(
        self, asker: Asker, gate: GateUnderTest, address: str
    ) -> None:
        reply = await asker.ask(f"a_{address.replace('.', '-')}_x.rebind.test")
        assert (reply.header.rcode, reply.rr) == (dnslib.RCODE.NOERROR, [])
        assert (await gate.decision()).reason is Reason.RESOLVED_SPECIAL

    async def test_good_addresses_beside_special_ones_are_told(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("mixed.wild.test", A=[plan.PRIVATE4, plan.WILDCARD4])
        assert addresses(await asker.ask("mixed.wild.test")) == [plan.WILDCARD4]

    async def test_a_chain_of_aliases_is_followed_to_its_end(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("alias.wild.test", CNAME="allowed.test")
        assert addresses(await asker.ask("alias.wild.test")) == [plan.ALLOWED4]

    async def test_a_name_that_does_not_exist(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("gone.wild.test", rcode="NXDOMAIN")
        assert (await asker.ask("gone.wild.test")).header.rcode == dnslib.RCODE.NXDOMAIN

    async def test_a_name_server_that_fails(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("broken.wild.test", rcode="SERVFAIL")
        reply = await asker.ask("broken.wild.test")
        assert reply.header.rcode == dnslib.RCODE.SERVFAIL
        assert extended_error(reply) is not None

    async def test_a_forged_answer_is_not_believed(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("forged.wild.test", A=[plan.WILDCARD4], wrong_id_first=True)
        assert addresses(await asker.ask("forged.wild.test")) == [plan.WILDCARD4]

    async def test_a_truncated_answer_is_asked_for_again_over_tcp(self, asker: Asker, lab: Lab) -> None:
        lab.dns.set("long.wild.test", A=[plan.WILDCARD4], truncate=True)
        assert addresses(await asker.ask("long.wild.test")) == [plan.WILDCARD4]
        assert [question.transport for question in lab.dns.questions] == ["udp", "tcp"]

    @pytest.mark.parametrize("message", [b"", b"\x00", b"\xff" * 40, bytes(12), b"\x01" * 100])
    async def test_what_is_not_a_question_reaches_nobody(
        self, asker: Asker, lab: Lab, message: bytes
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(message, asker.udp_address)
        assert addresses(await asker.ask("allowed.test")) == [plan.ALLOWED4]
        assert [question.name for question in lab.dns.questions] == ["allowed.test"]


class TestOtherPolicies:
    async def test_deny_all_asks_nothing(self, make_gate: MakeGate, lab: Lab) -> None:
        reply = await Asker(make_gate("deny-all")).ask("allowed.test")
        assert reply.header.rcode == dnslib.RCODE.REFUSED
        assert extended_error(reply) == (18, b"deny_all")
        assert lab.packets() == []

    async def test_allow_all_resolves_and_leaves_special_addresses_out(self, make_gate: MakeGate) -> None:
        asker = Asker(make_gate("allow-all"))
        assert addresses(await asker.ask("evil.test")) == [plan.EVIL4]
        assert addresses(await asker.ask("private.test")) == []

    async def test_a_denylist_leaves_denied_addresses_out(self, make_gate: MakeGate) -> None:
        asker = Asker(make_gate({"mode": "custom", "denied_cidrs": [f"{plan.EVIL4}/32"]}))
        assert addresses(await asker.ask("evil.test")) == []
        assert addresses(await asker.ask("allowed.test")) == [plan.ALLOWED4]

    async def test_cidrs_alone_resolve_nothing(self, make_gate: MakeGate, lab: Lab) -> None:
        policy = {"mode": "custom", "allowed_cidrs": [f"{plan.ALLOWED4}/32"]}
        assert (await Asker(make_gate(policy)).ask("allowed.test")).header.rcode == dnslib.RCODE.REFUSED
        assert lab.packets() == []

    async def test_unless_the_operator_lets_them(self, make_gate: MakeGate) -> None:
        policy = {"mode": "custom", "allowed_cidrs": [f"{plan.ALLOWED4}/32"]}
        asker = Asker(make_gate(policy, resolve_for_cidrs=True))
        assert addresses(await asker.ask("allowed.test")) == [plan.ALLOWED4]
        assert addresses(await asker.ask("evil.test")) == []


class TestBounds:
    async def test_too_many_questions_at_once_are_refused(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(dns_pending=5))
        asker = Asker(gate)
        lab.dns.set("*.wild.test", A=[plan.WILDCARD4], delay=0.3)
        replies = await asyncio.gather(*(asker.ask(f"n{number}.wild.test") for number in range(20)))
        codes = [reply.header.rcode for reply in replies]
        assert codes.count(dnslib.RCODE.NOERROR) == 5
        assert codes.count(dnslib.RCODE.REFUSED) == 15
        assert len([record for record in gate.records if record.reason is Reason.LIMIT]) == 1

    async def test_the_policy_changes_while_the_answer_is_awaited(
        self, asker: Asker, gate: GateUnderTest
    ) -> None:
        gate.lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.3)
        asking = asyncio.create_task(asker.ask("slow.wild.test"))
        await gate.lab.expect_async(lambda: gate.lab.dns.questions)
        gate.put_policy("deny-all")
        assert (await asking).header.rcode == dnslib.RCODE.REFUSED

    async def test_a_client_that_never_reads_is_let_go(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(dns_idle_timeout=1, dns_connections=2))
        asker = Asker(gate)
        lab.dns.set("long.wild.test", A=[f"51.81.10.{number}" for number in range(60)])
        question = dnslib.DNSRecord.question("long.wild.test").pack()
        message = len(question).to_bytes(2) + question
        box = gate.embedded.gate.boxes[BOX]
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, asker.tcp_address)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(10):
                    while True:
                        await loop.sock_sendall(sock, message * 100)
        assert (box.dns_connections, len(box.live)) == (0, 0)

    async def test_a_dropped_box_asks_nothing_more(self, asker: Asker, gate: GateUnderTest, lab: Lab) -> None:
        reader, writer = await asyncio.open_connection(*asker.tcp_address)
        question = dnslib.DNSRecord.question("allowed.test").pack()
        writer.write(len(question).to_bytes(2) + question)
        await reader.readexactly(2)
        gate.embedded.gate.drop(BOX)
        secret = dnslib.DNSRecord.question("secret.wild.test").pack()
        writer.write(len(secret).to_bytes(2) + secret)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert [question.name for question in lab.dns.questions] == ["allowed.test"]

    async def test_an_error_in_the_gate_is_a_refusal(
        self, asker: Asker, gate: GateUnderTest, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate.may_fail = True

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("box_policy.policy.rules.CompiledPolicy.judge_question", broken)
        reply = await asker.ask("allowed.test")
        assert reply.header.rcode == dnslib.RCODE.REFUSED
        assert lab.packets() == []
