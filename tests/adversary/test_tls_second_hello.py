"""A hello that a server asks for again: the name that was judged is the name that goes on.

A client that offers no key share is asked for another hello. OpenSSL takes the name of the second.
"""

from collections.abc import Callable

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import HIDDEN, Act, Attack
from tests.adversary.attacker import Attacker, Line, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.hostile_hellos import ALLOWED, CHANGE_CIPHER_SPEC, EARLY_DATA, FRONT, RESUMPTION
from tests.adversary.wire import hello, hello_without_share, start_of_answer
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "TLS: a second hello"


async def hello_retry_request(line: Line) -> None:
    header = await line.read(size=5)
    await line.read(size=int.from_bytes(header.data[3:5]) + len(CHANGE_CIPHER_SPEC))


def second_hello(
    second: Callable[[Attacker], bytes], *, between: bytes = b"", at_once: bool = False, early: bool = False
) -> Act:
    """A hello with an allowed name and no key share, and the one that the server then asks for."""

    async def act(box: Attacker) -> Seen:
        extensions = RESUMPTION[:1] if early else ()
        first = hello_without_share(box, FRONT, random=bytes(32), extra_extensions=extensions)
        line = await box.connect(plan.SHARED4, 443)
        if at_once:
            await line.send(first + between + second(box))
        else:
            await line.send(first)
            await hello_retry_request(line)
            await line.send(between + second(box))
        seen = await start_of_answer(line)
        await line.close()
        return seen

    return act


ATTACKS = [
    Attack(
        name="the second hello that a server asks for, under the same name",
        act=second_hello(lambda box: hello(box, FRONT)),
        must_arrive=True,
        sees="data",
        reasons=(),
    ),
    *(
        Attack(name=f"a second hello {how}", act=act, sees="reset", reasons=())
        for how, act in {
            "under a denied name": second_hello(lambda box: hello(box, HIDDEN)),
            "under a denied name, behind a change_cipher_spec": second_hello(
                lambda box: hello(box, HIDDEN), between=CHANGE_CIPHER_SPEC
            ),
            "under a denied name, behind early data": second_hello(
                lambda box: hello(box, HIDDEN), between=CHANGE_CIPHER_SPEC + EARLY_DATA * 40, early=True
            ),
            "under a denied name, in small records": second_hello(lambda box: hello(box, HIDDEN, fragment=3)),
            "under a denied name, before it is asked for": second_hello(
                lambda box: hello(box, HIDDEN), at_once=True
            ),
            "under a denied name, behind early data, before it is asked for": second_hello(
                lambda box: hello(box, HIDDEN), between=EARLY_DATA, early=True, at_once=True
            ),
            "without a name": second_hello(lambda box: hello(box, None)),
            "under two names": second_hello(lambda box: hello(box, FRONT, duplicate_sni=HIDDEN)),
        }.items()
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    report = await arena.contains(attack)
    assert report.seen is not None
    assert report.seen.seconds < 1


async def test_it_is_recorded_as_the_end(arena: Arena) -> None:
    attack = Attack(name="", act=second_hello(lambda box: hello(box, HIDDEN)), sees="reset", reasons=())
    await arena.contains(attack)
    ends = [record for record in arena.records if record.event is Event.END]
    assert [(end.reason, end.name) for end in ends] == [(Reason.HOST_MISMATCH, FRONT.decode())]
    assert ends[0].detail == "the second hello names another host"
    assert [connection.sni for connection in arena.lab.connections()] == [FRONT.decode()]


@pytest.mark.parametrize("segment", [1, 3])
async def test_in_segments_it_is_never_whole_at_the_origin(arena: Arena, segment: int) -> None:
    inmate = await arena.inmate()
    box = inmate.attacker
    arena.begin(inmate)
    line = await box.connect(plan.SHARED4, 443)
    await line.send(hello_without_share(box, FRONT))
    await hello_retry_request(line)
    await line.send(hello(box, HIDDEN), segment=segment)
    assert (await line.see()).ended == "reset"
    await line.close()
    await arena.rest(inmate)
    assert [connection.sni for connection in arena.lab.connections()] == [FRONT.decode()]


@pytest.mark.parametrize("step", ["__init__", "from_client", "from_server"])
async def test_a_connection_on_which_it_can_not_be_looked_for_ends(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"box_policy.wire.second_hello.SecondHelloReader.{step}", broken)
    inmate = await arena.inmate()
    await arena.rest(inmate)
    arena.begin(inmate)
    seen = await inmate.attacker.exchange(plan.ALLOWED4, 443, hello(inmate.attacker, ALLOWED))
    assert str(seen) == "reset"
    assert [record.reason for record in arena.records] == [Reason.NAME_ALLOWED, Reason.INTERNAL_ERROR]
    await arena.rest(inmate)
    arena.errors.clear()


async def test_a_handshake_without_one_is_left_alone(arena: Arena) -> None:
    """What follows in TLS 1.2 is encrypted, and may look like anything: it is left alone."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    for newest in ("TLSv1_3", "TLSv1_2"):
        line = await inmate.attacker.connect(plan.ALLOWED4, 443)
        assert "error" not in await line.tls("allowed.test", newest=newest)
        await line.close()
    await arena.rest(inmate)
    ends = [record.reason for record in arena.records if record.event is Event.END]
    assert set(ends) <= {Reason.CLOSED, Reason.RESET}


async def test_it_may_not_be_encrypted_if_the_first_was_not(open_arena: OpenArena) -> None:
    arena = await open_arena(deny_ech=True)
    act = second_hello(lambda box: hello(box, FRONT, ech=True))
    await arena.contains(Attack(name="", act=act, sees="reset", reasons=()))
    assert (await arena.recorded(Reason.HELLO_INVALID)).detail == "only the second hello is encrypted"
