"""An allowed origin that is hostile too: what it answers is the answer to one request, or to none.

The test network's web site sends what a request's target says in place of a response.
"""

from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, Inmate
from tests.adversary.attack import CUSTOM
from tests.adversary.attacker import Line
from tests.adversary.http_wire import FRONT, answered_with, front, lines, response, statuses
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORGED: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
BOTH: Final = {**CUSTOM, "allowed_domains": ["front.cdn.test", "hidden.othercdn.test"]}
"""Two names of one address."""


def asked(
    data: bytes, *fields: bytes, method: bytes = b"GET", ends: bool = False, body: bytes = b""
) -> bytes:
    """A request that these bytes answer."""
    return front(*fields, line=method + b" " + answered_with(data, ends=ends) + b" HTTP/1.1", body=body)


async def begun(arena: Arena, policy: object = CUSTOM) -> Inmate:
    inmate = await arena.inmate(policy)
    await inmate.attacker.do("release")
    await arena.rest(inmate)
    arena.begin(inmate)
    return inmate


async def connected(arena: Arena, policy: object = CUSTOM) -> tuple[Inmate, Line]:
    inmate = await begun(arena, policy)
    return inmate, await inmate.attacker.connect(plan.SHARED4, 80)


def ends(arena: Arena) -> list[Reason]:
    return [record.reason for record in arena.records if record.event is Event.END]


class TestMoreThanOneResponse:
    @pytest.mark.parametrize("host", [FRONT, b"hidden.othercdn.test"])
    async def test_is_no_answer_to_the_next_request(self, arena: Arena, host: bytes) -> None:
        """Whether that is for the same host, or for another one at the same address."""
        _, line = await connected(arena, BOTH)
        await line.send(asked(OK + FORGED))
        assert (await response(line)).data == OK
        await line.send(lines(b"Host: " + host))
        second = await response(line)
        assert b'"host": "' + host + b'"' in second.data
        await arena.lab.expect_async(lambda: arena.lab.connections()[0].closed)
        assert len(arena.lab.connections()) == 2
        await line.close()

    async def test_is_no_answer_to_one_that_waits_already(self, arena: Arena) -> None:
        inmate = await begun(arena)
        final = front(b"Connection: close", line=b"GET /last HTTP/1.1")
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(OK + FORGED) * 3 + final)
        assert statuses(seen.data) == [200] * 4
        assert b"forged" not in seen.data
        assert b'"target": "/last"' in seen.data

    async def test_before_the_request_is_complete(self, arena: Arena) -> None:
        inmate, line = await connected(arena)
        await line.send(asked(OK, b"Content-Length: 4", method=b"POST"))
        assert (await response(line)).data == OK
        await line.send(b"body" + asked(OK + FORGED, b"Content-Length: 4", method=b"POST"))
        assert (await response(line)).data == OK
        await line.send(b"body" + front(b"Connection: close"))
        seen = await line.see()
        assert b"forged" not in seen.data
        assert statuses(seen.data) in ([200], [])
        await arena.rest(inmate)
        assert arena.errors == []

    async def test_never_reaches_another_box(self, arena: Arena) -> None:
        first, line = await connected(arena)
        other = await arena.inmate(BOTH)
        await line.send(asked(OK + FORGED))
        assert (await response(line)).data == OK
        second = await other.attacker.connect(plan.SHARED4, 80)
        for _ in range(3):
            await second.send(front())
            assert b"forged" not in (await response(second)).data
        peers = {connection.id for connection in arena.lab.connections()}
        assert len(peers) == 2
        assert {record.box for record in arena.records} == {first.id, other.id}
        await line.close()
        await second.close()

    async def test_of_which_the_first_are_interim(self, arena: Arena) -> None:
        inmate = await begun(arena)
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        final = front(b"Connection: close")
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(interim * 500 + OK) + final)
        assert statuses(seen.data) == [200, 200]
        assert seen.data.startswith(OK)


class TestBody:
    @pytest.mark.parametrize(
        ("method", "answer", "told"),
        [
            (b"HEAD", OK, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
            (b"GET", b"HTTP/1.1 204 No\r\n\r\n" + FORGED, b"HTTP/1.1 204 No\r\n\r\n"),
            (b"GET", b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 304 No\r\n\r\n"),
            (b"GET", b"\r\n" + OK, OK),
            (b"GET", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
             b"HTTP/1.1 200 OK\r\nX: a b\r\nContent-Length: 0\r\n\r\n"),
        ],
        ids=["to HEAD", "with 204", "with 304", "behind an empty line", "behind a folded line"],
    )  # fmt: skip
    async def test_ends_where_every_client_sees_it_end(
        self, arena: Arena, method: bytes, answer: bytes, told: bytes
    ) -> None:
        inmate = await begun(arena)
        final = front(b"Connection: close", line=b"GET /last HTTP/1.1")
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(answer, method=method) + final)
        rest = seen.data.removeprefix(told)
        assert rest.startswith(b"HTTP/1.1 200 \r\n")
        assert b'"target": "/last"' in rest

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
        ],
    )
    async def test_that_is_cut_short_is_not_made_whole(self, arena: Arena, answer: bytes) -> None:
        inmate = await begun(arena)
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(answer, ends=True) + front())
        assert str(seen) == "http 200"
        assert b"ok" in seen.data
        assert not seen.data.endswith(b"0\r\n\r\n")
        assert statuses(seen.data) == [200]


class TestHead:
    """One that can be read in two ways is the gate's to answer."""

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 2_00 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 +200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 0200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 -1 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"ICY 200 OK\r\n\r\nok",
            b"hello\r\n\r\n",
            b"\x16\x03\x03\0\2\2\x28\r\n\r\n",
            b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 0\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
            b"HTTP/1.1 200 OK\r\n Content-Length: 2\r\n\r\nok",
        ],
    )
    async def test_is_not_passed_on(self, arena: Arena, answer: bytes) -> None:
        inmate = await begun(arena)
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(answer) + front())
        assert str(seen) == "http 502"
        assert statuses(seen.data) == [502]
        assert b'"reason": "upstream_failed"' in seen.data
        await arena.rest(inmate)
        assert ends(arena) == [Reason.UPSTREAM_FAILED]
        assert arena.errors == []


class TestEnd:
    async def test_of_a_kept_connection_is_left_to_the_client(self, arena: Arena) -> None:
        """The origin closes it while a request is on its way: the client asks again, or doesn't, as it would
        without a gate."""
        inmate, line = await connected(arena)
        await line.send(front())
        assert (await response(line)).code == 200
        await line.send(asked(b"", ends=True))
        assert str(await line.see()) == "eof"
        await line.close()
        await arena.rest(inmate)
        assert ends(arena) == [Reason.CLOSED]

    async def test_of_a_new_connection_is_answered(self, arena: Arena) -> None:
        inmate = await begun(arena)
        seen = await inmate.attacker.exchange(plan.SHARED4, 80, asked(b"", ends=True))
        assert str(seen) == "http 502"

    async def test_of_an_upstream_behind_its_last_kept_request(self, arena: Arena) -> None:
        """Half of an answer to a request on a kept connection is no reason to ask again."""
        inmate, line = await connected(arena)
        await line.send(front())
        await response(line)
        await line.send(asked(b"HTTP/1.1 200 OK\r\n", ends=True))
        assert str(await line.see()) == "http 502"
        await line.close()
        await arena.rest(inmate)
        assert ends(arena) == [Reason.UPSTREAM_FAILED]

    async def test_that_comes_before_the_body_does_not_take_the_answer_along(self, arena: Arena) -> None:
        """A client that is still sending would lose it to a reset."""
        _, line = await connected(arena)
        no = b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
        await line.send(asked(no, b"Content-Length: 1000000", method=b"POST", ends=True))
        assert (await response(line)).data == no
        assert str(await line.read(size=1)) == "eof"
        assert await line.send(bytes(900_000), segment=50_000) is None
        await line.close()

    async def test_when_it_can_not_be_reached_and_a_body_was_called_for(self, arena: Arena) -> None:
        inmate = await begun(arena)
        head = (
            b"POST / HTTP/1.1\r\nHost: allowed.test:%d\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        seen = await inmate.attacker.exchange(plan.ALLOWED4, plan.REFUSED_PORT, head % plan.REFUSED_PORT)
        assert statuses(seen.data) == [100, 502]


async def test_hosts_at_many_addresses_do_not_hold_many_connections(arena: Arena) -> None:
    _, line = await connected(arena)
    addresses = [f"51.81.66.{n}" for n in range(100, 108)]
    for number, address in enumerate(addresses):
        arena.lab.dns.set(f"n{number}.wild.test", A=[address])
        await line.send(lines(b"Host: n%d.wild.test" % number))
        assert (await response(line)).code == 200
    await arena.lab.expect_async(lambda: sum(c.closed is not None for c in arena.lab.connections()) == 4)
    still_open = {c.address for c in arena.lab.connections() if c.closed is None}
    assert still_open == set(addresses[-4:])
    await line.close()


async def test_a_client_that_ends_its_side_is_not_answered(arena: Arena) -> None:
    """As with most proxies: FIN means that nobody waits any more."""
    inmate, line = await connected(arena)
    await line.send(front(line=b"GET /hold HTTP/1.1"))
    await arena.lab.expect_async(arena.lab.requests)
    await line.end()
    assert str(await line.see()) == "eof"
    await arena.lab.expect_async(lambda: arena.lab.connections()[0].closed)
    await line.close()
    await arena.rest(inmate)
    assert ends(arena) == [Reason.CLOSED]
