"""Large answers: what they hold, in pieces, and let go of."""

import base64
import json
from contextlib import AsyncExitStack
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive

from box_policy.control.http.answers import Answering
from box_policy.service.answers import Deferred, as_base64, as_text, json_in_pieces
from box_policy.service.api import make_service_app
from box_policy.service.boxes import Boxes
from box_policy.service.budget import Budget
from box_policy.service.context import Context

LONG = 48 * 1024


async def fetched(answer: Response, path: str = "/") -> httpx.Response:
    """What a client gets."""

    async def route(request: Request) -> Response:
        return answer

    transport = httpx.ASGITransport(Starlette(routes=[Route("/", route)]))
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.get(f"http://test{path}")


@given(data=st.binary(max_size=40), before=st.integers(LONG - 40, LONG), is_whole=st.booleans())
def test_text_is_the_same_however_it_is_cut(data: bytes, before: int, is_whole: bool) -> None:
    whole = b"x" * before + data
    expected = whole.decode(errors="replace")
    found = "".join(as_text(whole, "replace", is_whole=is_whole))
    assert found == expected if is_whole else expected.startswith(found)


@pytest.mark.parametrize(("data", "text"), [("Grü".encode()[:-1], "Gr"), (b"a\xff\xfeb", "a\ufffd\ufffdb")])
def test_half_a_character_at_a_cut_is_left_out(data: bytes, text: str) -> None:
    assert "".join(as_text(data, "replace", is_whole=False)) == text


def test_what_is_not_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        list(as_text(b"x" * LONG + b"\xff", "strict"))
    with pytest.raises(UnicodeDecodeError):
        list(as_text(b"x" * (LONG - 1) + "ü".encode()[:1], "strict"))


@pytest.mark.parametrize("size", [0, 1, LONG - 1, LONG, LONG + 1, 3 * LONG + 2])
def test_base64(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert base64.b64decode("".join(as_base64(data)), validate=True) == data


async def test_json() -> None:
    long = '"\\\n\0ü😀' * LONG
    answer = await fetched(json_in_pieces({"a": [1, None]}, b=as_text(long.encode(), "strict"), c=iter(())))
    assert answer.json() == {"a": [1, None], "b": long, "c": ""}
    assert answer.headers["content-type"] == "application/json"
    assert (await fetched(json_in_pieces({}, b=iter("xy")))).json() == {"b": "xy"}
    assert (await fetched(json_in_pieces({"a": 1}))).json() == {"a": 1}


async def test_what_an_answer_holds_is_let_go_of_when_it_was_sent() -> None:
    budget = Budget(100)
    left: list[int] = []

    async def make(held: AsyncExitStack, receive: Receive) -> Response:
        assert held.enter_context(budget.share()).take(70) == 70
        left.append(budget.left)
        return json_in_pieces({}, b=iter("xy"))

    assert (await fetched(Deferred(make))).json() == {"b": "xy"}
    assert (left, budget.left) == ([30], 100)

    async def fail(held: AsyncExitStack, receive: Receive) -> Response:
        held.enter_context(budget.share()).take(70)
        raise LookupError

    with pytest.raises(LookupError):
        await fetched(Deferred(fail))
    assert budget.left == 100


def test_a_budget() -> None:
    budget = Budget(10)
    with budget.share() as one, budget.share() as two:
        assert (one.take(6), two.take(6), one.take(1), budget.left) == (6, 4, 0, 0)
        one.give_back()
        assert (two.take(20), budget.left) == (6, 0)
    assert budget.left == 10


class Broken:
    """Boxes with a fault in them."""

    def get(self, key: str) -> None:
        raise ZeroDivisionError("a fault")


async def test_a_fault_is_a_flat_error_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = Answering(make_service_app(Context(cast(Boxes, Broken()))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        answer = await client.get("http://test/v2/box/x")
    assert answer.status_code == 500
    error: dict[str, Any] = json.loads(answer.content)
    assert (error["code"], "a fault" in error["error"]) == ("internal_error", False)
    assert "ZeroDivisionError: a fault" in caplog.text


class Awake:
    """Boxes of which any does."""

    id = "x"

    def get(self, key: str) -> "Awake":
        return self

    def check_awake(self) -> None:
        pass


async def test_uploads_beyond_what_the_disk_is_to_hold() -> None:
    context = Context(cast(Boxes, Awake()), spooled=Budget(1000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_service_app(context))) as client:
        answer = await client.post("http://test/v2/box/x/files/upload", files={"files": b"x" * 1001})
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert context.spooled.left == 1000
