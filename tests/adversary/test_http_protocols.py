"""Other protocols on HTTP's ports, and other protocols inside HTTP."""

from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import CUSTOM, EVIL, HIDDEN, Attack
from tests.adversary.attacker import Attacker, Line, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.http_wire import FRONT, WEBSOCKET, answered_with, each, front, lines, refused, response
from tests.adversary.wire import allowed_tls, request, sends, sends_each, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "HTTP: other protocols"

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""HTTP/2's, with an empty SETTINGS frame."""


def h2_request(box: Attacker, authority: bytes, *more: tuple[bytes, bytes], stream: int = 1) -> bytes:
    """HTTP/2's HEADERS frame of a request with the secret in its path."""
    path = b"/" + box.nonce.encode()
    fields = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", authority),
        *more,
    ]
    block = b"".join(b"\0" + bytes((len(k),)) + k + bytes((len(v),)) + v for k, v in fields)
    return len(block).to_bytes(3) + b"\1\5" + stream.to_bytes(4) + block


def unknown(name: str, *data: bytes, may_arrive: bool = False) -> Attack:
    """Bytes that are no protocol which could name a host."""
    return Attack(
        name=name,
        act=each(*data),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,) * len(data),
        may_arrive=may_arrive,
    )


def masked(data: bytes) -> bytes:
    """A WebSocket text frame with a mask of zeros."""
    return b"\x81" + bytes((0x80 | len(data),)) + bytes(4) + data


async def websocket(box: Attacker) -> Line:
    line = await box.connect(plan.SHARED4, 80)
    await line.send(front(WEBSOCKET, line=b"GET /ws HTTP/1.1"))
    assert (await response(line)).code == 101
    return line


async def tunnels_through_a_websocket(box: Attacker) -> Seen:
    """Once the protocol has been switched, nobody reads what goes by: it reaches the allowed origin alone."""
    line = await websocket(box)
    tunnelled = request(box, EVIL)
    await line.send(masked(tunnelled))
    seen = await line.read(size=2 + len(tunnelled))
    await line.close()
    return seen


ATTACKS = [
    refused(
        "CONNECT to a hidden host, and to an allowed one",
        each(
            front(line=b"CONNECT hidden.othercdn.test:443 HTTP/1.1"),
            front(line=b"CONNECT front.cdn.test:80 HTTP/1.1"),
            lines(b"Host: hidden.othercdn.test:443", line=b"CONNECT hidden.othercdn.test:443 HTTP/1.0"),
        ),
        Reason.HTTP_NOT_SUPPORTED,
        3,
    ),
    refused(
        "CONNECT to nothing",
        each(front(line=b"CONNECT / HTTP/1.1"), front(line=b"CONNECT http://front.cdn.test/ HTTP/1.1")),
        Reason.HTTP_NOT_SUPPORTED,
        2,
    ),
    refused(
        "HTTP/2 from the start",
        sends_each(
            plan.SHARED4,
            80,
            lambda box: [
                PREFACE + h2_request(box, HIDDEN),
                PREFACE + h2_request(box, FRONT, (b"host", HIDDEN)),
                PREFACE + h2_request(box, FRONT) + h2_request(box, HIDDEN, stream=3),
                PREFACE[:16],
            ],
        ),
        Reason.HTTP_NOT_SUPPORTED,
        4,
    ),
    refused(
        "a WebSocket to a hidden host",
        sends(plan.SHARED4, 80, lambda box: request(box, HIDDEN, target=b"/ws", more=WEBSOCKET + b"\r\n")),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    unknown(
        "a header of the PROXY protocol",
        b"PROXY TCP4 10.0.2.15 51.81.99.99 1 80\r\n" + front(),
        b"PROXY UNKNOWN\r\n" + front(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + front(),
    ),
    unknown(
        "SOCKS",
        b"\5\1\0\5\1\0\3\x09evil.test\1\xbbNONCE",
        b"\4\1\0\x50\0\0\0\1\0evil.test\0NONCE",
    ),
    unknown(
        "methods that are none",
        *(
            method + b" / HTTP/1.1\r\nHost: front.cdn.test\r\nX-Secret: NONCE\r\n\r\n"
            for method in (b"get", b"Get", b"G" * 300, b"\r\nGET", b"\nGET", b" GET", b"\0GET", b"G\tT")
        ),
        b"GET\t/ HTTP/1.1\r\nHost: front.cdn.test\r\n\r\n",
        may_arrive=True,
    ),
    Attack(
        name="a denied name over TLS on the port of HTTP",
        act=tls(plan.EVIL4, EVIL, port=80),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="an allowed name over TLS on the port of HTTP, at a foreign address",
        act=allowed_tls(plan.EVIL4, b"allowed.test", port=80),
        must_arrive=True,
        reasons=(),
    ),
    Attack(
        name="another protocol inside a WebSocket to an allowed host",
        act=tunnels_through_a_websocket,
        must_arrive=True,
        may_name=(EVIL,),
        sees="data",
        reasons=(),
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


async def test_what_follows_a_handshake_goes_where_it_went_and_nowhere_else(arena: Arena) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    line = await websocket(inmate.attacker)
    secret = request(inmate.attacker, EVIL)
    await line.send(secret)
    await arena.lab.expect_async(lambda: [c for c in arena.lab.connections() if secret in c.received])
    await line.close()
    await arena.rest(inmate)
    assert {packet.address for packet in arena.lab.packets() if packet.flags == "S"} == {plan.SHARED4}
    assert [record.name for record in arena.records if record.event is Event.DECISION] == [FRONT.decode()]


@pytest.mark.parametrize(
    "handshake",
    [
        front(WEBSOCKET.replace(b"websocket", b"websocket, h2c"), line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET.replace(b"websocket", b"h2c"), line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET, b"Upgrade: h2c", line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET, b"Upgrade: websocket", line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET.replace(b"websocket", b"TLS/1.2"), line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET.replace(b"websocket", b"websoc\xe2\x84\xaaet"), line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET.replace(b"Connection: Upgrade\r\n", b""), line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET, b"Content-Length: 0\r\nTransfer-Encoding: chunked", line=b"GET /ws HTTP/1.1"),
        front(WEBSOCKET, b"Content-Length: 1", line=b"GET /ws HTTP/1.1", body=b"x"),
        front(WEBSOCKET, line=b"GET /ws HTTP/1.0"),
        front(WEBSOCKET, line=b"POST /ws HTTP/1.1"),
    ],
)
async def test_an_upgrade_that_the_origin_could_take_for_another_is_taken_out(
    arena: Arena, handshake: bytes
) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    line = await inmate.attacker.connect(plan.SHARED4, 80)
    await line.send(handshake)
    assert (await response(line)).code == 400
    await line.close()
    await arena.rest(inmate)
    assert [request for request in arena.lab.requests() if request.header("upgrade")] == []


class TestAnUpgradeThatNobodyHasAskedFor:
    SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello"

    @pytest.mark.parametrize(
        ("asked", "granted"),
        [(b"X: 1", b"websocket"), (WEBSOCKET, b"h2c"), (b"Connection: Upgrade\r\nUpgrade: foo", b"foo")],
    )
    async def test_is_no_way_out(self, arena: Arena, asked: bytes, granted: bytes) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        target = answered_with(self.SWITCHED % granted)
        line = await inmate.attacker.connect(plan.SHARED4, 80)
        await line.send(front(asked, line=b"GET " + target + b" HTTP/1.1"))
        seen = await line.see()
        assert str(seen) == "http 502"
        assert b"hello" not in seen.data
        await line.send(request(inmate.attacker, EVIL))
        await line.close()
        await arena.rest(inmate)
        assert [record.reason for record in arena.records] == [Reason.NAME_ALLOWED, Reason.HTTP_NOT_SUPPORTED]
        assert not any(EVIL in connection.received for connection in arena.lab.connections())


class TestNewPolicies:
    """What goes by unread ends with the verdict on which it began."""

    WITHOUT: Final = {**CUSTOM, "allowed_domains": ["allowed.test"]}

    @pytest.mark.parametrize("what", ["a WebSocket", "a body without end", "a response without end"])
    async def test_cut(self, open_arena: OpenArena, what: str) -> None:
        arena = await open_arena()
        inmate = await arena.inmate()
        box = inmate.attacker
        if what == "a WebSocket":
            line = await websocket(box)
            await line.send(masked(b"hi"))
            await line.read(size=4)
        elif what == "a body without end":
            line = await box.connect(plan.SHARED4, 80)
            await line.send(
                front(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=b"2\r\nhi\r\n")
            )
            await arena.lab.expect_async(lambda: any(r.body_length == 2 for r in arena.lab.requests()))
        else:
            line = await box.connect(plan.SHARED4, 80)
            await line.send(front(line=b"GET /slow?chunks=0&interval=0.01 HTTP/1.1"))
            await line.read(until=b"....")
        assert arena.put_policy(inmate, self.WITHOUT) == 1
        await line.send(b"c\r\n" + masked(box.nonce.encode()))
        assert (await line.see()).ended in ("reset", "EPIPE")
        await arena.lab.expect_async(lambda: arena.lab.connections()[0].closed == "reset")
        assert not any(box.nonce.encode() in c.received for c in arena.lab.connections())
        assert [r.reason for r in arena.records if r.event is Event.END] == [Reason.POLICY_CHANGED]
        await line.close()
