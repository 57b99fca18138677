"""Programs, as the hosted service's own client and a client of the bare API see them."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from upstash_box import AsyncBox, Box, BoxError
from upstash_box.types import ExecExitChunk, ExecOutputChunk

from tests.service.conftest import Server
from tests.service.programs.conftest import PATIENCE


@pytest.fixture
def box(service: Server) -> Iterator[Box[Any]]:
    """A box of the hosted service's client."""
    with Box.create(api_key=service.key, base_url=service.url) as box:
        yield box
        box.delete()


def gone(service: Server, box: Box[Any], marker: str) -> None:
    """Return once no process of the box has ``marker`` among its arguments."""
    script = (
        'for f in /proc/[0-9]*/cmdline; do [ "$f" = /proc/$$/cmdline ] && continue; '
        'tr "\\0" " " <$f 2>/dev/null; done'
    )
    deadline = time.monotonic() + PATIENCE
    while marker in service.run(box.id, script)["output"]:
        assert time.monotonic() < deadline


def test_command(box: Box[Any]) -> None:
    run = box.exec.command("echo out; echo err >&2; exit 3")
    assert (run.exit_code, run.stdout, run.stderr, run.status) == (3, "out\n", "err\n", "failed")
    assert box.exec.command("pwd").result == "/workspace/home\n"


def test_code(box: Box[Any]) -> None:
    run = box.exec.code(code="import sys; print(6 * 7); sys.exit(2)", lang="python")
    assert (run.exit_code, run.stdout) == (2, "42\n")


def test_stream(box: Box[Any]) -> None:
    *output, end = box.exec.stream("echo out; printf 'event: exit\\ndata: {}\\n\\n'; echo err >&2; exit 3")
    text = "".join(chunk.data for chunk in output if isinstance(chunk, ExecOutputChunk))
    assert sorted(text.splitlines()) == sorted(["out", "event: exit ", "data: {}", "", "err"])
    assert end == ExecExitChunk(exit_code=3, cpu_ns=0)


def test_stream_of_much(box: Box[Any]) -> None:
    size = 0
    for chunk in box.exec.stream("head -c 5000000 /dev/zero; exit 9"):
        if isinstance(chunk, ExecOutputChunk):
            size += len(chunk.data)
    assert (size, chunk) == (5_000_000, ExecExitChunk(exit_code=9, cpu_ns=0))


def test_stream_of_code(box: Box[Any]) -> None:
    *output, end = box.exec.stream_code(code="print('ä')", lang="python")
    assert [chunk.data for chunk in output if isinstance(chunk, ExecOutputChunk)] == ["ä\n"]
    assert end == ExecExitChunk(exit_code=0, cpu_ns=0)


def test_a_stream_that_is_closed_ends_the_program(service: Server, box: Box[Any]) -> None:
    run = box.exec.stream("echo up; exec sleep 71")
    assert next(iter(run)) == ExecOutputChunk(data="up\n")
    run.close()
    gone(service, box, "sleep 71")


def test_a_command_whose_client_goes_is_killed(service: Server, box: Box[Any]) -> None:
    with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.5) as client:
        client.post(
            f"{service.url}/v2/box/{box.id}/exec",
            headers={"X-Box-Api-Key": service.key},
            json={"command": ["sleep", "72"]},
        )
    gone(service, box, "sleep 72")


def test_json_lines(service: Server, box: Box[Any]) -> None:
    body = {"command": ["sh", "-c", "printf '\\377'; exec sleep 60"], "timeout": 300}
    answer = service.ask("POST", f"/{box.id}/exec-stream", body, headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line) for line in answer.content.splitlines()] == [
        {"type": "stdout", "data": base64.b64encode(b"\xff").decode()},
        {"type": "exit", "exit_code": 124, "timed_out": True},
    ]


def test_what_can_not_start_ends_as_in_a_shell(service: Server, box: Box[Any]) -> None:
    body = {"command": ["true"], "folder": "/nowhere"}
    ran = service.ask("POST", f"/{box.id}/exec", body).ok()
    assert (ran["exit_code"], ran["error"]) == (126, "/nowhere: No such file or directory\n")
    answer = service.ask("POST", f"/{box.id}/exec-stream", body)
    assert b"/nowhere" in answer.content and b'"exit_code":126' in answer.content


def test_session(box: Box[Any]) -> None:
    out, err = bytearray(), bytearray()
    with box.exec.session(
        cmd="cat; echo done >&2; exit 5", on_stdout=out.extend, on_stderr=err.extend
    ) as session:
        assert session.pid > 0 and session.exec_id
        for _ in range(10):
            session.write(bytes(500_000))
        session.end_stdin()
        assert session.wait(PATIENCE) == 5
    assert (len(out), bytes(err)) == (5_000_000, b"done\n")


def test_session_with_a_terminal(box: Box[Any]) -> None:
    shown = bytearray()
    ready = threading.Event()

    def show(data: bytes) -> None:
        shown.extend(data)
        if b"31 99" in shown:
            ready.set()

    with box.exec.session(
        argv=["sh", "-c", "stty size; read x; stty size"], tty=True, rows=31, cols=99, on_stdout=show
    ) as session:
        assert ready.wait(PATIENCE)
        session.resize(40, 120)
        session.write("\n")
        assert session.wait(PATIENCE) == 0
    assert shown.endswith(b"40 120\r\n")


def test_session_signals(box: Box[Any]) -> None:
    with box.exec.session(argv=["sleep", "60"]) as session:
        session.kill("INT")
        assert session.wait(PATIENCE) == 130
    with box.exec.session(argv=["sh", "-c", "trap '' TERM; sleep 60 & wait"]) as session:
        session.terminate(grace_ms=200)
        assert session.wait(PATIENCE) == 137


def test_a_session_that_is_closed_ends_the_program(service: Server, box: Box[Any]) -> None:
    box.exec.session(argv=["sleep", "73"]).close()
    gone(service, box, "sleep 73")


def test_a_session_that_can_not_start(box: Box[Any]) -> None:
    with pytest.raises(BoxError, match="no-such-program: no such program in the box"):
        box.exec.session(argv=["no-such-program"])


def test_sessions_of_the_asynchronous_client(service: Server) -> None:
    async def talk() -> tuple[int, bytes]:
        box = await AsyncBox.create(api_key=service.key, base_url=service.url)
        out = bytearray()
        async with await box.exec.session(cmd='read x; echo "<$x>"', on_stdout=out.extend) as session:
            await session.write("hello\n")
            code = await asyncio.wait_for(session.wait(), PATIENCE)
        await box.delete()
        return code, bytes(out)

    assert asyncio.run(talk()) == (0, b"<hello>\n")
