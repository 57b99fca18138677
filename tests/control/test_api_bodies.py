"""Where bodies are worked on, and how many at a time."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from box_policy.control import api
from box_policy.control.http import bodies
from box_policy.control.http.json_text import parse_json
from box_policy.control.threads import in_thread
from tests.control.conftest import BOX, POLICY, Control, MakeControl
from tests.control.test_api import JSON, error, in_force

LARGE = json.dumps("deny-all").ljust(100_000).encode()


class Held:
    """A step of the work that goes on when the test says so."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.begun = threading.Event()
        self.released = threading.Event()
        self.count = 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        self.begun.set()
        assert self.released.wait(10)
        return self.step(*args)

    async def begins(self) -> None:
        async with asyncio.timeout(5):
            while not self.begun.is_set():
                await asyncio.sleep(0)


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(parse_json)
    monkeypatch.setattr(bodies, "parse_json", held)
    return held


async def put(control: Control, body: bytes) -> Any:
    return await control.client.put(POLICY, content=body, headers=JSON, timeout=10)


@pytest.mark.parametrize(("size", "on_the_loop"), [(4096, True), (4097, False), (100_000, False)])
async def test_only_small_bodies_are_worked_on_by_the_loop(
    control: Control, monkeypatch: pytest.MonkeyPatch, size: int, on_the_loop: bool
) -> None:
    threads = []
    for module, name in ((bodies, "parse_json"), (api, "_render")):
        step = getattr(module, name)

        def watched(*args: Any, step: Callable[..., Any] = step) -> Any:
            threads.append(threading.current_thread())
            assert in_force(control.world)[1] == 1, "the answer is ready when the policy comes into force"
            return step(*args)

        monkeypatch.setattr(module, name, watched)
    assert (await put(control, b'"allow-all"'.ljust(size))).status_code == 200
    assert [thread is threading.main_thread() for thread in threads] == [on_the_loop] * 2


async def test_a_thread_never_holds_up_the_end_of_the_process() -> None:
    assert await in_thread(lambda: threading.current_thread().daemon)


async def test_what_a_thread_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


async def test_one_large_body_at_a_time(make_control: MakeControl, parsing: Held) -> None:
    control = make_control(body_timeout=0.3)
    first = asyncio.create_task(put(control, LARGE))
    await parsing.begins()
    refused = await put(control, LARGE)
    assert (error(refused)["code"], refused.headers["retry-after"]) == ("busy", "10")
    assert parsing.count == 1
    parsing.released.set()
    assert (await first).status_code == 200
    assert (await put(control, LARGE)).status_code == 200


async def test_small_ones_do_not_wait_for_it(control: Control, parsing: Held) -> None:
    first = asyncio.create_task(put(control, LARGE))
    await parsing.begins()
    assert (await control.client.get(POLICY)).status_code == 200
    middle = asyncio.create_task(put(control, LARGE[:5000]))
    async with asyncio.timeout(5):
        while parsing.count < 2:
            await asyncio.sleep(0)
    parsing.released.set()
    assert [(await task).status_code for task in (first, middle)] == [200, 200]


async def test_the_work_for_a_client_that_has_left_ends(control: Control, parsing: Held) -> None:
    _, writer = await control.open()
    head = f"PUT {POLICY} HTTP/1.1\r\nHost: box-policy\r\nContent-Type: application/json\r\n"
    body = b'"allow-all"'.ljust(100_000)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await parsing.begins()
    (connection,) = control.endpoint._state.connections
    connection.transport.abort()
    parsing.released.set()
    async with asyncio.timeout(5):
        while control.endpoint._state.tasks:
            await asyncio.sleep(0)
    assert in_force(control.world) == ({"mode": "deny-all"}, 1)
    writer.close()


async def test_a_large_policy_is_shown_by_a_thread(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"h{number}.test" for number in range(1001)]
    await control.client.put(POLICY, json={"allow": names}, timeout=10)
    rendering = Held(api._render)
    monkeypatch.setattr(api, "_render", rendering)
    shown = asyncio.create_task(control.client.get(POLICY, timeout=10))
    await rendering.begins()
    assert (await control.client.get("/healthz")).status_code == 200
    rendering.released.set()
    assert (await shown).json() == {"mode": "custom", "allowed_domains": names}


@pytest.mark.parametrize("padding", [0, 100_000])
@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b"[NaN]", b"[1e999]", b"[1,]", b'{"a" 1}', b"[[1]"])
async def test_large_json_means_what_small_means(control: Control, body: bytes, padding: int) -> None:
    assert error(await put(control, body + b" " * padding))["code"] == "body_invalid"
    question = json.dumps({"box": BOX, "targets": ["\u00fc.test:1", "1.5"]}).encode() + b" " * padding
    response = await control.client.post("/v1/explain", content=question, headers=JSON)
    assert error(response)["issues"][0]["location"] == ["targets", 1]
