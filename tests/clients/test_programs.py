"""Programs in boxes, through the hosted product's Python clients."""

import asyncio
import threading
from typing import Any

import pytest
from upstash_box import BoxError, ExecExitChunk, ExecOutputChunk

from tests.clients.conftest import TIMEOUT, Client, Make

# The client's own way to use its websockets library.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning")

# The client's own way to use its websockets library.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning")

GONE = "timeout 10 sh -c 'until ! kill -0 $(cat pid) 2>/dev/null; do sleep 0.02; done; echo gone'"
"""Waits in a box for the end of the process whose id is in the file ``pid``."""


class TestCommand:
    async def test_its_output_and_exit_status(self, client: Client, make: Make) -> None:
        box = await make()
        run = await client(box.exec.command("echo out; echo err >&2"))
        assert (run.status, run.exit_code, run.result) == ("completed", 0, "out\n")
        assert (run.stdout, run.stderr) == ("out\n", "err\n")

    async def test_one_that_fails(self, client: Client, make: Make) -> None:
        box = await make()
        run = await client(box.exec.command("echo out; echo err >&2; exit 7"))
        assert (run.status, run.exit_code, run.result) == ("failed", 7, "err\n")

    @pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("kill -9 $$", 137)])
    async def test_what_a_shell_says(self, client: Client, make: Make, command: str, status: int) -> None:
        box = await make()
        assert (await client(box.exec.command(command))).exit_code == status

    async def test_it_starts_at_home_with_the_boxes_variables(self, client: Client, make: Make) -> None:
        box = await make(env={"COLOUR": "blue"})
        run = await client(box.exec.command('echo "$COLOUR $HOME"; pwd'))
        assert run.stdout == "blue /workspace/home\n/workspace/home\n"

    async def test_text_that_is_no_utf8(self, client: Client, make: Make) -> None:
        box = await make()
        run = await client(box.exec.command(r"printf 'caf\303\251 \377'"))
        assert run.result == "café \N{REPLACEMENT CHARACTER}"

    async def test_what_it_leaves_running_holds_up_nothing(self, client: Client, make: Make) -> None:
        box = await make()
        run = await client(box.exec.command("sleep 1000 & echo started"))
        assert run.result == "started\n"

    async def test_a_client_that_has_waited_enough_ends_it(self, client: Client, make: Make) -> None:
        box = await make()
        impatient = await client(client.Box.get(box.id, timeout=500))
        with pytest.raises(BoxError, match="timeout"):
            await client(impatient.exec.command("echo $$ > pid; exec sleep 1000"))
        await client.close(impatient)
        assert (await client(box.exec.command(GONE))).result == "gone\n"

    async def test_programs_see_each_others_files(self, client: Client, make: Make) -> None:
        box = await make()
        await client(box.exec.command("echo kept > file"))
        assert (await client(box.exec.command("cat file"))).result == "kept\n"


class TestCode:
    @pytest.mark.parametrize(
        ("lang", "code"),
        [
            ("python", "import sys; print(sum(range(10))); sys.exit(3)"),
            ("js", "console.log([...Array(10).keys()].reduce((a, b) => a + b)); process.exit(3)"),
        ],
    )
    async def test_a_language(self, client: Client, make: Make, lang: str, code: str) -> None:
        box = await make()
        run = await client(box.exec.code(code=code, lang=lang))
        assert (run.exit_code, run.stdout, run.stderr) == (3, "45\n", "")

    async def test_modules_of_the_working_directory(self, client: Client, make: Make) -> None:
        box = await make()
        await client(box.files.write(path="mine.py", content="answer = 42"))
        run = await client(box.exec.code(code="import mine; print(mine.answer)", lang="python"))
        assert (run.result, run.stderr) == ("42\n", "")

    async def test_its_time_in_milliseconds(self, client: Client, make: Make) -> None:
        box = await make()
        code = "import time; print('begun', flush=True); time.sleep(1000)"
        run = await client(box.exec.code(code=code, lang="python", timeout=500))
        assert (run.status, run.exit_code, run.stdout) == ("failed", 124, "begun\n")

    async def test_more_of_it_than_a_command_line_holds(self, client: Client, make: Make) -> None:
        box = await make()
        code = f"text = {'x' * 300_000!r}\nprint(len(text))"
        assert (await client(box.exec.code(code=code, lang="python"))).result == "300000\n"


class TestStream:
    async def test_chunks_and_then_the_exit(self, client: Client, make: Make) -> None:
        box = await make()
        running = await client(box.exec.stream("echo one; echo two >&2; exit 5"))
        *output, end = await client.each(running)
        assert all(isinstance(chunk, ExecOutputChunk) for chunk in output)
        assert isinstance(end, ExecExitChunk)
        assert end.exit_code == 5
        assert sorted("".join(chunk.data for chunk in output).split()) == ["one", "two"]
        assert (running.status, running.exit_code) == ("failed", 5)

    async def test_they_come_as_they_are_written(self, client: Client, make: Make) -> None:
        box = await make()
        running = await client(box.exec.stream("echo first; until [ -e go ]; do sleep 0.02; done; echo last"))
        if hasattr(running, "__aiter__"):
            chunks = running.__aiter__()
            first = await anext(chunks)
            await client(box.files.write(path="go", content=""))
            rest = [chunk async for chunk in chunks]
        else:
            iterator = iter(running)
            first = next(iterator)
            box.files.write(path="go", content="")
            rest = list(iterator)
        assert first.data == "first\n"
        assert [chunk.type for chunk in rest] == ["output", "exit"]
        assert running.result == "first\nlast\n"

    async def test_code(self, client: Client, make: Make) -> None:
        box = await make()
        running = await client(box.exec.stream_code(code="print('a' * 100_000)", lang="python"))
        *output, end = await client.each(running)
        assert "".join(chunk.data for chunk in output) == "a" * 100_000 + "\n"
        assert end.exit_code == 0
        assert (running.status, running.result) == ("completed", "a" * 100_000 + "\n")

    async def test_a_program_cannot_forge_its_end(self, client: Client, make: Make) -> None:
        box = await make()
        forged = r'printf "event: exit\ndata: {\"exit_code\":0}\n\n"; printf "event: error\n"; exit 9'
        *output, end = await client.each(await client(box.exec.stream(forged)))
        assert end.exit_code == 9
        assert [chunk.type for chunk in output] == ["output"] * len(output)

    async def test_who_goes_away_ends_it(self, client: Client, make: Make) -> None:
        box = await make()
        # Its last act is a file, which only its end can make.
        script = "trap 'touch ended' EXIT; echo $$ > pid; echo begun; while :; do sleep 0.05; done"
        running = await client(box.exec.stream(script))
        if hasattr(running, "__aiter__"):
            await anext(running.__aiter__())
            await running.aclose()
        else:
            next(iter(running))
            running.close()
        assert (await client(box.exec.command(GONE))).result == "gone\n"


class Heard:
    """What a session's callbacks were told, and a way to wait for some of it."""

    def __init__(self) -> None:
        self.output = b""
        self.errors = b""
        self._changed = threading.Condition()

    def on_stdout(self, data: bytes) -> None:
        with self._changed:
            self.output += data
            self._changed.notify_all()

    def on_stderr(self, data: bytes) -> None:
        with self._changed:
            self.errors += data
            self._changed.notify_all()

    async def until(self, text: bytes) -> None:
        """Wait for a text on standard output. The loop goes on meanwhile."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: text in self.output, TIMEOUT)

        assert await asyncio.to_thread(wait), self.output


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def session(client: Client, box: Any, heard: Heard, **options: Any) -> Any:
    return await client(box.exec.session(on_stdout=heard.on_stdout, on_stderr=heard.on_stderr, **options))


class TestSession:
    async def test_its_streams_and_exit_code(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(client, box, heard, cmd="cat; echo err >&2; exit 4")
        assert handle.pid > 0
        assert handle.exec_id
        await client(handle.write("héllo\n"))
        await client(handle.write(b"\0\xff"))
        await client(handle.end_stdin())
        assert await client.ended(handle) == 4
        assert (heard.output, heard.errors) == ("héllo\n".encode() + b"\0\xff", b"err\n")

    async def test_arguments_are_taken_as_they_are(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(client, box, heard, argv=["printf", "%s|", "a b", "$HOME", "*"])
        assert await client.ended(handle) == 0
        assert heard.output == b"a b|$HOME|*|"

    async def test_a_program_that_is_not_there(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(client, box, heard, cmd="no-such-program")
        assert await client.ended(handle) == 127
        assert b"no-such-program" in heard.errors

    async def test_its_variables_and_directory(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make(env={"COLOUR": "blue"})
        await client(box.files.mkdir("below"))
        options: dict[str, Any] = {"cwd": "below", "env": ["SHAPE=round"]}
        handle = await session(client, box, heard, cmd='echo "$COLOUR $SHAPE"; pwd', **options)
        assert await client.ended(handle) == 0
        assert heard.output == b"blue round\n/workspace/home/below\n"

    async def test_a_terminal(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(
            client, box, heard, cmd="stty size; read line; stty size", tty=True, rows=30, cols=90
        )
        await heard.until(b"30 90")
        await client(handle.resize(31, 91))
        await client(handle.write("\n"))
        assert await client.ended(handle) == 0
        assert b"31 91" in heard.output
        assert heard.errors == b""

    async def test_a_terminals_ctrl_c(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(client, box, heard, cmd="echo ready; sleep 1000", tty=True)
        await heard.until(b"ready")
        await client(handle.write(b"\x03"))
        assert await client.ended(handle) == 130

    @pytest.mark.parametrize(
        ("signal", "status"), [(None, 143), ("KILL", 137), ("SIGINT", 130), ("usr1", 138)]
    )
    async def test_a_signal(
        self, client: Client, make: Make, heard: Heard, signal: str | None, status: int
    ) -> None:
        box = await make()
        handle = await session(client, box, heard, argv=["sh", "-c", "echo ready; exec sleep 1000"])
        await heard.until(b"ready")
        await client(handle.kill(signal))
        assert await client.ended(handle) == status

    async def test_a_handler_may_end_it_otherwise(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done"
        handle = await session(client, box, heard, cmd=script)
        await heard.until(b"ready")
        await client(handle.terminate())
        assert await client.ended(handle) == 3
        assert heard.output == b"ready\nbye\n"

    async def test_who_does_not_go_is_killed(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        script = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
        handle = await session(client, box, heard, cmd=script)
        await heard.until(b"ready")
        await client(handle.terminate(200))
        assert await client.ended(handle) == 137

    async def test_closing_it_ends_the_program(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        handle = await session(client, box, heard, cmd="echo $$ > pid; echo ready; sleep 1000")
        await heard.until(b"ready")
        await client(handle.close())
        assert (await client(box.exec.command(GONE))).result == "gone\n"

    async def test_one_that_cannot_be_started(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        with pytest.raises(BoxError, match="exec-session"):
            await session(client, box, heard, cmd="pwd", cwd="/no/such/place")


class TestWorkingDirectory:
    async def test_everything_follows_it(self, client: Client, make: Make, heard: Heard) -> None:
        box = await make()
        assert box.cwd == "/workspace/home"
        await client(box.exec.command("mkdir -p a/b"))
        await client(box.cd("a"))
        await client(box.cd("b"))
        assert box.cwd == "/workspace/home/a/b"
        assert (await client(box.exec.command("pwd"))).result == "/workspace/home/a/b\n"
        code = "import os; print(os.getcwd())"
        assert (await client(box.exec.code(code=code, lang="python"))).result == "/workspace/home/a/b\n"
        handle = await session(client, box, heard, cmd="pwd")
        assert await client.ended(handle) == 0
        assert heard.output == b"/workspace/home/a/b\n"
        await client(box.files.write(path="here", content="x"))
        assert [one.path for one in await client(box.files.list())] == ["/workspace/home/a/b/here"]
        await client(box.cd("/tmp"))
        assert (await client(box.exec.command("pwd"))).result == "/tmp\n"

    async def test_one_that_is_not_there(self, client: Client, make: Make) -> None:
        box = await make()
        with pytest.raises(BoxError, match="No such file or directory"):
            await client(box.cd("nowhere"))
        assert box.cwd == "/workspace/home"
