"""A name says where a connection may go, and the gate alone says where that is.

The box's destination address gives the port and is held against CIDRs; nothing else. Under a name only
addresses are dialled that the gate has resolved and judged itself.
"""

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Attack
from tests.adversary.wire import allowed_tls, http, sends, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASELINE = [
    Attack(name="an allowed name over TLS", act=allowed_tls(plan.ALLOWED4, b"allowed.test"), must_arrive=True),
    Attack(name="an allowed name over HTTP", act=http(plan.ALLOWED4, b"allowed.test"), must_arrive=True, sees="http 200"),
]

ATTACKS = [
    *BASELINE,
    Attack(
        name="an allowed name at a foreign address",
        act=allowed_tls(plan.EVIL4, b"allowed.test"),
        must_arrive=True,
        reasons=(),
    ),
    Attack(
        name="a denied name at its own address",
        act=tls(plan.EVIL4, b"evil.test"),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied Host at its own address",
        act=http(plan.EVIL4, b"evil.test"),
        sees="http 403",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="opaque bytes to a foreign address",
        act=sends(plan.EVIL4, 443, lambda box: f"RAW {box.nonce}\n".encode()),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
