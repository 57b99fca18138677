"""How sessions end, and what is refused."""

import asyncio
import json
from typing import Any

import pytest
from starlette.websockets import WebSocket

from box_policy.sandbox.launcher import BoxSpec
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.session import serve_session
from box_policy.service.programs.slots import Slots
from tests.service.programs.conftest import CWD, ENVIRONMENT, PATIENCE, eventually_gone, nothing_left
from tests.service.programs.talking import Client, connected, started

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_client_that_goes_kills_the_program(box: NamespaceBox) -> None:
    async with started(box, "echo up; sleep 41 & sleep 42") as client:
        await client.until("up\n")
        client.leave()
    await eventually_gone(box, "sleep 4")


async def test_the_client_that_goes_before_it_says_anything(box: NamespaceBox) -> None:
    async with connected(box) as client:
        client.leave()


async def test_the_client_that_goes_while_its_program_starts(box: NamespaceBox) -> None:
    async with connected(box) as client:
        client.say("start", argv=["sleep", "43"])
        client.leave()
    await eventually_gone(box, "sleep 43")


async def test_the_client_that_goes_in_the_middle_of_output(box: NamespaceBox) -> None:
    async with started(box, "exec yes gone") as client:
        await client.until("gone\n")
        client.leave()
    await eventually_gone(box, "yes gone")


async def test_the_service_that_stops_kills_the_program(box: NamespaceBox) -> None:
    with nothing_left():
        client = Client()
        websocket = WebSocket({"type": "websocket"}, client.receive, client.send)
        serving = asyncio.create_task(
            serve_session(websocket, box, environment=ENVIRONMENT, home=CWD, slots=Slots())
        )
        client.say("start", argv=["sleep", "45"])
        await client.next("started")
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    await eventually_gone(box, "sleep 45")


async def test_the_end_of_the_box_is_an_exit(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("short"))
    async with started(box, "echo up; sleep 60") as client:
        await client.until("up\n")
        await box.close()
        assert await client.rest() == (b"", b"", 137)


async def refused(client: Client) -> str:
    message: str = (await client.next("error"))["message"]
    await client.next("closed")
    assert client.closed == 1008
    return message


async def test_nobody_waits_for_ever_for_a_start(box: NamespaceBox) -> None:
    async with connected(box, start_timeout=0.1) as client:
        assert await refused(client) == "no start within 0.1 seconds"


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ({"argv": ["no-such-program"]}, "no-such-program: no such program in the box"),
        ({"argv": ["/etc/passwd"]}, "/etc/passwd: permission denied"),
        ({"argv": ["pwd"], "cwd": "nowhere"}, "/workspace/nowhere: No such file"),
        ({"argv": ["x" * 200_000]}, "too large"),
        ({}, "there must be a cmd, or an argv"),
    ],
)
async def test_what_can_not_be_started_is_an_error(
    box: NamespaceBox, start: dict[str, Any], why: str
) -> None:
    async with connected(box) as client:
        client.say("start", **start)
        assert why in await refused(client)


async def test_no_more_sessions_than_there_are_places(box: NamespaceBox) -> None:
    slots = Slots(a_box=1)
    with slots.place(box.id):
        async with connected(box, slots) as client:
            client.say("start", cmd="true")
            assert "1 programs run in this box" in await refused(client)


async def test_a_paused_box(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("paused"))
    await box.pause()
    async with connected(box) as client:
        client.say("start", cmd="true")
        assert "paused" in await refused(client)
    await box.close()


@pytest.mark.parametrize("junk", ["", "{", "[]", b"\xff\xfe", '{"type":"stdin","data":"%"}', "[" * 50_000])
async def test_junk_ends_the_session_and_the_program(box: NamespaceBox, junk: str | bytes) -> None:
    async with started(box, argv=["sleep", "46"]) as client:
        client.say_text(junk)
        await refused(client)
    await eventually_gone(box, "sleep 46")


async def test_what_can_not_be_done_is_told_and_changes_nothing(box: NamespaceBox) -> None:
    async with started(box, argv=["cat"]) as client:
        client.say("resize", rows=10**9, cols=-1)
        assert "resize" in (await client.next("warning"))["message"]
        client.say("signal", signal="NONE")
        assert "signal" in (await client.next("warning"))["message"]
        client.say("start", cmd="again")
        assert "type" in (await client.next("warning"))["message"]
        client.say("resize", rows=10, cols=10)  # it has no terminal
        client.say("stdin_close")
        assert await client.rest() == (b"", b"", 0)


async def test_a_flood_leaves_others_their_turn(box: NamespaceBox) -> None:
    async with started(box, argv=["cat"]) as client:
        for _ in range(5000):
            client.say("flood")
        turns = 0
        while client.heard.qsize() < 5000:
            turns += 1
            await asyncio.sleep(0)
        assert turns > 100
        for _ in range(5000):
            await client.next("warning")
        client.say_text(json.dumps({"type": "stdin_close"}).encode())
        assert (await client.rest())[2] == 0


async def test_the_exit_is_the_last_frame_whatever_the_client_says(box: NamespaceBox) -> None:
    async with started(box, "sleep 0.2; exit 1") as client:
        for _ in range(300):
            client.say("unknown")
            client.say("signal", signal="CONT")
        frames = []
        while (frame := await asyncio.wait_for(client.heard.get(), PATIENCE))["type"] != "closed":
            frames.append(frame)
        assert frames[-1] == {"type": "exit", "code": 1}


async def test_nothing_is_said_after_the_exit_to_a_slow_client(box: NamespaceBox) -> None:
    async with started(box, "exit 3") as client:
        client.reads.clear()
        while not client.waiting:
            await asyncio.sleep(0.01)
        for _ in range(3):
            client.say("unknown")
        await asyncio.sleep(0.1)
        client.reads.set()
        assert await client.rest() == (b"", b"", 3)
