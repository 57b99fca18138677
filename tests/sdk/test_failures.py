"""A service that fails, lies, stalls or goes away: always a BoxError, never for ever."""

import itertools
import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from box_policy import (
    BoxAuthError,
    BoxConnectionError,
    BoxError,
    BoxFileError,
    BoxNotFoundError,
    BoxTimeoutError,
    BoxUnsupportedError,
    PolicyValidationError,
)
from box_policy.sdk import answers
from tests.sdk.conftest import Client
from tests.sdk.stub import Answer, Asked, Broken, Stub, silent_listener


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BoxError),
        (401, BoxAuthError),
        (403, BoxError),
        (404, BoxNotFoundError),
        (409, BoxError),
        (422, BoxError),
        (500, BoxError),
        (501, BoxUnsupportedError),
        (504, BoxTimeoutError),
    ],
)
async def test_an_error_has_the_service_s_words(
    client: Client, stub: Stub, status: int, kind: type[BoxError]
) -> None:
    box = await client(client.Box.create)
    stub.on("GET", ".*/status", lambda _: Answer({"error": "the words", "code": "word"}, status))
    with pytest.raises(BoxError) as raised:
        await client(box.get_status)
    assert type(raised.value) is kind
    assert (str(raised.value), raised.value.status_code, raised.value.code) == ("the words", status, "word")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("unauthorized", 401, BoxAuthError),
        ("peer_refused", 403, BoxAuthError),
        ("origin_refused", 403, BoxAuthError),
        ("host_refused", 421, BoxAuthError),
        (None, 403, BoxAuthError),
        ("file_unknown", 404, BoxFileError),
        ("file_forbidden", 403, BoxFileError),
        ("file_conflict", 409, BoxFileError),
        ("file_too_large", 413, BoxFileError),
        ("not_text", 422, BoxFileError),
        ("box_full", 507, BoxFileError),
        ("box_unknown", 404, BoxNotFoundError),
        ("snapshot_unknown", 404, BoxNotFoundError),
        ("box_paused", 409, BoxError),
    ],
)
def test_the_service_s_code_comes_before_its_status(
    code: str | None, status: int, kind: type[BoxError]
) -> None:
    error = answers.error_from(status, json.dumps({"error": "the words", "code": code}).encode())
    assert type(error) is kind
    assert (str(error), error.status_code, error.code) == ("the words", status, code)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the service has answered with status 500"),
        (b"<html>", "the service has answered with status 500"),
        (b"[1]", "the service has answered with status 500"),
        (b'{"error": {"code": "c", "message": "nested"}}', "nested"),
        (b'{"error": 5}', "the service has answered with status 500"),
        (b'{"error": "red \\u001b[31m"}', "red \\x1b[31m"),
        (b"[" * 100_000, "the service has answered with status 500"),
        (b'{"error": "' + b"x" * 10_000 + b'"}', "x" * 4_000 + "..."),
    ],
)
async def test_an_error_is_shown_however_it_is_written(
    client: Client, stub: Stub, content: bytes, message: str
) -> None:
    stub.on("GET", "/v2/box", lambda _: Answer(content=content, status=500))
    with pytest.raises(BoxError) as raised:
        await client(client.Box.list)
    assert str(raised.value) == message


async def test_no_redirect_is_followed(client: Client, stub: Stub) -> None:
    elsewhere = {"Location": f"{stub.url}/elsewhere"}
    stub.on("POST", "/v2/box", lambda _: Answer(status=307, headers=elsewhere))
    with pytest.raises(BoxError, match="redirect") as raised:
        await client(client.Box.create)
    assert raised.value.status_code == 307
    assert len(stub.asked) == 1


JUNK = [
    b"",
    b"not json",
    b"null",
    b"5",
    b'"text"',
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"id": 5}',
    b'{"id": ""}',
    b"\xff",
]


@pytest.mark.parametrize("content", JUNK)
async def test_junk_in_place_of_a_box(client: Client, stub: Stub, content: bytes) -> None:
    stub.on("POST", "/v2/box.*", lambda _: Answer(content=content))
    stub.on("GET", "/v2/box/.*", lambda _: Answer(content=content))
    for call in (client.Box.create, client.EphemeralBox.create):
        with pytest.raises(BoxError):
            await client(call)
    for call in (client.Box.get, client.Box.from_snapshot):
        with pytest.raises(BoxError):
            await client(call, "name")


@pytest.mark.parametrize("content", JUNK)
async def test_junk_in_place_of_anything_else(client: Client, stub: Stub, content: bytes) -> None:
    box = await client(client.Box.create)
    for method in ("GET", "POST", "PUT", "DELETE"):
        stub.on(method, ".*", lambda _: Answer(content=content))
    for call, arguments in (
        (box.exec.command, ["true"]),
        (box.files.stat, ["x"]),
        (box.cd, ["x"]),
        (box.refresh_network_policy, []),
        (box.update_network_policy, ["deny-all"]),
    ):
        with pytest.raises(BoxError):
            await client(call, *arguments)
    for call in (client.Box.list, box.get_status, box.list_snapshots, box.labels.list, box.files.list):
        try:
            await client(call)
        except BoxError:
            pass  # some of the junk means nothing at all, and that is an answer


async def test_a_list_with_something_else_in_it(client: Client, stub: Stub) -> None:
    stub.on("GET", "/v2/box", lambda _: Answer([{"id": "a", "status": "idle"}]))
    with pytest.raises(BoxError, match="no BoxData: created_at"):
        await client(client.Box.list)


async def test_nobody_listens(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for call in (client.Box.create, client.Box.list, client.EphemeralBox.create, client.Box.list_env):
        with pytest.raises(BoxConnectionError, match="can't be reached"):
            await client(call, base_url=url, api_key="k")


async def test_the_connection_breaks_before_the_answer(client: Client, stub: Stub) -> None:
    def broken(_: Asked) -> Answer:
        raise Broken

    box = await client(client.Box.create)
    stub.on("GET", ".*", broken)
    with pytest.raises(BoxConnectionError):
        await client(box.get_status)


async def test_the_connection_breaks_in_the_answer(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    stub.on(
        "GET", ".*", lambda _: Answer(content=b"{", headers={"Content-Length": "100", "Connection": "close"})
    )
    with pytest.raises(BoxConnectionError):
        await client(box.get_status)


async def test_no_answer_within_the_timeout(client: Client) -> None:
    with silent_listener() as url:
        for call in (client.Box.create, client.Box.list, client.Box.delete_snapshots):
            with pytest.raises(BoxTimeoutError, match="within 50 ms"):
                await client(call, base_url=url, api_key="k", timeout=50)


async def test_an_answer_that_dribbles_in_has_an_end(client: Client, stub: Stub) -> None:
    stop = threading.Event()

    def dribble(_: Asked) -> Answer:
        def pieces() -> Iterator[bytes]:
            while not stop.wait(0.02):
                yield b" "

        return Answer(pieces=pieces())

    box = await client(client.Box.create, timeout=200)
    stub.on("GET", ".*", dribble)
    started = time.monotonic()
    with pytest.raises(BoxTimeoutError):
        await client(box.get_status)
    stop.set()
    assert time.monotonic() - started < 5


async def test_an_answer_is_bounded(client: Client, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_BODY", 1_000)
    box = await client(client.Box.create)
    stub.on("GET", ".*", lambda _: Answer(pieces=itertools.repeat(b"x" * 100)))
    with pytest.raises(BoxError, match="larger than 1000 bytes"):
        await client(box.get_status)
    stub.on("GET", ".*", lambda _: Answer(pieces=itertools.repeat(b"x" * 100_000), status=500))
    with pytest.raises(BoxError, match="status 500"):
        await client(box.get_status)


async def test_what_can_t_be_sent_is_a_box_error(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    with pytest.raises(BoxError, match="JSON"):
        await client(box.snapshot, name=object())
    with pytest.raises(BoxError):
        await client(box.files.read, "\ud800")


async def test_a_closed_box_says_so(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    await client.close(box)
    assert box.id in stub.boxes
    for call in (box.get_status, box.delete):
        with pytest.raises(BoxError, match=r"closed.*Box\.get"):
            await client(call)
    with pytest.raises(BoxError, match="closed"):
        await client(box.exec.session, cmd="true")


@pytest.mark.parametrize(
    "error", [BoxError("m", 500, code="c"), BoxTimeoutError("m", 504), PolicyValidationError("m", 422)]
)
def test_errors_can_be_pickled(error: BoxError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert isinstance(error, TimeoutError) == (type(error) is BoxTimeoutError)
