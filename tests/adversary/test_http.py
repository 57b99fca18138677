"""An HTTP request names one host, in one way: otherwise it goes nowhere.

``front.cdn.test`` is allowed, ``hidden.othercdn.test`` is not, and both are at the same address: of the
hidden name nothing may reach it.
"""

from typing import Final

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import EVIL, HIDDEN, Attack
from tests.adversary.http_wire import FRONT, each, front, lines, refused
from tests.adversary.wire import carried, request, sends, sends_each
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "HTTP: hosts"

TWO_HOSTS: Final = [
    refused(
        "two Host headers, in either order, in any case, or alike",
        each(
            lines(b"Host: front.cdn.test", b"Host: hidden.othercdn.test"),
            lines(b"Host: hidden.othercdn.test", b"Host: front.cdn.test"),
            lines(b"Host: front.cdn.test", b"hOST:hidden.othercdn.test"),
            lines(b"Host: front.cdn.test", b"Host:"),
            lines(b"Host: front.cdn.test", b"Host: front.cdn.test"),
            lines(b"Host: front.cdn.test\nHost: hidden.othercdn.test"),
        ),
        Reason.HOST_MISMATCH,
        6,
        may_arrive=True,
    ),
    refused(
        "a URL of one host as the target, and another Host",
        each(
            front(line=b"GET http://hidden.othercdn.test/ HTTP/1.1"),
            lines(b"Host: hidden.othercdn.test", line=b"GET http://front.cdn.test/ HTTP/1.1"),
            front(line=b"GET HTTP://HIDDEN.othercdn.test/ HTTP/1.1"),
            front(line=b"GET http://front.cdn.test:81/ HTTP/1.1"),
            front(line=b"GET http://front.cdn.test.hidden.othercdn.test/ HTTP/1.1"),
        ),
        Reason.HOST_MISMATCH,
        5,
        may_arrive=True,
    ),
    refused(
        "a URL as the target that readers take apart in different ways",
        each(
            front(line=b"GET http://front.cdn.test@hidden.othercdn.test/ HTTP/1.1"),
            front(line=b"GET http://hidden.othercdn.test@front.cdn.test/ HTTP/1.1"),
            front(line=b"GET http://front.cdn.test?@hidden.othercdn.test/ HTTP/1.1"),
            front(line=b"GET http://front.cdn.test#@hidden.othercdn.test/ HTTP/1.1"),
            front(line=b"GET http://front.cdn.test\\@hidden.othercdn.test/ HTTP/1.1"),
            front(line=b"GET http://hidden.othercdn.test%2f@front.cdn.test/ HTTP/1.1"),
            front(line=b"GET http:///hidden.othercdn.test/ HTTP/1.1"),
        ),
        Reason.HTTP_INVALID,
        7,
        may_arrive=True,
    ),
    refused(
        "a URL of another scheme as the target",
        each(
            front(line=b"GET https://front.cdn.test/ HTTP/1.1"),
            lines(b"Host: hidden.othercdn.test", line=b"GET https://hidden.othercdn.test/ HTTP/1.1"),
        ),
        Reason.HTTP_NOT_SUPPORTED,
        2,
        may_arrive=True,
    ),
    refused(
        "a target that names a host, and is no URL",
        each(
            front(line=b"GET hidden.othercdn.test:80 HTTP/1.1"),
            front(line=b"GET hidden.othercdn.test/ HTTP/1.1"),
        ),
        Reason.HTTP_INVALID,
        2,
        may_arrive=True,
    ),
    refused(
        "two hosts in one Host header, or none",
        each(
            *(
                lines(b"Host: " + host)
                for host in (
                    b"front.cdn.test@hidden.othercdn.test",
                    b"hidden.othercdn.test@front.cdn.test",
                    b"front.cdn.test\thidden.othercdn.test",
                    b"front.cdn.test hidden.othercdn.test",
                    b"front.cdn.test, hidden.othercdn.test",
                    b"hidden%2eothercdn%2etest",
                    b"hidden.othercdn.test#.front.cdn.test",
                    b"hidden.othercdn.test?.front.cdn.test",
                    b"hidden.othercdn.test/.front.cdn.test",
                    b"hidden.othercdn.test\\.front.cdn.test",
                    b"http://front.cdn.test",
                    b'"front.cdn.test"',
                    b"[front.cdn.test]",
                    b"front.cdn.test..",
                    b".front.cdn.test",
                    b"front\xe2\x80\xa4cdn.test",
                    b"front.cdn.test\xa0",
                    b"front.cdn.test" + b"." * 300,
                )
            )
        ),
        Reason.NAME_INVALID,
        18,
    ),
    refused(
        "a Host with a control character, or on two lines",
        each(
            lines(b"Host: hidden.othercdn.test\0.front.cdn.test"),
            lines(b"Host: front.cdn.test\0hidden.othercdn.test"),
            lines(b"Host: front.cdn.test\r\n hidden.othercdn.test"),
            lines(b"Host:\r\n\thidden.othercdn.test"),
            lines(b"Host: front.cdn.test\rHost: hidden.othercdn.test"),
            lines(b"Host: front.cdn.test\x0b"),
            lines(b"Host: front.cdn.test\r"),
            lines(b"Host: front.cdn.test\x7f"),
        ),
        Reason.HTTP_INVALID,
        8,
    ),
    refused(
        "a second Host that only some readers see",
        each(
            lines(b"X-A: 1", b" Host: front.cdn.test", b"Host: hidden.othercdn.test"),
            front(b"Host : hidden.othercdn.test"),
            front(b"Host\t: hidden.othercdn.test"),
            front(b"\x0bHost: hidden.othercdn.test"),
            front(b"Host\0: hidden.othercdn.test"),
            front(b"X: 1\rHost: hidden.othercdn.test"),
            front(b": hidden.othercdn.test"),
            front(b"hidden.othercdn.test"),
            lines(b" Host: hidden.othercdn.test", b"Host: front.cdn.test"),
            lines(b"\tHost: hidden.othercdn.test", b"Host: front.cdn.test"),
        ),
        Reason.HTTP_INVALID,
        10,
    ),
    refused(
        "a Host that the next proxy is told to take out",
        each(
            front(b"Connection: close, Host"),
            front(b"Connection: keep-alive", b"Connection: hOST\t"),
        ),
        Reason.HTTP_INVALID,
        2,
        may_arrive=True,
    ),
    refused(
        "no Host, but in other headers, or nothing at all",
        each(
            lines(
                b"X-Forwarded-Host: front.cdn.test",
                b"X-Host: front.cdn.test",
                b"Forwarded: host=front.cdn.test",
            ),
            lines(b"Host:", b"X-Forwarded-Host: front.cdn.test"),
            lines(line=b"GET / HTTP/1.0"),
        ),
        Reason.NO_NAME,
        3,
    ),
    refused(
        "no Host, but an allowed one in the target",
        each(lines(line=b"GET http://front.cdn.test/ HTTP/1.1")),
        Reason.NO_NAME,
        may_arrive=True,
    ),
    refused(
        "HTTP/0.9, which has no Host",
        each(b"GET /NONCE\r\n", b"GET /NONCE\n", b"GET http://front.cdn.test/NONCE\r\n\r\n"),
        Reason.HTTP_INVALID,
        3,
    ),
    refused(
        "another version of HTTP, in which the target alone would count",
        each(
            lines(b"Host: hidden.othercdn.test", line=b"GET http://front.cdn.test/ HTTP/2.0"),
            front(line=b"GET / HTTP/1.2"),
            front(line=b"GET / HTTP/3.0"),
            front(line=b"GET / HTTP/0.9"),
        ),
        Reason.HTTP_NOT_SUPPORTED,
        4,
        may_arrive=True,
    ),
    refused(
        "a Host whose port is no number",
        each(
            *(
                lines(b"Host: front.cdn.test:" + port)
                for port in (
                    b"80:hidden.othercdn.test",
                    b"0x50",
                    b"",
                    b"-1",
                    b"+80",
                    b"8\xb2",
                    b" 80",
                    b"000080",
                )
            ),
            lines(b"Host: front.cdn.test:80@hidden.othercdn.test"),
        ),
        Reason.NAME_INVALID,
        9,
        may_arrive=True,
    ),
    refused(
        "a Host whose port is another connection's",
        each(*(lines(b"Host: front.cdn.test:" + port) for port in (b"99999", b"443", b"0", b"8080"))),
        Reason.HOST_MISMATCH,
        4,
        may_arrive=True,
    ),
    refused(
        "the address in place of a Host",
        each(lines(b"Host: 51.81.99.99"), lines(b"Host: 51.81.99.99:80")),
        Reason.ADDRESS_NOT_ALLOWED,
        2,
        status=403,
    ),
    refused(
        "another address in place of a Host",
        each(
            lines(b"Host: 51.81.66.66"),
            lines(b"Host: 0x33.0x51.0x63.0x63"),
            lines(b"Host: 861627235"),
            lines(b"Host: [::ffff:51.81.99.99]"),
            lines(b"Host: 127.0.0.1"),
        ),
        Reason.NAME_INVALID,
        5,
    ),
]

NOT_ALLOWED: Final = [
    refused(
        "a denied Host on the port of TLS",
        sends(plan.EVIL4, 443, lambda box: request(box, b"evil.test:443")),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "an allowed Host on the port of TLS, without the port",
        sends(plan.EVIL4, 443, lambda box: request(box, b"allowed.test")),
        Reason.HOST_MISMATCH,
        may_arrive=True,
    ),
    refused(
        "a denied Host with every method",
        sends_each(
            plan.SHARED4,
            80,
            lambda box: [request(box, HIDDEN, method=m) for m in (b"QUERY", b"HEAD", b"M-SEARCH", b"PURGE")],
        ),
        Reason.NAME_NOT_ALLOWED,
        4,
        status=403,
    ),
    refused(
        "a denied Host of the whole server, and of the URL of its own",
        each(
            lines(b"Host: hidden.othercdn.test", line=b"OPTIONS * HTTP/1.1"),
            lines(b"Host: hidden.othercdn.test", line=b"GET http://hidden.othercdn.test/ HTTP/1.1"),
            lines(b"Host: hidden.othercdn.test:80", line=b"GET //front.cdn.test/ HTTP/1.0"),
        ),
        Reason.NAME_NOT_ALLOWED,
        3,
        status=403,
    ),
    refused(
        "a denied Host in segments of a byte",
        sends(plan.EVIL4, 80, lambda box: request(box, EVIL), segment=1),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a denied Host that waits to be asked for its body",
        sends(
            plan.SHARED4,
            80,
            lambda box: request(
                box, HIDDEN, method=b"POST", more=b"Content-Length: 9\r\nExpect: 100-continue\r\n"
            ),
        ),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a denied Host with a long body behind it",
        sends(
            plan.SHARED4,
            80,
            lambda box: (
                request(box, HIDDEN, method=b"PUT", more=b"Content-Length: 500000\r\n") + bytes(200_000)
            ),
        ),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
]

SOUND: Final = [
    Attack(
        name="an allowed Host in any spelling",
        act=each(
            *(
                lines(b"Host:" + host, b"Connection: Close")
                for host in (
                    b"FRONT.cdn.Test",
                    b"front.cdn.test:80",
                    b"front.cdn.test.",
                    b"\t front.cdn.test \t",
                    b" front.cdn.test:0080",
                )
            )
        ),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
    Attack(
        name="an allowed Host and its URL as the target, in any spelling",
        act=each(
            front(b"Connection: close", line=b"GET http://front.cdn.test/ HTTP/1.1"),
            front(b"Connection: close", line=b"GET HTTP://FRONT.CDN.TEST HTTP/1.0"),
            front(b"Connection: close", line=b"OPTIONS * HTTP/1.1"),
        ),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
    Attack(
        name="an allowed Host in segments of a byte",
        act=sends(
            plan.SHARED4, 80, lambda box: request(box, FRONT, more=b"Connection: close\r\n"), segment=1
        ),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
    Attack(
        name="an allowed Host at a foreign address, on the port of TLS",
        act=carried(plan.EVIL4, 443, lambda box: request(box, b"allowed.test:443")),
        must_arrive=True,
        reasons=(),
    ),
]

ATTACKS = [*TWO_HOSTS, *NOT_ALLOWED, *SOUND]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
