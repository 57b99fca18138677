"""Programs whose output is seen while they run."""

import asyncio
import base64
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.types import Message

from box_policy.sandbox.launcher import BoxPausedError, BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.departure import ClientGoneError, while_connected
from box_policy.service.programs.execution import Piece
from box_policy.service.programs.slots import Slots, TooManyProgramsError
from box_policy.service.programs.stream import Ended, Event, stream, streaming_response
from tests.service.programs.conftest import CWD, ENVIRONMENT, PATIENCE, eventually_gone, nothing_left

pytestmark = pytest.mark.asyncio(loop_scope="module")

NDJSON = "application/x-ndjson"


def sh(box: NamespaceBox, script: str, **options: Any) -> Any:
    options.setdefault("slots", Slots())
    return stream(box, ["sh", "-c", script], cwd=CWD, env=ENVIRONMENT, **options)


async def events_of(box: NamespaceBox, script: str, **options: Any) -> list[Event]:
    async with asyncio.timeout(PATIENCE), sh(box, script, **options) as events:
        return [event async for event in events]


async def test_pieces_come_as_they_are_written(box: NamespaceBox) -> None:
    script = "echo one; read -r line < ready; echo two >&2"
    with nothing_left():
        async with asyncio.timeout(PATIENCE), sh(box, f"rm -f ready; mkfifo ready; {script}") as events:
            assert await anext(events) == Piece("stdout", b"one\n")
            # Only now may it go on: the first piece did not wait for the second.
            await events_of(box, "echo > ready")
            assert await anext(events) == Piece("stderr", b"two\n")
            assert await anext(events) == Ended(0)
            with pytest.raises(StopAsyncIteration):
                await anext(events)


async def test_the_end_comes_last_and_always(box: NamespaceBox) -> None:
    *pieces, end = await events_of(box, "head -c 300000 /dev/zero; echo >&2; exit 6")
    assert end == Ended(6)
    assert sum(len(piece.data) for piece in pieces if isinstance(piece, Piece)) == 300_001


async def test_both_streams_have_their_turn(box: NamespaceBox) -> None:
    seen: set[str] = set()
    async with asyncio.timeout(PATIENCE), sh(box, "yes >&2 & yes") as events:
        while seen != {"stdout", "stderr"}:
            # Long enough for both to be full again.
            await asyncio.sleep(0.1)
            event = await anext(events)
            assert isinstance(event, Piece)
            seen.add(event.stream)


async def test_others_that_go_on_for_ever_do_not_keep_a_slow_reader(box: NamespaceBox) -> None:
    async with asyncio.timeout(PATIENCE), sh(box, "yes & echo $! >pid; sleep 0.1") as events:
        size = 0
        async for event in events:
            if isinstance(event, Piece):
                size += len(event.data)
                await asyncio.sleep(0.02)
            assert size < 1 << 20
    assert event == Ended(0)
    await events_of(box, "kill $(cat pid)")


async def test_a_slow_reader_holds_the_program_back(box: NamespaceBox) -> None:
    script = "i=0; while [ $i -lt 200 ]; do head -c 10000 /dev/zero; i=$((i+1)); echo $i > count; done"
    async with asyncio.timeout(PATIENCE), sh(box, script) as events:
        first = await anext(events)
        assert isinstance(first, Piece)
        await asyncio.sleep(0.5)
        counted = await events_of(box, "cat count")
        assert isinstance(counted[0], Piece) and int(counted[0].data) < 30
        size = len(first.data)
        async for event in events:
            size += len(event.data) if isinstance(event, Piece) else 0
        assert size >= 2_000_000
        assert event == Ended(0)


async def test_time_is_over_also_for_a_slow_reader(box: NamespaceBox) -> None:
    async with asyncio.timeout(PATIENCE), sh(box, "yes", timeout=0.3) as events:
        await anext(events)
        await asyncio.sleep(0.6)
        *_, end = [event async for event in events]
    assert end == Ended(124, timed_out=True)


async def test_leaving_kills(box: NamespaceBox) -> None:
    with nothing_left():
        async with sh(box, "echo up; sleep 51 & sleep 52") as events:
            assert await anext(events) == Piece("stdout", b"up\n")
        await eventually_gone(box, "sleep 5")


async def test_a_program_that_is_not_there_ends_as_in_a_shell(box: NamespaceBox) -> None:
    async with stream(box, ["nothing-such"], cwd=CWD, env=ENVIRONMENT, slots=Slots()) as events:
        message, end = [event async for event in events]
    assert isinstance(message, Piece) and message.stream == "stderr"
    assert message.data.startswith(b"nothing-such: no such program")
    assert end == Ended(127)


async def test_what_can_not_start_is_told_before_anything(box: NamespaceBox) -> None:
    slots = Slots(a_box=1)
    await box.pause()
    with pytest.raises(BoxPausedError):
        async with stream(box, ["true"], cwd=CWD, env={}, slots=slots):
            pass
    await box.resume()
    with slots.place(box.id), pytest.raises(TooManyProgramsError):
        async with stream(box, ["true"], cwd=CWD, env={}, slots=slots):
            pass
    assert slots.running(box.id) == 0


async def test_the_end_of_the_box_is_an_end(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("short"))
    async with asyncio.timeout(PATIENCE), sh(box, "echo up; sleep 60") as events:
        assert await anext(events) == Piece("stdout", b"up\n")
        await box.close()
        assert [event async for event in events] == [Ended(137)]


class Client:
    """The other side of an ASGI app: takes what is sent, and goes away when told."""

    def __init__(self, *, after: int | None = None, slow: float = 0) -> None:
        self.gone = asyncio.Event()
        self.body = b""
        self.started: Message | None = None
        self.ended = False
        self._after = after
        self._slow = slow

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = message
            return
        self.body += message["body"]
        self.ended = not message.get("more_body", False)
        if self._after is not None and len(self.body) >= self._after:
            self.gone.set()
        await asyncio.sleep(self._slow)


async def answered(box: NamespaceBox, script: str, client: Client, **more: Any) -> None:
    options: dict[str, Any] = {"slots": Slots(), "accept": NDJSON} | more
    response = await streaming_response(box, ["sh", "-c", script], cwd=CWD, env=ENVIRONMENT, **options)
    async with asyncio.timeout(PATIENCE):
        await response({"type": "http", "method": "POST"}, client.receive, client.send)


async def test_an_answer_in_json_lines(box: NamespaceBox) -> None:
    client = Client()
    with nothing_left():
        await answered(box, "printf 'a\\377b'; exit 2", client)
    assert client.started is not None and client.started["status"] == 200
    assert (b"content-type", NDJSON.encode()) in client.started["headers"]
    assert [json.loads(line) for line in client.body.splitlines()] == [
        {"type": "stdout", "data": base64.b64encode(b"a\xffb").decode()},
        {"type": "exit", "exit_code": 2, "timed_out": False},
    ]
    assert client.ended


async def test_an_answer_in_the_hosted_form(box: NamespaceBox) -> None:
    client = Client()
    await answered(box, "printf 'event: exit\\n'; exit 2", client, accept="*/*")
    assert client.body == b'event: exit \nevent: exit\ndata: {"exit_code":2,"cpu_ns":0}\n\n'


@pytest.mark.parametrize("script", ["yes", "echo up; exec sleep 53"])
async def test_the_client_that_goes_kills_the_program(box: NamespaceBox, script: str) -> None:
    client = Client(after=1)
    slots = Slots()
    held = AsyncExitStack()
    let_go = asyncio.Event()
    held.callback(let_go.set)
    with nothing_left():
        await answered(box, script, client, slots=slots, held=held)
    assert let_go.is_set()
    assert slots.running(box.id) == 0
    assert not client.ended
    await eventually_gone(box, script.split()[-1])


async def test_a_client_that_fails_to_take_more_kills_it(box: NamespaceBox) -> None:
    async def refuse(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("broken")

    client = Client()
    slots = Slots()
    response = await streaming_response(box, ["yes"], cwd=CWD, env=ENVIRONMENT, slots=slots, accept=None)
    with pytest.raises(OSError, match="broken"):
        await response({"type": "http", "method": "POST"}, client.receive, refuse)
    assert slots.running(box.id) == 0
    await eventually_gone(box, "yes")


async def test_what_is_held_is_let_go_of_if_nothing_starts(box: NamespaceBox) -> None:
    held = AsyncExitStack()
    let_go = asyncio.Event()
    held.callback(let_go.set)
    await box.pause()
    with pytest.raises(BoxPausedError):
        await streaming_response(box, ["true"], cwd=CWD, env={}, slots=Slots(), accept=None, held=held)
    await box.resume()
    assert let_go.is_set()


async def test_work_for_a_client_that_stays() -> None:
    async def work() -> int:
        return 5

    with nothing_left():
        assert await while_connected(Client().receive, work()) == 5


async def test_work_for_a_client_that_goes() -> None:
    client = Client()
    ended = asyncio.Event()

    async def work() -> None:
        client.gone.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with nothing_left(), pytest.raises(ClientGoneError):
        await while_connected(client.receive, work())
    assert ended.is_set()


async def test_work_that_fails_does_so_for_its_caller() -> None:
    async def work() -> None:
        raise SandboxError("no")

    with nothing_left(), pytest.raises(SandboxError, match="no"):
        await while_connected(Client().receive, work())


async def test_what_is_left_of_a_body_is_no_departure() -> None:
    messages: list[Message] = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await asyncio.sleep(0)
        return messages.pop(0)

    with pytest.raises(ClientGoneError):
        await while_connected(receive, asyncio.sleep(60))
    assert messages == []
