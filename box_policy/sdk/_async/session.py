"""A program to talk to, over a WebSocket."""

import time
from collections.abc import Callable
from typing import Any, Final, Self

from box_policy.sdk import session_frames
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk.concurrency import AsyncEvent, AsyncReader, async_settled
from box_policy.sdk.errors import BoxError, BoxTimeoutError
from box_policy.sdk.sockets import AsyncSocket

type OutputCallback = Callable[[bytes], Any]
"""What is called with each piece of a program's output. The asynchronous
client awaits what it answers, if that can be awaited."""

_LAST_OUTPUT: Final = 5.0
"""Seconds for which ``close`` waits for a callback to return."""


class AsyncExecSessionHandle:
    """A program that runs as long as this handle is open: if the connection ends, so does the program.

    The callbacks are called one after another, by one reader beside the caller: as long as one of them
    works, no more output comes, and no exit. If one raises, the session is closed, and ``wait`` raises.
    """

    pid: int
    """The program's process id in the box."""
    exec_id: str
    """The service's id of the session."""
    error: str | None
    """Why the service has ended the session, if it says so."""

    def __init__(
        self,
        socket: AsyncSocket,
        pid: int,
        exec_id: str,
        on_stdout: OutputCallback | None,
        on_stderr: OutputCallback | None,
    ) -> None:
        self.pid = pid
        self.exec_id = exec_id
        self.error = None
        self._socket = socket
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        self._exit_code = -1
        self._fault: Exception | None = None
        self._exited = AsyncEvent()
        self._reader = AsyncReader(self._read)

    @classmethod
    async def open(
        cls,
        transport: AsyncTransport,
        path: str,
        start: dict[str, Any],
        on_stdout: OutputCallback | None,
        on_stderr: OutputCallback | None,
    ) -> Self:
        """Start a program; ``exec.session`` is what one calls.

        Raises:
            BoxError: it could not be started.
        """
        transport.check_open()
        seconds = transport.timeout_seconds
        # One limit for all of it: a service that says this and that, but never starts, would have no end.
        end = None if seconds is None else time.monotonic() + seconds
        socket = await AsyncSocket.open(transport.target, path, seconds)
        try:
            await socket.send(start)
            while True:
                frame = await socket.receive(None if end is None else max(0.0, end - time.monotonic()))
                if frame is None:
                    raise BoxError("the session's connection ended before it started")
                if found := session_frames.started(frame):
                    return cls(socket, *found, on_stdout, on_stderr)
        except BaseException:
            await socket.aclose()
            raise

    async def write(self, data: str | bytes) -> None:
        """Write to the program's standard input; text as UTF-8."""
        await self._send(session_frames.stdin(data))

    async def end_stdin(self) -> None:
        """Close its standard input. Programs that read to the end, such as ``sort``, then do their work."""
        await self._send({"type": "stdin_close"})

    async def resize(self, rows: int, cols: int) -> None:
        """Tell it another size of its terminal."""
        await self._send({"type": "resize", "rows": rows, "cols": cols})

    async def kill(self, signal: str | None = None) -> None:
        """Send it a signal: TERM, unless another is named.

        Raises:
            BoxError: there is no such signal.
        """
        await self._send(session_frames.signal(signal))

    async def terminate(self, grace_ms: int | None = None) -> None:
        """Send it SIGTERM, and SIGKILL if it still runs after ``grace_ms`` milliseconds."""
        await self._send(session_frames.terminate(grace_ms))

    async def wait(self, timeout: float | None = None) -> int:  # noqa: ASYNC109 - the official name
        """Its exit code, once it has ended; -1 if the session was ended before it.

        Raises:
            BoxTimeoutError: it still runs after ``timeout`` seconds; also a TimeoutError.
            BoxError: a callback has raised, or is waiting for the exit that comes after it.
        """
        if self._reader.is_current():
            raise BoxError("wait() was called by a callback: the exit can't come before the callback returns")
        if not await self._exited.wait(timeout):
            raise BoxTimeoutError("exec.session wait timed out")
        if self._fault is not None:
            raise BoxError(f"a callback of the session has raised: {self._fault!r}") from self._fault
        return self._exit_code

    async def close(self) -> None:
        """End the session, and the program with it if it still runs."""
        await self._socket.aclose()
        if not self._reader.is_current():
            await self._reader.join(_LAST_OUTPUT)
        self._exited.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _send(self, frame: dict[str, Any]) -> None:
        if not self._exited.is_set():
            await self._socket.send(frame)

    async def _read(self) -> None:
        try:
            while (frame := await self._socket.receive()) is not None:
                kind = frame.get("type")
                if kind == "exit":
                    self._exit_code = session_frames.exit_code(frame)
                    break
                if kind == "error":
                    self.error = session_frames.error(frame)
                    break
                if kind in self._callbacks:
                    await self._hand_over(self._callbacks[kind], session_frames.payload(frame))
        except Exception as fault:
            self._fault = fault
        finally:
            self._exited.set()
            await self._socket.aclose()

    async def _hand_over(self, callback: OutputCallback | None, data: bytes) -> None:
        if callback is not None:
            await async_settled(callback(data))
