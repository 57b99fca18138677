"""Programs in a box: how they start, what they are given, how they end."""

import asyncio
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import ProgramNotFoundError, ProgramSpec, SandboxError
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import PATIENCE, python, read_all, readable, run, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home/box",
    "USER": "root",
    "LANG": "C.UTF-8",
}


async def read_until(fd: int, text: str) -> str:
    """What a terminal shows, up to and including ``text``."""
    shown = b""
    async with asyncio.timeout(PATIENCE):
        while text.encode() not in shown:
            await readable(fd)
            shown += os.read(fd, 4096)
    return shown.decode()


@pytest.mark.parametrize("status", [0, 1, 42, 255])
async def test_exit_status(box: ServedBox, status: int) -> None:
    assert (await shell(box, f"exit {status}")).status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGPIPE])
async def test_status_of_a_program_ended_by_a_signal(box: ServedBox, number: signal.Signals) -> None:
    assert (await shell(box, f"kill -{int(number)} $$")).status == -number


async def test_send_signal_reaches_the_whole_group(box: ServedBox) -> None:
    reader, writer = os.pipe()
    program = await box.start(ProgramSpec(["/bin/sh", "-c", "sleep 60 & echo up; wait"], stdout=writer))
    os.close(writer)
    assert os.read(reader, 10) == b"up\n"
    program.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await program.wait() == -signal.SIGTERM
        # The end of the pipe: sleep, which holds it too, has ended as well.
        assert await read_all(reader) == b""


async def test_a_signal_to_an_ended_program_does_nothing(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["true"]))
    assert await program.wait() == 0
    program.send_signal(signal.SIGKILL)
    with pytest.raises(ValueError, match="no such signal: 0"):
        program.send_signal(0)


async def test_wait_can_be_repeated_and_cancelled(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["sleep", "60"]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(program.wait(), 0.01)
    program.send_signal(signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert [await program.wait(), await program.wait()] == [-9, -9]


async def test_standard_streams_are_those_given(box: ServedBox) -> None:
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    script = "cat; echo problem >&2"
    spec = ProgramSpec(["sh", "-c", script], stdin=in_reader, stdout=out_writer, stderr=err_writer)
    program = await box.start(spec)
    for fd in (in_reader, out_writer, err_writer):
        os.close(fd)
    os.write(in_writer, b"text")
    os.close(in_writer)
    async with asyncio.timeout(PATIENCE):
        assert await read_all(out_reader) == b"text"
        assert await read_all(err_reader) == b"problem\n"
        assert await program.wait() == 0


async def test_standard_streams_are_null_by_default(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["sh", "-c", "read line; test $? = 1 && test -c /dev/stdout"]))
    async with asyncio.timeout(PATIENCE):
        assert await program.wait() == 0


async def test_a_program_has_no_other_descriptor(box: ServedBox) -> None:
    listing = await python(box, "import os; print(sorted(os.listdir('/proc/self/fd'), key=int)[:-1])")
    assert listing.output == "['0', '1', '2']\n"


async def test_a_directory_is_no_standard_stream(box: ServedBox, tmp_path: Path) -> None:
    # fchdir(0) would be the way into the host's file system.
    for flags in (os.O_RDONLY | os.O_DIRECTORY, os.O_PATH):
        fd = os.open(tmp_path, flags)
        try:
            with pytest.raises(SandboxError, match="pipes and character devices"):
                await box.start(ProgramSpec(["true"], stdin=fd))
        finally:
            os.close(fd)


async def test_a_closed_descriptor_is_refused(box: ServedBox) -> None:
    with pytest.raises(SandboxError, match="descriptor 999: Bad file descriptor"):
        await box.start(ProgramSpec(["true"], stdout=999))


async def test_the_environment_is_exact(user: str, box: ServedBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    shown = (await run(box, "env")).output
    assert dict(line.split("=", 1) for line in shown.splitlines()) == ENVIRONMENT | (
        {"HOME": "/root"} if user == "docker" else {}  # as the image's /etc/passwd has it
    )


async def test_variables_are_added_and_replaced(box: ServedBox) -> None:
    given = {"HOME": "/tmp", "EXTRA": "a=b c", "UMLAUT": "ä\udcff"}
    code = "import os, sys; print([os.environb[name] for name in (b'HOME', b'EXTRA', b'UMLAUT', b'USER')])"
    reader, writer = os.pipe()
    program = await box.start(ProgramSpec(["python3", "-c", code], env=given, stdout=writer))
    os.close(writer)
    expected = [b"/tmp", b"a=b c", "ä".encode() + b"\xff", b"root"]
    async with asyncio.timeout(PATIENCE):
        assert (await read_all(reader)).decode() == f"{expected}\n"
        assert await program.wait() == 0


async def test_arguments_arrive_as_they_are(box: ServedBox) -> None:
    arguments = ["", "a b", "*", "$HOME", "ä", "\n", "x" * 60_000]
    shown = await python(box, "import sys; print([len(a) for a in sys.argv[1:]], sys.argv[1:6])", *arguments)
    assert shown.output == f"{[len(a) for a in arguments]} {arguments[:5]}\n"


async def test_arguments_that_are_too_large(box: ServedBox) -> None:
    with pytest.raises(SandboxError, match="too large"):
        await box.start(ProgramSpec(["echo", "x" * 200_000]))


@pytest.mark.parametrize(
    "spec",
    [
        ProgramSpec([]),
        ProgramSpec([""]),
        ProgramSpec(["echo", "a\0b"]),
        ProgramSpec(["echo"], env={"A=B": "c"}),
        ProgramSpec(["echo"], env={"": "c"}),
        ProgramSpec(["echo"], env={"A": "\0"}),
        ProgramSpec(["echo"], cwd="/\0"),
        ProgramSpec(["echo"], terminal=(-1, 80)),
        ProgramSpec(["echo"], terminal=(24, 1 << 16)),
    ],
)
async def test_what_no_program_can_be_given(box: ServedBox, spec: ProgramSpec) -> None:
    with pytest.raises(SandboxError):
        await box.start(spec)


async def test_working_directory(box: ServedBox) -> None:
    assert (await run(box, "pwd")).output == "/workspace\n"
    assert (await run(box, "pwd", cwd="/usr/bin")).output == "/usr/bin\n"
    with pytest.raises(SandboxError, match="/absent: No such file or directory"):
        await run(box, "pwd", cwd="/absent")


@pytest.mark.parametrize("name", ["no-such-program", "/usr/bin/no-such-program", "/etc/passwd/x"])
async def test_a_program_that_does_not_exist(box: ServedBox, name: str) -> None:
    with pytest.raises(ProgramNotFoundError, match=f"{name}: no such program in the box"):
        await box.start(ProgramSpec([name]))


async def test_a_program_that_may_not_run(box: ServedBox) -> None:
    with pytest.raises(SandboxError, match="/etc/passwd: permission denied") as caught:
        await box.start(ProgramSpec(["/etc/passwd"]))
    assert not isinstance(caught.value, ProgramNotFoundError)


async def test_a_script_whose_interpreter_is_missing(box: ServedBox) -> None:
    await shell(box, "printf '#!/absent/interpreter\\n' > /tmp/script; chmod +x /tmp/script")
    with pytest.raises(SandboxError, match="/tmp/script: its interpreter is not in the box"):
        await box.start(ProgramSpec(["/tmp/script"]))


async def test_path_decides_what_is_found(box: ServedBox) -> None:
    await shell(
        box, "mkdir -p /tmp/bin; printf '#!/bin/sh\\necho mine\\n' > /tmp/bin/ls; chmod +x /tmp/bin/ls"
    )
    assert (await run(box, "ls", env={"PATH": "/absent:/tmp/bin:/usr/bin"})).output == "mine\n"


async def test_a_refused_start_leaves_no_process(box: ServedBox) -> None:
    with pytest.raises(ProgramNotFoundError):
        await box.start(ProgramSpec(["no-such-program"], terminal=(24, 80)))
    states = (await shell(box, "cat /proc/[0-9]*/stat | cut -d' ' -f3")).output.split()
    assert "Z" not in states


async def test_orphans_are_reaped(box: ServedBox) -> None:
    assert (await shell(box, "(sh -c 'true & true' &) ; sleep 0.05")).status == 0
    async with asyncio.timeout(PATIENCE):
        while "Z" in (await shell(box, "cat /proc/[0-9]*/stat | cut -d' ' -f3")).output.split():
            pass


async def test_signal_handling_is_the_default(box: ServedBox) -> None:
    status = (await shell(box, "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status")).output
    masks = {line.split(":\t")[0]: int(line.split(":\t")[1], 16) for line in status.splitlines()}
    # Signals 32 and 33 are the C library's own: it lets nobody set them, and some makes leave them ignored.
    of_the_c_library = 0b11 << 31
    assert (masks["SigBlk"], masks["SigIgn"] & ~of_the_c_library) == (0, 0)


async def test_umask(box: ServedBox) -> None:
    assert (await shell(box, "umask")).output == "0022\n"


async def test_a_terminal_is_the_controlling_one(box: ServedBox) -> None:
    script = "tty; stty size; echo $TERM; echo typed > /dev/tty; test -t 0 -a -t 1 -a -t 2 && echo yes"
    program = await box.start(ProgramSpec(["sh", "-c", script], terminal=(31, 97)))
    assert program.terminal is not None
    try:
        shown = await read_until(program.terminal, "yes\r\n")
        assert shown == "/dev/pts/0\r\n31 97\r\nxterm-256color\r\ntyped\r\nyes\r\n"
        assert await program.wait() == 0
        with pytest.raises(OSError, match="Input/output error"):
            os.read(program.terminal, 1)
    finally:
        os.close(program.terminal)


async def test_control_c_is_an_interrupt(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["sh", "-c", "echo up; exec sleep 60"], terminal=(24, 80)))
    assert program.terminal is not None
    try:
        await read_until(program.terminal, "up")
        os.write(program.terminal, b"\x03")
        async with asyncio.timeout(PATIENCE):
            assert await program.wait() == -signal.SIGINT
    finally:
        os.close(program.terminal)


async def test_a_hung_up_terminal_ends_its_program(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["sleep", "60"], terminal=(24, 80)))
    assert program.terminal is not None
    os.close(program.terminal)
    async with asyncio.timeout(PATIENCE):
        assert await program.wait() == -signal.SIGHUP


async def test_given_streams_take_the_terminals_place(box: ServedBox) -> None:
    reader, writer = os.pipe()
    script = "test -t 0 && test ! -t 1 && test -t 2 && echo split"
    program = await box.start(ProgramSpec(["sh", "-c", script], terminal=(24, 80), stdout=writer))
    os.close(writer)
    assert program.terminal is not None
    try:
        async with asyncio.timeout(PATIENCE):
            assert await read_all(reader) == b"split\n"
            assert await program.wait() == 0
    finally:
        os.close(program.terminal)


async def test_terminal_names_can_be_opened(box: ServedBox) -> None:
    # As ssh, tmux and gpg do.
    program = await box.start(ProgramSpec(["sh", "-c", "exec 3<>$(tty) && echo opened"], terminal=(24, 80)))
    assert program.terminal is not None
    try:
        assert "opened" in await read_until(program.terminal, "\r\n")
    finally:
        os.close(program.terminal)


async def test_without_a_terminal_there_is_none(box: ServedBox) -> None:
    program = await box.start(ProgramSpec(["true"]))
    assert program.terminal is None
    assert (await shell(box, "echo x > /dev/tty")).status != 0


async def test_many_programs_at_once(box: ServedBox) -> None:
    outcomes = await asyncio.gather(*(shell(box, f"echo {n}; exit {n}") for n in range(30)))
    assert [(o.status, o.output) for o in outcomes] == [(n, f"{n}\n") for n in range(30)]


async def test_files_and_sockets_are_no_standard_streams(box: ServedBox) -> None:
    # Who owns a file can open it again for writing; a socket can be connected to somewhere else.
    near, far = socket.socketpair()
    with tempfile.TemporaryFile() as file, near, far, socket.socket() as inet:
        for fd in (file.fileno(), near.fileno(), inet.fileno()):
            with pytest.raises(SandboxError, match="pipes and character devices"):
                await box.start(ProgramSpec(["true"], stdout=fd))


async def test_a_start_that_nobody_waits_for_any_more_is_undone(box: ServedBox) -> None:
    reader, writer = os.pipe()
    start = asyncio.ensure_future(box.start(ProgramSpec(["sleep", "60"], stdout=writer)))
    await asyncio.sleep(0)  # sent, not answered yet
    start.cancel()
    os.close(writer)
    async with asyncio.timeout(PATIENCE):
        assert await read_all(reader) == b""
