"""What the gate takes for a name is what a name server would take for one, or it is none."""

from collections.abc import Callable, Sequence

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.asking import Message, asks, denied, labels, malformed, message, question
from tests.adversary.attack import Attack
from tests.adversary.attacker import Attacker
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Names in DNS"

NOT_A_NAME = "REFUSED 17 name_invalid"


def of_labels(parts: Callable[[Attacker], Sequence[bytes]]) -> Message:
    """A question for a name of labels that may hold anything."""
    return lambda box: message(labels(*parts(box)))


def of_wire(name: Message) -> Message:
    """A question for a name as it is on the wire."""
    return lambda box: message(name(box))


ATTACKS = [
    *(
        denied(
            f"a name with {what}",
            of_labels(parts),
            NOT_A_NAME,
            Reason.NAME_INVALID,
        )
        for what, parts in {
            "a NUL before an allowed ending": lambda box: (box.nonce.encode(), b"evil\0", b"wild", b"test"),
            "a NUL behind an allowed name": lambda _: (b"allowed", b"test\0evil", b"test"),
            "a dot within a label": lambda box: (f"{box.nonce}.evil".encode(), b"wild", b"test"),
            "an allowed name in one label": lambda _: (b"allowed.test",),
            "an allowed ending in one label": lambda box: (box.nonce.encode(), b"evil", b"x.wild.test"),
            "a backslash and a dot": lambda _: (b"evil\\", b"wild", b"test"),
            "spaces": lambda box: (box.nonce.encode() + b" ", b"wild", b"test"),
            "a line's end": lambda box: (box.nonce.encode() + b"\r\nforged: 1", b"wild", b"test"),
            "an escape sequence": lambda box: (b"\x1b[2J" + box.nonce.encode(), b"wild", b"test"),
            "UTF-8 letters": lambda _: ("ällowed".encode(), b"wild", b"test"),
            "full-width letters": lambda _: ("\uff41llowed".encode(), b"wild", b"test"),
            "bytes above ASCII": lambda box: (box.nonce.encode() + b"\xff\xfe", b"wild", b"test"),
            "a star": lambda _: (b"*", b"wild", b"test"),
            "a hyphen in front": lambda _: (b"-x", b"wild", b"test"),
            "an A-label that decodes to nothing": lambda _: (b"xn--", b"wild", b"test"),
            "a number at its end": lambda _: (b"127", b"1"),
            "a number in hexadecimal": lambda _: (b"0x7f000001",),
        }.items()
    ),
    denied("the root", lambda _: message(labels()), NOT_A_NAME, Reason.NAME_INVALID),
    *(
        malformed(f"a name with {what}", of_wire(name))
        for what, name in {
            "a pointer to itself": lambda _: b"\xc0\x0c",
            "a pointer to the header": lambda _: b"\xc0\x00",
            "a pointer ahead": lambda _: b"\xc0\x20",
            "a pointer behind a label": lambda box: labels(box.nonce.encode())[:-1] + b"\xc0\x0c",
            "an extended label": lambda _: b"\x41\x08" + b"x" * 8 + b"\0",
            "a label of the unused sort": lambda _: b"\x80\x01",
            "a label that is too long": lambda _: b"\x40" + b"x" * 64 + b"\0",
            "more than 255 bytes": lambda box: labels(*[box.nonce.encode() * 2] * 8),
            "no end": lambda box: labels(box.nonce.encode())[:-1],
        }.items()
    ),
    Attack(
        name="an allowed name in mixed case",
        act=asks(question("NONCE.bOtH.wIlD.TeSt")),
        zone={"*.both.wild.test": {"A": [plan.WILDCARD4]}},
        must_arrive=True,
        sees=f"NOERROR {plan.WILDCARD4}",
        reasons=(),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
