"""A program in a box that a client talks with, over a websocket.

The client says what to run, writes to it, resizes its terminal and sends it signals; it hears what the
program writes, and at last how it ended. The session owns the program: without the client it is killed.
"""

import asyncio
import contextlib
import fcntl
import logging
import posixpath
import secrets
import signal
import struct
import termios
from collections.abc import Mapping
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from box_policy.sandbox.launcher import Box, ProgramSpec, SandboxError
from box_policy.service.programs import frames
from box_policy.service.programs.execution import Execution, executing
from box_policy.service.programs.frames import FrameError, IgnoredFrameError
from box_policy.service.programs.slots import Slots, TooManyProgramsError
from box_policy.service.programs.standard_input import StandardInput

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 10.0
"""Seconds for a client's first frame."""

_NORMAL: Final = 1000
_UNACCEPTABLE: Final = 1008
_FAILED: Final = 1011
"""Close codes: RFC 6455, section 7.4.1."""
_SIGN_OF_LIFE: Final = 5.0
"""Seconds after which a client that is held back is sent a frame: only that would show that it has gone."""
_SHELL: Final = 'if command -v bash >/dev/null 2>&1; then exec bash -lc "$1"; fi; exec sh -lc "$1"'


async def serve_session(
    websocket: WebSocket,
    box: Box,
    *,
    environment: Mapping[str, str],
    home: str,
    slots: Slots,
    start_timeout: float = START_TIMEOUT,
) -> None:
    """Serve one session, to its end. What goes wrong is told to the client.

    Args:
        websocket: not accepted yet, or just so.
        environment: the program's, before what the client adds.
        home: where it starts, and what a relative ``cwd`` is relative to.
    """
    session = _Session(websocket, box, environment, home)
    try:
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()
        try:
            async with asyncio.timeout(start_timeout):
                spec = session.spec(frames.parse_start(await session.receive()))
        except TimeoutError:
            raise FrameError(f"no start within {start_timeout:g} seconds") from None
        with slots.place(box.id):
            async with executing(box, spec, with_stdin=True) as execution:
                await session.serve(execution)
    except (FrameError, SandboxError, TooManyProgramsError) as error:
        await session.refuse(str(error), _UNACCEPTABLE)
    except (WebSocketDisconnect, OSError):
        pass  # the client has gone
    except Exception:
        log.exception("a session failed")
        await session.refuse("the service failed", _FAILED)


class _Session:
    def __init__(self, websocket: WebSocket, box: Box, environment: Mapping[str, str], home: str) -> None:
        self._websocket = websocket
        self._box = box
        self._environment = environment
        self._home = home
        self._killer: asyncio.TimerHandle | None = None
        self._sending = asyncio.Lock()
        self._has_told_end = False

    def spec(self, start: frames.Start) -> ProgramSpec:
        """The program that a client asks for."""
        argv = start.argv or ("sh", "-c", _SHELL, "sh", start.cmd or "")
        return ProgramSpec(
            argv,
            env={**self._environment, **start.env},
            cwd=posixpath.join(self._home, start.cwd or ""),
            terminal=start.terminal,
        )

    async def receive(self) -> str | bytes:
        """The next frame. Raises WebSocketDisconnect."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", _NORMAL))
        text: str | bytes | None = message.get("text")
        return text if text is not None else message.get("bytes") or b""

    async def refuse(self, text: str, code: int) -> None:
        """Tell the client why it ends."""
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError):
            await self._websocket.send_text(frames.encode("error", message=text))
            await self._websocket.close(code)

    async def serve(self, execution: Execution) -> None:
        """Carry between client and program until the program ends, or the client goes."""
        started = frames.encode("started", pid=execution.program.pid, execId=secrets.token_hex(16))
        await self._send(started)
        hearing = asyncio.ensure_future(self._hear(execution))
        showing = asyncio.ensure_future(self._show(execution))
        try:
            await asyncio.wait((hearing, showing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (hearing, showing):
                task.cancel()
            await asyncio.gather(hearing, showing, return_exceptions=True)
            if self._killer is not None:
                self._killer.cancel()
        # A client that closes as soon as it has seen the end is as good as one that waits.
        if showing.cancelled():
            hearing.result()
        showing.result()
        await self._websocket.close(_NORMAL)

    async def _send(self, frame: str, *, is_last: bool = False) -> None:
        async with self._sending:
            if not self._has_told_end:
                self._has_told_end = is_last
                await self._websocket.send_text(frame)

    async def _show(self, execution: Execution) -> None:
        while (piece := await execution.next_piece()) is not None:
            await self._send(frames.encode_output(piece.stream, piece.data))
        await self._send(frames.encode("exit", code=execution.exit_code), is_last=True)

    async def _hear(self, execution: Execution) -> None:
        stdin = StandardInput(execution)
        while True:
            # Frames may be there faster than they are done with; the program's output has its turn.
            await asyncio.sleep(0)
            try:
                frame = frames.parse_frame(await self.receive())
            except IgnoredFrameError as error:
                # Of a type that clients skip: an error would end the session for them.
                await self._send(frames.encode("warning", message=str(error)))
                continue
            match frame:
                case frames.Stdin(data):
                    stdin.write(data)
                    await self._room(stdin)
                case frames.StdinClose():
                    stdin.close()
                case frames.Resize():
                    _resize(execution, frame)
                case frames.Signal(number):
                    execution.send_signal(number)
                case frames.Terminate(grace):
                    self._terminate(execution, grace)

    async def _room(self, stdin: StandardInput) -> None:
        """Hold the client back while the program does not read."""
        while True:
            try:
                async with asyncio.timeout(_SIGN_OF_LIFE):
                    return await stdin.room()
            except TimeoutError:
                await self._send(frames.encode("waiting"))

    def _terminate(self, execution: Execution, grace: float) -> None:
        if self._killer is None:
            execution.send_signal(signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._killer = loop.call_later(grace, execution.send_signal, signal.SIGKILL)


def _resize(execution: Execution, size: frames.Resize) -> None:
    # The descriptor that is written to stays open for as long as the program runs.
    if execution.program.terminal is not None and execution.stdin is not None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(
                execution.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0)
            )
