"""Programs: what is sent for them, and what is made of the answers."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from box_policy import BoxError, BoxTimeoutError, ExecExitChunk, ExecOutputChunk
from tests.sdk.conftest import Client
from tests.sdk.stub import Answer, Asked, Broken, Stub
from tests.sdk.test_exec_streams import line, output

LINES = {"Content-Type": "application/x-ndjson"}


async def test_what_is_sent(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    await client(box.exec.command, "ls -l")
    assert stub.asked[-1].body == {"command": ["sh", "-c", "ls -l"]}
    await client(box.exec.command, "ls", timeout=1.5, cwd="src", env={"A": "1"})
    more = {"folder": "src", "timeout": 2, "env": {"A": "1"}}
    assert stub.asked[-1].body == {"command": ["sh", "-c", "ls"]} | more
    await client(box.exec.code, code="1", lang="python", timeout=5_000, cwd="/tmp")
    assert stub.asked[-1].path == "/v2/box/box-1/code"
    assert stub.asked[-1].body == {"code": "1", "language": "python", "folder": "/tmp", "timeout": 5000}


@pytest.mark.parametrize(
    ("answer", "status", "result"),
    [
        ({"exit_code": 0, "output": "out", "error": "warning"}, "completed", "out"),
        ({"exit_code": 2, "output": "out", "error": "why"}, "failed", "why"),
        ({"exit_code": 2, "output": "out", "error": ""}, "failed", "out"),
        ({"exit_code": 124, "output": None, "timed_out": True, "truncated": True}, "failed", ""),
    ],
)
async def test_how_it_ended(
    client: Client, stub: Stub, answer: dict[str, Any], status: str, result: str
) -> None:
    stub.on("POST", ".*/exec", lambda _: Answer(answer))
    box = await client(client.Box.create)
    run = await client(box.exec.command, "x")
    assert (run.status, run.result, run.exit_code) == (status, result, answer["exit_code"])
    assert (run.stdout, run.stderr) == (answer["output"] or "", answer.get("error", ""))
    assert (run.timed_out, run.truncated) == (answer["exit_code"] == 124,) * 2
    assert (run.type, run.cost.total_usd) == ("command", 0)
    assert run.cost.compute_ms == run.cost.compute_ms > 0
    await client(run.cancel)
    assert run.status == status, "what has ended can't be cancelled"


async def test_a_run_that_was_killed_says_so(client: Client, stub: Stub) -> None:
    stub.on("POST", ".*/exec", lambda _: Answer({"exit_code": 124, "timed_out": True}))
    pieces = [line("exit", exit_code=124, timed_out=True)]
    stub.on("POST", ".*/exec-stream", lambda _: Answer(pieces=iter(pieces), headers=LINES))
    box = await client(client.Box.create)
    assert "failed, exit code 124 (killed: its timeout of 1500 ms was over)>" in repr(
        await client(box.exec.command, "x", timeout=1_500)
    )
    assert "(killed: its timeout was over)" in repr(await client(box.exec.command, "x"))
    run = await client(box.exec.stream, "x", timeout=9)
    assert "killed" not in repr(run)
    await client.all(run)
    assert "(killed: its timeout of 9 ms was over)" in repr(run)


@pytest.mark.parametrize("answer", [{}, {"exit_code": "0"}, {"exit_code": 0, "output": 5}])
async def test_an_answer_that_is_no_run(client: Client, stub: Stub, answer: object) -> None:
    stub.on("POST", ".*/exec", lambda _: Answer(answer))
    box = await client(client.Box.create)
    with pytest.raises(BoxError):
        await client(box.exec.command, "x")


async def test_a_program_s_own_time_is_waited_for(client: Client, stub: Stub) -> None:
    def slow(_: Asked) -> Answer:
        time.sleep(0.3)
        return Answer({"exit_code": 0, "output": "", "error": ""})

    stub.on("POST", ".*/exec", slow)
    box = await client(client.Box.create, timeout=100)
    assert (await client(box.exec.command, "x", timeout=500)).exit_code == 0
    with pytest.raises(BoxTimeoutError):
        await client(box.exec.command, "x")


async def test_a_stream_of_lines(client: Client, stub: Stub) -> None:
    pieces = [
        output("stdout", b"a"),
        output("stderr", b"b") + output("stdout", b"c"),
        line("exit", exit_code=1),
    ]
    stub.on("POST", ".*/exec-stream", lambda _: Answer(pieces=iter(pieces), headers=LINES))
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x", timeout=9)
    assert run.status == "running"
    assert stub.paths("POST") == ["/v2/box"], "it starts with the first iteration"
    assert await client.all(run) == [
        ExecOutputChunk("a", stream="stdout"),
        ExecOutputChunk("b", stream="stderr"),
        ExecOutputChunk("c", stream="stdout"),
        ExecExitChunk(1),
    ]
    assert stub.asked[-1].headers["accept"] == "application/x-ndjson"
    assert stub.asked[-1].body == {"command": ["sh", "-c", "x"], "timeout": 9}
    assert (run.status, run.exit_code, run.result) == ("failed", 1, "abc")
    assert (run.stdout, run.stderr) == ("ac", "b")


async def test_a_stream_of_a_service_that_knows_the_raw_form_alone(client: Client, stub: Stub) -> None:
    pieces = [b"one", b' event: exit\ndata: {"exit_', b'code":0}\n\n']
    stub.on(
        "POST",
        ".*/code-stream",
        lambda _: Answer(pieces=iter(pieces), headers={"Content-Type": "text/plain"}),
    )
    box = await client(client.Box.create)
    run = await client(box.exec.stream_code, code="1", lang="js")
    *output, end = await client.all(run)
    assert ("".join(chunk.data for chunk in output), end) == ("one ", ExecExitChunk(0))
    assert {chunk.stream for chunk in output} == {None}
    assert (run.status, run.result, run.type) == ("completed", "one ", "code")


async def test_a_stream_that_breaks(client: Client, stub: Stub) -> None:
    def pieces() -> Iterator[bytes]:
        yield output("stdout", b"half")
        raise Broken

    stub.on("POST", ".*/exec-stream", lambda _: Answer(pieces=pieces(), headers=LINES))
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    with pytest.raises(BoxError):
        await client.all(run)
    assert (run.status, run.result, run.exit_code) == ("failed", "half", None)


async def test_a_stream_that_is_refused(client: Client, stub: Stub) -> None:
    stub.on("POST", ".*/exec-stream", lambda _: Answer({"error": "paused", "code": "box_paused"}, 409))
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    with pytest.raises(BoxError, match="paused"):
        await client.all(run)
    assert run.status == "failed"


class Endless:
    """A stream whose program goes on until nobody listens."""

    def __init__(self, stub: Stub) -> None:
        self.gone = threading.Event()
        stub.on("POST", ".*/exec-stream", lambda _: Answer(pieces=self._pieces(), headers=LINES))

    def _pieces(self) -> Iterator[bytes]:
        try:
            while True:
                yield output("stdout", b"x")
                time.sleep(0.005)
        finally:
            self.gone.set()


async def test_whoever_stops_reading_ends_the_program(client: Client, stub: Stub) -> None:
    endless = Endless(stub)
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    await client.enter(run)
    await client.first(run)
    await client.leave(run)
    assert (run.status, run.result) == ("detached", "x")
    assert await asyncio.to_thread(endless.gone.wait, 5)


async def test_a_stream_that_nobody_has_read_is_detached(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    await client.close(run)
    assert run.status == "detached"
    assert stub.paths("POST") == ["/v2/box"]


async def test_a_run_that_is_cancelled_while_it_is_read(client: Client, stub: Stub) -> None:
    endless = Endless(stub)
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    with pytest.raises(BoxError, match="Run cancelled"):
        if client.is_async:
            async for _ in run:
                await run.cancel()
        else:
            for _ in run:
                run.cancel()
    assert run.status == "cancelled"
    assert await asyncio.to_thread(endless.gone.wait, 5)


async def test_a_silent_run_is_cancelled_from_elsewhere(client: Client, stub: Stub) -> None:
    reading, released = threading.Event(), threading.Event()

    def silent() -> Iterator[bytes]:
        yield output("stdout", b"x")
        released.wait(10)
        yield output("stdout", b"y")

    stub.on("POST", ".*/exec-stream", lambda _: Answer(pieces=silent(), headers=LINES))
    box = await client(client.Box.create)
    run = await client(box.exec.stream, "x")
    failed: list[Exception] = []

    async def read() -> None:
        try:
            async for _ in run:
                reading.set()
        except BoxError as error:
            failed.append(error)

    def read_in_thread() -> None:
        with contextlib.suppress(BoxError):
            for _ in run:
                reading.set()
        failed.append(BoxError("ended"))

    reader = asyncio.ensure_future(read() if client.is_async else asyncio.to_thread(read_in_thread))
    assert await asyncio.to_thread(reading.wait, 5)
    await client(run.cancel)
    await asyncio.wait_for(reader, 5)
    released.set()
    assert failed
    assert run.status == "cancelled"
