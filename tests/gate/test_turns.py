"""Turns, rounds and descriptors: what boxes share, and how none takes another's part."""

import asyncio
import os

import pytest

from box_policy.gate.descriptors import Descriptors
from box_policy.gate.poller import BATCH, READ, Poller
from box_policy.gate.rounds import Rounds
from box_policy.gate.turns import MAX_WAITING, Turns, Waiting


class TestTurns:
    async def test_each_asker_has_as_many(self) -> None:
        turns = Turns(lambda: 2)
        mine, theirs = [Waiting() for _ in range(5)], [Waiting() for _ in range(2)]
        assert all(turns.want("a", waiting) for waiting in mine)
        assert all(turns.want("b", waiting) for waiting in theirs)
        assert [waiting.has_turn for waiting in (*mine, *theirs)] == [True] * 2 + [False] * 3 + [True] * 2
        turns.give_back(theirs[0])
        assert not mine[2].has_turn, "another's turn is not taken for it"
        turns.give_back(mine[1])
        assert [waiting.has_turn for waiting in mine] == [True, True, True, False, False]

    async def test_what_two_ask_for_takes_the_first_turn_of_either(self) -> None:
        turns = Turns(lambda: 1)
        first, both = Waiting(), Waiting()
        turns.want("a", first)
        turns.want("a", both)
        assert not both.has_turn
        turns.want("b", both)
        assert (both.has_turn, both.asker) == (True, "b")
        turns.give_back(first)
        turns.give_back(both)
        assert (turns._taken, turns._queues) == ({}, {})

    async def test_who_gives_up_takes_none(self) -> None:
        turns = Turns(lambda: 1)
        first, second, third = Waiting(), Waiting(), Waiting()
        for waiting in (first, second, third):
            turns.want("a", waiting)
        second.give_up()
        turns.give_back(second)
        turns.give_back(first)
        assert (second.has_turn, third.has_turn) == (False, True)

    async def test_only_so_many_wait(self) -> None:
        turns = Turns(lambda: 1)
        assert all(turns.want("a", Waiting()) for _ in range(1 + MAX_WAITING))
        assert not turns.want("a", Waiting())
        assert turns.want("b", Waiting())

    async def test_a_share_may_shrink(self) -> None:
        share = [3]
        turns = Turns(lambda: share[0])
        waiting = [Waiting() for _ in range(5)]
        for each in waiting:
            turns.want("a", each)
        share[0] = 1
        for each in waiting[:2]:
            turns.give_back(each)
        assert [each.has_turn for each in waiting] == [True] * 3 + [False] * 2
        turns.give_back(waiting[2])
        assert waiting[3].has_turn


class TestRounds:
    async def test_one_piece_a_round_of_one_box_after_the_other(self) -> None:
        rounds, done = Rounds(), []

        async def work(box: str) -> None:
            await rounds.turn(box)
            done.append(box)

        work_to_do = [asyncio.ensure_future(work(box)) for box in "aaaaabb"]
        await asyncio.sleep(0)
        counts = []
        while len(done) < 7:
            before = len(done)
            await asyncio.sleep(0)
            counts.append(len(done) - before)
        assert max(counts) == 1
        assert "".join(done) == "aababaa"
        await asyncio.gather(*work_to_do)

    async def test_whoever_is_cancelled_holds_up_nobody(self) -> None:
        rounds = Rounds()
        await rounds.turn("a")
        waiting = [asyncio.ensure_future(rounds.turn("a")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        async with asyncio.timeout(1):
            await asyncio.gather(*waiting, return_exceptions=True)
            await rounds.turn("b")
        assert not rounds._waiting


class TestDescriptors:
    def test_the_last_quarter_is_shared_out(self) -> None:
        descriptors = Descriptors(4096)
        descriptors.boxes = 8
        assert descriptors.admit(3071, held=1000)
        # A quarter less what is kept for the gate itself, two for each connection.
        assert descriptors.admit(3072, held=(1024 - 256) // 2 // 8 - 1)
        assert not descriptors.admit(3072, held=(1024 - 256) // 2 // 8)
        assert not descriptors.admit(4096 - 256, held=0)
        assert (descriptors.plenty(3071), descriptors.plenty(3072)) == (True, False)
        assert (descriptors.enough(4096 - 257), descriptors.enough(4096 - 256)) == (True, False)

    @pytest.mark.parametrize("boxes", [0, 1, 100_000])
    def test_every_box_has_one_however_many_there_are(self, boxes: int) -> None:
        descriptors = Descriptors(64)
        descriptors.boxes = boxes
        assert descriptors.admit(50, held=0)
        assert descriptors.questions() >= 1


class Target:
    """Is always ready, and counts how often it is told so."""

    def __init__(self) -> None:
        self.told = 0
        self.reader, self.writer = os.pipe()
        os.write(self.writer, b"x")

    def ready(self, events: int) -> None:
        self.told += 1

    def failed(self, error: Exception) -> None:
        raise AssertionError from error

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def test_a_turn_is_shared_out_among_inner_pollers() -> None:
    outer, busy, idle = Poller(), Poller(), Poller()
    many, one = [Target() for _ in range(5 * BATCH)], Target()
    for inner in (busy, idle):
        outer.watch(inner.fileno(), READ, inner)
    for target in many:
        busy.watch(target.reader, READ, target)
    outer.run_ready()
    assert sum(target.told for target in many) == BATCH, "all of it, as long as nobody else has anything"
    idle.watch(one.reader, READ, one)
    assert outer.watched == 5 * BATCH + 1
    for turn in range(1, 4):
        outer.run_ready()
        assert one.told == turn
        assert sum(target.told for target in many) == BATCH + turn * BATCH // 2
    for poller in (busy, idle, outer):
        poller.close()
    for target in (*many, one):
        target.close()
