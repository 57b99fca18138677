"""When the gate itself fails over an HTTP connection: it ends, and a record says so."""

import asyncio

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.gate.conftest import BOX, GateUnderTest
from tests.gate.test_http import request
from tests.lab import Lab, plan


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a bug")


async def recorded(gate: GateUnderTest) -> list[tuple[Event, bool, Reason]]:
    """All records, once every HTTP connection has been served to its end."""
    async with asyncio.timeout(5):
        await asyncio.gather(*gate.embedded._door._tasks, return_exceptions=True)
    return [(record.event, record.allowed, record.reason) for record in gate.records]


@pytest.mark.parametrize(
    "where",
    [
        "box_policy.gate.http_layer.read_request",
        "box_policy.gate.http_layer.make_body_reader",
        "box_policy.gate.http.GateHttpLayer",
    ],
)
async def test_before_a_verdict(
    gate: GateUnderTest, lab: Lab, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, broken)
    gate.may_fail = True
    client = await gate.claim(plan.ALLOWED4, 80)
    await client.send(request("allowed.test"))
    assert await client.is_reset()
    assert await recorded(gate) == [(Event.DECISION, False, Reason.INTERNAL_ERROR)]
    assert lab.packets() == []


async def test_while_a_response_comes(gate: GateUnderTest, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("box_policy.gate.http_layer.read_response", broken)
    gate.may_fail = True
    client = await gate.claim(plan.ALLOWED4, 80)
    await client.send(request("allowed.test"))
    assert await client.is_reset()
    assert await recorded(gate) == [
        (Event.DECISION, True, Reason.NAME_ALLOWED),
        (Event.END, True, Reason.INTERNAL_ERROR),
    ]
    await lab.expect_async(lambda: lab.connections()[0].closed == "reset")


async def test_a_box_that_goes_away_in_the_middle_of_a_head(gate: GateUnderTest) -> None:
    client = await gate.claim(plan.ALLOWED4, 80)
    await client.send(request("allowed.test")[:-2])
    async with asyncio.timeout(5):
        while not gate.embedded._door._tasks:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # nothing tells that the door has let it in
    gate.embedded.gate.drop(BOX)
    assert await client.is_reset()
    assert await recorded(gate) == [(Event.DECISION, False, Reason.BOX_CLOSED)]
