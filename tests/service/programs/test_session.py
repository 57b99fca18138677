"""Sessions: a program that a client talks with."""

import asyncio
import time

import pytest

from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs import session as session_module
from tests.service.programs.conftest import CWD, eventually_gone
from tests.service.programs.talking import started

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_output_and_end(box: NamespaceBox) -> None:
    async with started(box, "echo out; echo err >&2; exit 7") as client:
        assert await client.rest() == (b"out\n", b"err\n", 7)
    assert client.accepted


async def test_a_command_line_is_for_a_login_shell(box: NamespaceBox) -> None:
    async with started(
        box, cmd="shopt -q login_shell && echo $0; echo 'a  b' \"$X\"", env=["X=y z"]
    ) as client:
        assert await client.rest() == (b"bash\na  b y z\n", b"", 0)


async def test_a_command_line_in_a_box_without_bash(box: NamespaceBox) -> None:
    await box.files.mkdir(f"{CWD}/few", parents=True)
    async with started(box, f"ln -sf /bin/dash {CWD}/few/sh") as client:
        await client.rest()
    async with started(box, cmd="echo $0", env=[f"PATH={CWD}/few"]) as client:
        assert (await client.rest())[0] == b"sh\n"


@pytest.mark.parametrize(
    ("cwd", "where"), [(None, CWD), ("", CWD), ("sub dir", f"{CWD}/sub dir"), ("/tmp", "/tmp"), (".", CWD)]
)
async def test_the_working_directory(box: NamespaceBox, cwd: str | None, where: str) -> None:
    await box.files.mkdir(f"{CWD}/sub dir", parents=True)
    async with started(box, "pwd", cwd=cwd) as client:
        assert (await client.rest())[0] == where.encode() + b"\n"


async def test_input_goes_to_the_program_until_it_is_closed(box: NamespaceBox) -> None:
    async with started(box, argv=["cat"]) as client:
        client.write(b"one\n")
        assert await client.until("one\n") == "one\n"
        client.write(b"")
        client.write(b"two")
        client.say("stdin_close")
        client.say("stdin_close")
        client.write(b"never")
        assert await client.rest() == (b"two", b"", 0)


async def test_input_for_a_program_that_has_closed_its_own(box: NamespaceBox) -> None:
    async with started(box, "exec <&-; echo up; read x; sleep 0.3; exit 3") as client:
        await client.until("up\n")
        for _ in range(20):
            client.write(bytes(100_000))
        assert (await client.rest())[2] == 3


async def test_much_goes_through_in_both_directions(box: NamespaceBox) -> None:
    data = bytes(range(256)) * 4096 * 4
    async with started(box, argv=["cat"]) as client:
        for offset in range(0, len(data), 1 << 16):
            client.write(data[offset : offset + (1 << 16)])
        client.say("stdin_close")
        assert await client.rest() == (data, b"", 0)


async def test_a_client_that_writes_too_fast_is_held_back(box: NamespaceBox) -> None:
    async with started(box, "rm -f go; mkfifo go; echo up; read x <go; wc -c") as client:
        await client.until("up\n")
        before = client.taken
        for _ in range(100):
            client.write(bytes(100_000))
        await asyncio.sleep(0.3)
        # 64 KiB in the pipe, 256 KiB in the service, and what makes it full.
        assert client.taken - before <= 5
        async with started(box, "echo >go") as other:
            await other.rest()
        client.say("stdin_close")
        assert await client.rest() == (b"10000000\n", b"", 0)


async def test_a_held_back_client_that_goes_is_noticed(
    box: NamespaceBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_SIGN_OF_LIFE", 0.1)
    async with started(box, argv=["sleep", "57"]) as client:
        for _ in range(10):
            client.write(bytes(100_000))
        await client.next("waiting")
        client.gone = True  # and no message says so: those before it are not taken
    await eventually_gone(box, "sleep 57")


async def test_a_client_that_reads_slowly_holds_the_program_back(box: NamespaceBox) -> None:
    async with started(
        box, "i=0; while [ $i -lt 99 ]; do head -c 9999 /dev/zero; i=$((i+1)); echo $i >n; done"
    ) as c:
        c.reads.clear()
        await asyncio.sleep(0.4)
        async with started(box, "cat n") as other:
            assert int((await other.rest())[0]) < 40
        c.reads.set()
        assert len((await c.rest())[0]) == 99 * 9999


async def test_signals(box: NamespaceBox) -> None:
    script = "trap 'echo got INT' INT; trap 'echo got USR1' USR1; echo up; while :; do sleep 0.05; done"
    async with started(box, script) as client:
        await client.until("up\n")
        client.say("signal", signal="SIGINT")
        assert "got INT\n" in await client.until("INT\n")
        client.say("signal", signal="usr1")
        assert "got USR1\n" in await client.until("USR1\n")
        client.say("signal")
        assert (await client.rest())[2] == 143


async def test_terminate_asks_first(box: NamespaceBox) -> None:
    async with started(box, "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done") as client:
        await client.until("up\n")
        client.say("terminate")
        assert (await client.rest())[2] == 5


async def test_terminate_kills_what_does_not_hear_it(box: NamespaceBox) -> None:
    async with started(box, "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done") as client:
        await client.until("up\n")
        before = time.monotonic()
        client.say("terminate", graceMs=500)
        await client.until("no\n")
        client.say("terminate", graceMs=1)  # the first one counts
        assert await client.rest() == (b"", b"", 137)
        assert 0.45 < time.monotonic() - before < 5


async def test_a_terminal(box: NamespaceBox) -> None:
    async with started(
        box, "test -t 0 && stty size; read x; stty size; exit 4", tty=True, rows=31, cols=99
    ) as client:
        await client.until("31 99\r\n")
        client.say("resize", rows=40, cols=120)
        client.write(b"go\n")
        shown, err, code = await client.rest()
        assert shown.endswith(b"40 120\r\n")
        assert (err, code) == (b"", 4)


@pytest.mark.parametrize("data", [b"", b"line\n", b"part", b"\x04x"])
async def test_the_end_of_a_terminals_input(box: NamespaceBox, data: bytes) -> None:
    async with started(box, "stty -echo; echo up; cat; echo; echo end", tty=True) as client:
        await client.until("up\r\n")
        client.write(data)
        client.say("stdin_close")
        client.say("stdin_close")
        client.say("resize", rows=2, cols=2)
        shown, _, code = await client.rest()
        assert shown.endswith(b"end\r\n") and code == 0


async def test_keys_of_a_terminal_send_signals(box: NamespaceBox) -> None:
    async with started(box, "echo up; exec sleep 58", tty=True) as client:
        await client.until("up\r\n")
        client.write(b"\x03")
        assert (await client.rest())[2] == 130


async def test_all_that_a_terminal_shows_arrives(box: NamespaceBox) -> None:
    async with started(box, "stty -opost; seq 1 20000", tty=True) as client:
        shown, _, _ = await client.rest()
    assert shown == b"".join(b"%d\n" % number for number in range(1, 20001))


async def test_who_keeps_a_terminal_is_not_waited_for(box: NamespaceBox) -> None:
    async with started(box, "setsid sleep 4 & echo up; exit 2", tty=True) as client:
        before = time.monotonic()
        assert (await client.rest())[2] == 2
        assert time.monotonic() - before < 3
