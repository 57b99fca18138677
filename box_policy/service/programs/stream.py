"""A program in a box whose output is seen while it runs."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from box_policy.sandbox.launcher import Box, ProgramSpec, SandboxError
from box_policy.service.programs.departure import ClientGoneError, while_connected
from box_policy.service.programs.encoders import Encoder, encoder_for
from box_policy.service.programs.execution import Execution, Piece, executing
from box_policy.service.programs.runs import refusal_code, refusal_text
from box_policy.service.programs.slots import Slots

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """The program has ended: the last event."""

    exit_code: int
    timed_out: bool = False


type Event = Piece | Ended


@contextlib.asynccontextmanager
async def stream(
    box: Box,
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    slots: Slots,
    timeout: float | None = None,  # noqa: ASYNC109  # the program's, whose end is an event as any other
) -> AsyncIterator[AsyncIterator[Event]]:
    """Run a program; the context gives what it writes, and at last how it ended.

    Nothing is read ahead: whoever takes the events slowly holds the program back. It is killed when the
    context is left. One that does not exist or may not be run has ended with 127 or 126.

    Raises:
        TooManyProgramsError: there is no place for it.
        SandboxError: the box has ended, is paused, or can't run it.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(slots.place(box.id))
        try:
            execution = await stack.enter_async_context(
                executing(box, ProgramSpec(argv, env, cwd), timeout=timeout)
            )
        except SandboxError as error:
            code = refusal_code(error)
            if code is None:
                raise
            events = _refused(code, refusal_text(error))
        else:
            events = _events(execution)
        yield events


async def _events(execution: Execution) -> AsyncIterator[Event]:
    while (piece := await execution.next_piece()) is not None:
        yield piece
    yield Ended(execution.exit_code, execution.timed_out)


async def _refused(code: int, text: bytes) -> AsyncIterator[Event]:
    yield Piece("stderr", text)
    yield Ended(code)


async def streaming_response(
    box: Box,
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    slots: Slots,
    accept: str | None,
    timeout: float | None = None,  # noqa: ASYNC109  # the program's
    held: contextlib.AsyncExitStack | None = None,
) -> Response:
    """Start a program; the answer carries what it writes, in the form that ``accept`` asks for.

    The client that goes away kills it; one that reads slowly holds it back.

    Args:
        accept: the request's Accept header.
        held: closed once the program has ended, or could not be started.

    Raises:
        TooManyProgramsError: there is no place for it.
        SandboxError: the box has ended, is paused, or can't run it.
    """
    stack = held or contextlib.AsyncExitStack()
    try:
        running = stream(box, argv, cwd=cwd, env=env, slots=slots, timeout=timeout)
        events = await stack.enter_async_context(running)
    except BaseException:
        await stack.aclose()
        raise
    return _Streaming(events, encoder_for(accept), stack)


class _Streaming(Response):
    """The answer. It has to be sent, or what it holds is never let go of."""

    def __init__(
        self, events: AsyncIterator[Event], encoder: Encoder, held: contextlib.AsyncExitStack
    ) -> None:
        super().__init__(media_type=encoder.media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        # A proxy that gathers the output would hold it back.
        self.headers["x-accel-buffering"] = "no"
        self._events = events
        self._encoder = encoder
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            try:
                await while_connected(receive, self._send(send))
            except ClientGoneError:
                pass

    async def _send(self, send: Send) -> None:
        async def send_body(body: bytes) -> None:
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                if isinstance(event, Piece):
                    await send_body(self._encoder.piece(event))
                    continue
                *rest, end = self._encoder.end(event.exit_code, timed_out=event.timed_out)
                for body in rest:
                    await send_body(body)
                await asyncio.sleep(self._encoder.settling)
                await send_body(end)
        except Exception:
            # The answer has begun; that it is no whole one can only be said in its own form.
            log.exception("a program's stream failed")
            for body in self._encoder.failure("the service failed"):
                await send_body(body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
