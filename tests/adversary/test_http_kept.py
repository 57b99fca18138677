"""Each request on a kept connection is judged by itself: to let one through opens nothing for the next."""

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import EVIL, HIDDEN, Attack
from tests.adversary.http_wire import ALLOWED, FRONT, converses, front, pipelines, refused
from tests.adversary.wire import hello, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "HTTP: kept connections"

ATTACKS = [
    refused(
        "a hidden host in the next request",
        converses(lambda box: [ALLOWED, request(box, HIDDEN)]),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a host at another address in the next request",
        converses(lambda box: [ALLOWED, request(box, EVIL)]),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a hidden host in the same segment, behind an allowed one",
        pipelines(lambda box: ALLOWED + request(box, HIDDEN)),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a hidden host behind a body of no length",
        pipelines(lambda box: front(b"Content-Length: 0") + request(box, HIDDEN)),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a hidden host behind a body that is a request",
        pipelines(
            lambda box: (
                front(b"Content-Length: 37", line=b"POST /echo HTTP/1.1", body=ALLOWED[:37])
                + request(box, HIDDEN)
            )
        ),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "a hidden host behind more allowed ones than are kept",
        pipelines(lambda box: front(b"X-Padding: " + b"x" * 1000) * 200 + request(box, HIDDEN)),
        Reason.NAME_NOT_ALLOWED,
        status=403,
    ),
    refused(
        "another protocol, once HTTP has been let through",
        converses(lambda box: [ALLOWED, hello(box, HIDDEN)]),
        Reason.HTTP_INVALID,
    ),
    refused(
        "a line of no protocol, once HTTP has been let through",
        converses(lambda box: [ALLOWED, b"RAW %b\n" % box.nonce.encode()]),
        Reason.HTTP_INVALID,
    ),
    refused(
        "a method in lower case, once HTTP has been let through",
        converses(lambda box: [ALLOWED, request(box, FRONT, method=b"head")]),
        Reason.HTTP_INVALID,
        may_arrive=True,
    ),
    Attack(
        name="an allowed Host behind empty lines",
        act=converses(
            lambda box: [ALLOWED, b"\r\n\r\n" + request(box, FRONT, more=b"Connection: close\r\n")]
        ),
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
