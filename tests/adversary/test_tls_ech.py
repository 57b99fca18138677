"""Encrypted Client Hello: the outer name is judged. GREASE for the extension looks the same, by design."""

from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena
from tests.adversary.attack import EVIL, Attack
from tests.adversary.conftest import OpenArena
from tests.adversary.hostile_hellos import ALLOWED, ECH, ESNI
from tests.adversary.wire import allowed_tls, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


KINDS: Final = {
    "ECH, or GREASE for it": ECH,
    "its inner form": (0xFE0D, b"\x01"),
    "an empty one": (0xFE0D, b""),
    "draft 10": (0xFE0A, bytes(60)),
    "ESNI": ESNI,
}


@pytest.mark.parametrize("extension", KINDS.values(), ids=KINDS)
async def test_is_recorded(arena: Arena, extension: tuple[int, bytes]) -> None:
    act = allowed_tls(plan.ALLOWED4, ALLOWED, extra_extensions=[extension])
    await arena.contains(Attack(name="", act=act, must_arrive=True, reasons=()))
    assert [record.ech for record in arena.records if record.event is Event.DECISION] == [True]
    act = tls(plan.EVIL4, EVIL, extra_extensions=[extension])
    await arena.contains(Attack(name="", act=act, sees="alert 49", reasons=(Reason.NAME_NOT_ALLOWED,)))
    assert [record.ech for record in arena.records if record.event is Event.DECISION] == [True]


@pytest.mark.parametrize("extension", KINDS.values(), ids=KINDS)
async def test_can_be_denied(open_arena: OpenArena, extension: tuple[int, bytes]) -> None:
    arena = await open_arena(deny_ech=True)
    act = tls(plan.ALLOWED4, ALLOWED, extra_extensions=[extension])
    await arena.contains(Attack(name="", act=act, sees="alert 49", reasons=(Reason.ECH_DENIED,)))
    assert arena.lab.packets() == []
    act = allowed_tls(plan.ALLOWED4, ALLOWED, grease=True)
    await arena.contains(Attack(name="", act=act, must_arrive=True, reasons=()))


async def test_says_nothing_where_the_address_alone_is_allowed(open_arena: OpenArena) -> None:
    """No name counts there, so none is hidden."""
    arena = await open_arena(deny_ech=True)
    act = allowed_tls(plan.CIDR4, EVIL, ech=True)
    await arena.contains(Attack(name="", act=act, must_arrive=True, reasons=()))
