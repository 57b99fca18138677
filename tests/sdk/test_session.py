"""Live sessions, against a peer that follows a script."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from box_policy import BoxAuthError, BoxError, BoxTimeoutError
from box_policy.policy.model import NetworkPolicy
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk._sync.transport import Transport
from tests.sdk.conftest import Client
from tests.sdk.stub import KEY, silent_listener

STARTED = {"type": "started", "pid": 42, "execId": "e1"}

type Script = Callable[["Peer", ServerConnection], None]


class Peer:
    """The service's end of sessions: does what the script says, and keeps what it hears."""

    def __init__(self, script: Script) -> None:
        self.heard: list[dict[str, Any]] = []
        self.gone = threading.Event()
        self.headers: dict[str, str] = {}
        self.elsewhere = ""
        """Where everybody is sent on to."""
        self._script = script
        self._server = serve(self._handle, "127.0.0.1", 0, process_request=self._check)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def close(self) -> None:
        self._server.shutdown()

    def hear(self, connection: ServerConnection) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(connection.recv())
        self.heard.append(frame)
        return frame

    def _check(self, connection: ServerConnection, request: Any) -> Any:
        if self.elsewhere:
            response = connection.respond(307, "")
            response.headers["Location"] = self.elsewhere
            return response
        self.headers = {"path": request.path, "key": request.headers["X-Box-Api-Key"]}
        if self.headers["key"] != KEY:
            return connection.respond(401, '{"error": "wrong key", "code": "unauthorized"}')
        return None

    def _handle(self, connection: ServerConnection) -> None:
        try:
            self.hear(connection)
            self._script(self, connection)
        except ConnectionClosed:
            pass
        finally:
            self.gone.set()


def tell(connection: ServerConnection, **frame: Any) -> None:
    connection.send(json.dumps(frame))


def tell_output(connection: ServerConnection, stream: str, data: bytes) -> None:
    tell(connection, type=stream, data=base64.b64encode(data).decode())


@pytest.fixture
def peers() -> Iterator[Callable[[Script], Peer]]:
    made: list[Peer] = []

    def make(script: Script) -> Peer:
        made.append(Peer(script))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def box(client: Client, url: str, *, key: str = KEY, timeout: float | None = 5_000) -> Any:
    transport = (AsyncTransport if client.is_async else Transport)(
        {"base_url": url, "api_key": key, "timeout": timeout}
    )
    return client.Box({"id": "b1"}, transport, NetworkPolicy.parse("allow-all"))


def echo(peer: Peer, connection: ServerConnection) -> None:
    """A program that writes what it reads, in capitals, and ends with its input."""
    tell(connection, type="noise")
    connection.send("no json")
    tell(connection, **STARTED)
    while (frame := peer.hear(connection))["type"] != "stdin_close":
        if frame["type"] == "stdin":
            tell_output(connection, "stdout", base64.b64decode(frame["data"]).upper())
    tell_output(connection, "stderr", b"bye")
    tell(connection, type="exit", code=7)


async def test_a_conversation(client: Client, peers: Callable[[Script], Peer]) -> None:
    peer = peers(echo)
    out, err = bytearray(), bytearray()
    handle = await client(
        box(client, peer.url).exec.session,
        argv=["cat"],
        cmd="ignored",
        tty=True,
        cwd="src",
        rows=24,
        cols=80,
        env=["A=1"],
        on_stdout=out.extend,
        on_stderr=err.extend,
    )
    assert (handle.pid, handle.exec_id) == (42, "e1")
    assert peer.headers == {"path": "/v2/box/b1/exec-session", "key": KEY}
    await client(handle.write, "ü")
    await client(handle.write, b"\xff")
    await client(handle.resize, 1, 2)
    await client(handle.kill)
    await client(handle.kill, "SIGINT")
    await client(handle.terminate, 500)
    await client(handle.terminate)
    await client(handle.end_stdin)
    assert await client(handle.wait, 5) == 7
    assert (bytes(out), bytes(err)) == ("ü".encode().upper() + b"\xff", b"bye")
    assert peer.heard == [
        {"type": "start", "cwd": "/workspace/home/src", "argv": ["cat"], "tty": True, "rows": 24, "cols": 80}
        | {"env": ["A=1"]},
        {"type": "stdin", "data": "w7w="},
        {"type": "stdin", "data": "/w=="},
        {"type": "resize", "rows": 1, "cols": 2},
        {"type": "signal", "signal": "TERM"},
        {"type": "signal", "signal": "INT"},
        {"type": "terminate", "graceMs": 500},
        {"type": "terminate"},
        {"type": "stdin_close"},
    ]
    await client(handle.write, "to nobody")
    await client.close(handle)
    assert await client(handle.wait) == 7


async def test_what_can_t_be_started_or_sent(client: Client, peers: Callable[[Script], Peer]) -> None:
    peer = peers(echo)
    session = box(client, peer.url).exec.session
    with pytest.raises(BoxError, match="cmd or argv"):
        await client(session)
    handle = await client(session, cmd="cat")
    with pytest.raises(BoxError, match="unsupported signal 'STOP'"):
        await client(handle.kill, "STOP")
    await client.close(handle)
    assert peer.heard[0] == {"type": "start", "cwd": "/workspace/home", "cmd": "cat"}


async def test_the_end_of_the_handle_is_that_of_the_program(
    client: Client, peers: Callable[[Script], Peer]
) -> None:
    peer = peers(echo)
    handle = await client(box(client, peer.url).exec.session, cmd="cat")
    await client.enter(handle)
    with pytest.raises(BoxTimeoutError, match="wait timed out"):
        await client(handle.wait, 0.01)
    await client.leave(handle)
    assert await asyncio.to_thread(peer.gone.wait, 5)
    assert await client(handle.wait, 5) == -1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([{"type": "error", "message": "no such program"}], "no such program"),
        ([{"type": "error"}], "it doesn't say"),
        ([{"type": "exit", "code": 1}], "ended before it started"),
        ([{"type": "started"}], "usable pid"),
        ([{"type": "started", "pid": True}], "usable pid"),
        ([], "ended before it started"),
    ],
)
async def test_a_session_that_does_not_start(
    client: Client, peers: Callable[[Script], Peer], frames: list[dict[str, Any]], message: str
) -> None:
    def begin(_: Peer, connection: ServerConnection) -> None:
        for frame in frames:
            tell(connection, **frame)

    peer = peers(begin)
    with pytest.raises(BoxError, match=message):
        await client(box(client, peer.url).exec.session, cmd="x")


async def test_a_chatty_peer_does_not_get_more_time(client: Client, peers: Callable[[Script], Peer]) -> None:
    stop = threading.Event()

    def chat(_: Peer, connection: ServerConnection) -> None:
        while not stop.wait(0.02):
            tell(connection, type="noise")

    peer = peers(chat)
    with pytest.raises(BoxTimeoutError):
        await client(box(client, peer.url, timeout=200).exec.session, cmd="x")
    stop.set()


async def test_a_peer_that_says_nothing(client: Client) -> None:
    with silent_listener() as url, pytest.raises(BoxTimeoutError):
        await client(box(client, url, timeout=100).exec.session, cmd="x")


async def test_a_wrong_key(client: Client, peers: Callable[[Script], Peer]) -> None:
    with pytest.raises(BoxAuthError, match="wrong key"):
        await client(box(client, peers(echo).url, key="other").exec.session, cmd="x")


async def test_no_redirect_is_followed(client: Client, peers: Callable[[Script], Peer]) -> None:
    first, second = peers(echo), peers(echo)
    first.elsewhere = second.url.replace("http", "ws")
    with pytest.raises(BoxError, match="redirect"):
        await client(box(client, first.url).exec.session, cmd="x")
    assert second.headers == {}, "it would have been sent the key"


async def test_nobody_listens(client: Client) -> None:
    with pytest.raises(BoxError, match="can't be reached"):
        await client(box(client, "http://127.0.0.1:9").exec.session, cmd="x")


async def test_the_service_ends_the_session(client: Client, peers: Callable[[Script], Peer]) -> None:
    def end(_: Peer, connection: ServerConnection) -> None:
        tell(connection, **STARTED)
        tell(connection, type="error", message="the box was deleted")

    handle = await client(box(client, peers(end).url).exec.session, cmd="x")
    assert await client(handle.wait, 5) == -1
    assert handle.error == "the box was deleted"
    await client.close(handle)


async def test_the_connection_breaks(client: Client, peers: Callable[[Script], Peer]) -> None:
    def cut(_: Peer, connection: ServerConnection) -> None:
        tell(connection, **STARTED)
        connection.socket.shutdown(socket.SHUT_RDWR)

    handle = await client(box(client, peers(cut).url).exec.session, cmd="x")
    assert await client(handle.wait, 5) == -1


async def test_a_callback_that_fails_ends_it(client: Client, peers: Callable[[Script], Peer]) -> None:
    def fail(_: bytes) -> None:
        raise ValueError("mine")

    peer = peers(echo)
    handle = await client(box(client, peer.url).exec.session, cmd="x", on_stdout=fail)
    await client(handle.write, "x")
    with pytest.raises(BoxError, match="mine"):
        await client(handle.wait, 5)
    assert await asyncio.to_thread(peer.gone.wait, 5)


async def test_a_callback_that_awaits(client: Client, peers: Callable[[Script], Peer]) -> None:
    seen = bytearray()

    async def later(data: bytes) -> None:
        await asyncio.sleep(0)
        seen.extend(data)

    handle = await client(box(client, peers(echo).url).exec.session, cmd="x", on_stdout=later)
    await client(handle.write, "x")
    if client.is_async:
        await handle.end_stdin()
        assert await handle.wait(5) == 7
        assert seen == b"X"
        await handle.close()
    else:
        with pytest.raises(BoxError, match="AsyncBox"):
            handle.wait(5)


async def test_a_callback_can_t_wait_for_the_exit(client: Client, peers: Callable[[Script], Peer]) -> None:
    handles: list[Any] = []

    async def wait(_: bytes) -> None:
        await client(handles[0].wait)

    def wait_here(_: bytes) -> None:
        handles[0].wait()

    session = box(client, peers(echo).url).exec.session
    handles.append(await client(session, cmd="x", on_stdout=wait if client.is_async else wait_here))
    handle = handles[0]
    await client(handle.write, "x")
    with pytest.raises(BoxError, match="the exit can't come before"):
        await client(handle.wait, 5)
