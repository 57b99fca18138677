"""Programs that run to their end."""

import asyncio
import time

import pytest

from box_policy.sandbox.launcher import BoxPausedError, BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.runs import Finished
from box_policy.service.programs.runs import run as run_program
from box_policy.service.programs.slots import Slots, TooManyProgramsError
from tests.service.programs.conftest import CWD, ENVIRONMENT, PATIENCE, eventually_gone, nothing_left, text

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def run(
    box: NamespaceBox,
    *argv: str,
    timeout: float | None = None,
    max_output: int = 8 << 20,
    slots: Slots | None = None,
    cwd: str = CWD,
) -> Finished:
    async with asyncio.timeout(PATIENCE):
        return await run_program(
            box,
            argv,
            cwd=cwd,
            env=ENVIRONMENT,
            slots=slots or Slots(),
            timeout=timeout,
            max_output=max_output,
        )


async def sh(box: NamespaceBox, script: str, **options: float) -> Finished:
    return await run(box, "sh", "-c", script, **options)  # type: ignore[arg-type]


async def test_what_it_writes_and_how_it_ends(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await sh(box, "echo out; echo err >&2; exit 3")
    assert finished == Finished(3, b"out\n", b"err\n")
    assert not finished.truncated


@pytest.mark.parametrize(("number", "code"), [("TERM", 143), ("KILL", 137), ("SEGV", 139)])
async def test_a_signal_is_128_and_its_number(box: NamespaceBox, number: str, code: int) -> None:
    assert (await sh(box, f"kill -{number} $$")).exit_code == code


async def test_standard_input_is_empty(box: NamespaceBox) -> None:
    assert (await run(box, "cat")).stdout == b""
    assert text((await run(box, "readlink", "/proc/self/fd/0")).stdout) == "/dev/null\n"


async def test_directory_and_variables(box: NamespaceBox) -> None:
    assert text((await sh(box, "pwd; echo $HOME")).stdout) == f"{CWD}\n{CWD}\n"


async def test_a_program_that_is_not_there(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await run(box, "no-such-program")
    assert finished.exit_code == 127
    assert text(finished.stderr).startswith("no-such-program: no such program in the box")


async def test_a_file_that_may_not_be_run(box: NamespaceBox) -> None:
    finished = await run(box, "/etc/passwd")
    assert (finished.exit_code, text(finished.stderr)) == (126, "/etc/passwd: permission denied\n")


async def test_a_directory_that_is_not_there(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await run(box, "true", cwd="/nowhere")
    assert (finished.exit_code, text(finished.stderr)) == (126, "/nowhere: No such file or directory\n")


async def test_arguments_that_are_too_long(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await run(box, "true", "x" * 200_000)
    assert finished.exit_code == 126 and "too large" in text(finished.stderr)


async def test_much_output_on_both_streams(box: NamespaceBox) -> None:
    finished = await sh(box, "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert (len(finished.stdout), len(finished.stderr)) == (3_000_000, 3_000_000)


async def test_output_beyond_the_bound_is_dropped_and_the_program_goes_on(box: NamespaceBox) -> None:
    finished = await sh(box, "head -c 500000 /dev/zero; echo done >&2; exit 4", max_output=1000)
    assert finished.exit_code == 4
    assert finished.stdout == bytes(1000)
    assert finished.truncated and finished.stdout_truncated and not finished.stderr_truncated
    assert finished.stderr == b"done\n"


async def test_output_of_just_the_bound_is_whole(box: NamespaceBox) -> None:
    assert not (await sh(box, "head -c 1000 /dev/zero", max_output=1000)).truncated


async def test_what_it_leaves_behind_is_not_waited_for(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await sh(box, "(sleep 77; echo late) & echo early")
    assert finished.stdout == b"early\n"
    await sh(box, "kill $(cat /proc/[0-9]*/stat | grep '(sleep)' | cut -d' ' -f1)")


async def test_what_it_leaves_behind_may_write_for_ever(box: NamespaceBox) -> None:
    finished = await sh(box, "yes no-end & echo $! >&2; sleep 0.1")
    assert len(finished.stdout) > 0
    await sh(box, f"kill -9 {text(finished.stderr)}")


async def test_all_that_was_written_before_the_end_is_there(box: NamespaceBox) -> None:
    # More than one read takes, and written just before the end.
    for _ in range(20):
        finished = await sh(box, "head -c 200000 /dev/zero; head -c 60000 /dev/zero >&2")
        assert (len(finished.stdout), len(finished.stderr)) == (200_000, 60_000)


async def test_a_program_that_closes_its_output_is_waited_for(box: NamespaceBox) -> None:
    assert (await sh(box, "exec >&- 2>&-; sleep 0.2; exit 9")).exit_code == 9


async def test_time_is_over(box: NamespaceBox) -> None:
    before = time.monotonic()
    with nothing_left():
        finished = await sh(box, "echo begun; sleep 65 & sleep 66", timeout=0.3)
    assert (finished.exit_code, finished.timed_out, text(finished.stdout)) == (124, True, "begun\n")
    assert 0.25 < time.monotonic() - before < 5
    await eventually_gone(box, "sleep 6")


async def test_time_is_not_over(box: NamespaceBox) -> None:
    finished = await sh(box, "exit 5", timeout=10)
    assert (finished.exit_code, finished.timed_out) == (5, False)


async def test_cancelling_kills(box: NamespaceBox) -> None:
    with nothing_left():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sh(box, "sleep 55 & sleep 56"), 0.3)
        await eventually_gone(box, "sleep 5")


async def test_cancelling_while_it_starts_kills(box: NamespaceBox) -> None:
    with nothing_left():
        for turns in range(12):
            task = asyncio.create_task(sh(box, "sleep 44"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await eventually_gone(box, "sleep 44")


async def test_the_end_of_the_box(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("short"))
    with nothing_left():
        running = asyncio.create_task(sh(box, "echo begun; sleep 60"))
        await asyncio.sleep(0.3)
        closing = asyncio.create_task(box.close())
        finished = await running
        await closing
    assert (finished.exit_code, text(finished.stdout)) == (137, "begun\n")
    with pytest.raises(SandboxError, match="the box has ended"):
        await sh(box, "true")


async def test_the_time_of_a_program_in_a_paused_box_is_over(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("paused"))
    running = asyncio.create_task(sh(box, "sleep 60", timeout=0.5))
    await asyncio.sleep(0.2)
    await box.pause()
    finished = await running
    assert (finished.exit_code, finished.timed_out) == (124, True)
    with pytest.raises(SandboxError, match="paused"):
        await sh(box, "true")
    await box.resume()
    await eventually_gone(box, "sleep 60")
    await box.close()


async def test_no_more_programs_than_there_are_places(box: NamespaceBox) -> None:
    slots = Slots(a_box=2, in_all=3)
    running = [asyncio.create_task(run(box, "sleep", "33", slots=slots)) for _ in range(2)]
    await asyncio.sleep(0)
    assert slots.running(box.id) == 2
    with pytest.raises(TooManyProgramsError, match="2 programs run in this box"):
        await run(box, "true", slots=slots)
    with (
        slots.place("another"),
        pytest.raises(TooManyProgramsError, match="3 programs run in all"),
        slots.place("a third"),
    ):
        pass
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert slots.running(box.id) == 0
    assert (await run(box, "true", slots=slots)).exit_code == 0


async def test_a_place_is_given_back_also_after_a_failure(box: NamespaceBox) -> None:
    slots = Slots(a_box=1)
    await box.pause()
    with pytest.raises(BoxPausedError):
        await run(box, "true", slots=slots)
    await box.resume()
    await run(box, "no-such-program", slots=slots)
    assert slots.running(box.id) == 0


async def test_many_at_once(box: NamespaceBox) -> None:
    slots = Slots()
    with nothing_left():
        finished = await asyncio.gather(*(sh(box, f"echo {number}") for number in range(40)))
    assert [text(result.stdout) for result in finished] == [f"{number}\n" for number in range(40)]
    assert slots.running(box.id) == 0
