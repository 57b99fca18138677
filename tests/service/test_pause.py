"""Pauses of a box that are asked for at once: what is shown is what is so."""

import asyncio
from itertools import permutations
from typing import Any, cast

import pytest

from box_policy.service.box import ServedBox
from box_policy.service.boxes import Boxes


class Sandbox:
    """Pauses and resumes in its own time."""

    def __init__(self) -> None:
        self.is_paused = False
        self.fails = False

    async def pause(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError
        self.is_paused = True
        await asyncio.sleep(0)

    async def resume(self) -> None:
        self.is_paused = False
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class Gate:
    """Serves a box, or doesn't."""

    def __init__(self) -> None:
        self.serves = True

    def pause(self, box_id: str) -> None:
        self.serves = False

    def resume(self, box_id: str) -> None:
        self.serves = True


class Made:
    """A box, with what is behind it."""

    def __init__(self) -> None:
        self.sandbox, self.gate = Sandbox(), Gate()
        nothing: Any = None
        self.boxes = Boxes(
            gate=cast(Any, self.gate), store=nothing, launcher=nothing, snapshots=nothing, programs=nothing
        )
        self.box = ServedBox(
            id="x",
            name=None,
            labels=[],
            size="small",
            runtime=None,
            keep_alive=False,
            ephemeral=False,
            environment={},
            snapshot_id=None,
            sandbox=cast(Any, self.sandbox),
        )

    def check(self) -> None:
        assert self.box.paused == self.sandbox.is_paused == (not self.gate.serves)


@pytest.mark.parametrize("order", sorted(set(permutations(["pause", "resume", "pause", "resume"]))))
@pytest.mark.parametrize("is_paused", [False, True])
async def test_at_once(order: tuple[str, ...], is_paused: bool) -> None:
    made = Made()
    if is_paused:
        await made.boxes.pause(made.box)
    await asyncio.gather(*(getattr(made.boxes, word)(made.box) for word in order))
    made.check()
    assert made.box.paused == (order[-1] == "pause")


async def test_a_pause_that_fails() -> None:
    made = Made()
    made.sandbox.fails = True
    with pytest.raises(RuntimeError):
        await made.boxes.pause(made.box)
    made.check()
    assert not made.box.paused
