"""One program, where its moments have to be chosen: a program of the test's own, in no box."""

import asyncio
import os
import signal
from typing import Any, cast

import pytest

from box_policy.sandbox.launcher import Box, ProgramSpec
from box_policy.service.programs import execution as execution_module
from box_policy.service.programs.execution import executing
from tests.service.programs.conftest import PATIENCE, nothing_left

KILLED = [int(signal.SIGKILL)]


class FakeBox:
    """A box whose programs start, write and end when the test says so."""

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.program = FakeProgram()

    async def start(self, spec: ProgramSpec) -> "FakeProgram":
        await self.may_start.wait()
        if spec.stdout is not None:
            self.program.stdout = os.dup(spec.stdout)
        return self.program

    def executing(self, **options: Any) -> Any:
        return executing(cast(Box, self), ProgramSpec(["x"]), **options)


class FakeProgram:
    def __init__(self) -> None:
        self.terminal: int | None = None
        self.pid = 2
        self.stdout = -1
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def send_signal(self, number: int) -> None:
        self.signals.append(int(number))


async def test_it_starts_at_the_moment_when_nobody_wants_it_any_more() -> None:
    with nothing_left():
        box = FakeBox()

        async def use() -> None:
            async with box.executing():
                pass

        task = asyncio.create_task(use())
        await asyncio.sleep(0.01)
        box.may_start.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        assert box.program.signals == KILLED
        os.close(box.program.stdout)


async def test_its_pipes_stay_until_it_has_started_although_nobody_wants_it() -> None:
    with nothing_left():
        box = FakeBox()
        task = asyncio.create_task(box.executing().__aenter__())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        box.may_start.set()
        await asyncio.sleep(0.01)
        # What it got was its own pipe, not what has that number by now: nobody reads it.
        with pytest.raises(BrokenPipeError):
            os.write(box.program.stdout, b"x")
        os.close(box.program.stdout)


async def test_an_unwanted_terminal_is_closed() -> None:
    with nothing_left():
        box = FakeBox()
        box.program.terminal, writer = os.pipe()
        task = asyncio.create_task(box.executing().__aenter__())
        await asyncio.sleep(0.01)
        task.cancel()
        box.may_start.set()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        os.close(writer)
        os.close(box.program.stdout)


async def test_a_failed_start_leaves_nothing() -> None:
    with nothing_left():
        box = FakeBox()
        box.may_start = cast(asyncio.Event, None)
        with pytest.raises(AttributeError):
            async with box.executing(with_stdin=True):
                pass


async def test_other_tasks_have_their_turn_while_there_is_always_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution_module, "_PIECE", 100)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    box = FakeBox()
    box.may_start.set()
    async with box.executing() as execution:
        os.write(box.program.stdout, bytes(50_000))
        counting = asyncio.create_task(count())
        for _ in range(500):
            await execution.next_piece()
        counting.cancel()
        os.close(box.program.stdout)
    assert turns >= 490


async def test_what_does_not_end_when_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "_KILL_PATIENCE", 0.1)
    box = FakeBox()
    box.may_start.set()
    with nothing_left():
        async with asyncio.timeout(PATIENCE), box.executing(timeout=0.1) as execution:
            os.write(box.program.stdout, b"last words")
            piece = await execution.next_piece()
            assert piece is not None and piece.data == b"last words"
            assert await execution.next_piece() is None
            assert (execution.exit_code, execution.timed_out) == (124, True)
        os.close(box.program.stdout)
    assert set(box.program.signals) == set(KILLED)


async def test_a_signal_after_the_end_is_nobodys() -> None:
    box = FakeBox()
    box.may_start.set()
    async with box.executing() as execution:
        os.close(box.program.stdout)
        box.program.ended.set_result(-signal.SIGTERM)
        assert await execution.next_piece() is None
        assert execution.exit_code == 143
        execution.send_signal(signal.SIGINT)
    assert box.program.signals == []
