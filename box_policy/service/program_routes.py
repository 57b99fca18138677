"""The service's API for programs in a box: commands, code, streams and sessions."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive
from starlette.websockets import WebSocket

from box_policy.control.http.answers import ApiError
from box_policy.service.answers import Deferred, as_text, json_in_pieces
from box_policy.service.box import HOME, ServedBox
from box_policy.service.context import Context
from box_policy.service.programs.code import prepared
from box_policy.service.programs.departure import while_connected
from box_policy.service.programs.runs import run
from box_policy.service.programs.session import serve_session
from box_policy.service.programs.slots import Slots
from box_policy.service.programs.stream import streaming_response
from box_policy.service.requests import Code, Command


def program_routes(context: Context, box: str) -> list[BaseRoute]:
    """The routes, below the path of a box."""
    programs = _Programs(context)
    return [
        Route(f"{box}/exec", programs.command, methods=["POST"]),
        Route(f"{box}/exec-stream", programs.stream_command, methods=["POST"]),
        Route(f"{box}/code", programs.code, methods=["POST"]),
        Route(f"{box}/code-stream", programs.stream_code, methods=["POST"]),
        WebSocketRoute(f"{box}/exec-session", programs.session),
    ]


class _Programs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._slots = Slots()

    async def command(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Command)
        box.check_awake()

        async def answer(held: AsyncExitStack, receive: Receive) -> Response:
            held.enter_context(box.busy())
            return await self._answer(held, receive, box, asked.command, asked)

        return Deferred(answer)

    async def code(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Code)
        box.check_awake()

        async def answer(held: AsyncExitStack, receive: Receive) -> Response:
            held.enter_context(box.busy())
            argv = await held.enter_async_context(prepared(box.sandbox, asked.code, asked.language))
            return await self._answer(held, receive, box, argv, asked)

        return Deferred(answer)

    async def stream_command(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Command)
        held = AsyncExitStack()
        held.enter_context(box.busy())
        return await self._stream(request, box, asked.command, asked, held)

    async def stream_code(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Code)
        async with AsyncExitStack() as stack:
            stack.enter_context(box.busy())
            argv = await stack.enter_async_context(prepared(box.sandbox, asked.code, asked.language))
            # Let go of when the program has ended, which is after this returns.
            return await self._stream(request, box, argv, asked, stack.pop_all())

    async def session(self, websocket: WebSocket) -> None:
        try:
            box = self._context.box(websocket)
            with box.busy():
                await serve_session(
                    websocket, box.sandbox, environment=box.environment, home=HOME, slots=self._slots
                )
        except ApiError as error:
            await websocket.send_denial_response(error.response(flat=True))

    async def _answer(
        self,
        held: AsyncExitStack,
        receive: Receive,
        box: ServedBox,
        argv: Sequence[str],
        asked: Command | Code,
    ) -> Response:
        running = run(
            box.sandbox,
            argv,
            cwd=box.resolve(asked.folder),
            env=box.environment | asked.env,
            slots=self._slots,
            share=held.enter_context(self._context.kept.share()),
            timeout=_seconds(asked.timeout),
        )
        finished = await while_connected(receive, running)
        fields = {
            "exit_code": finished.exit_code,
            "truncated": finished.truncated,
            "timed_out": finished.timed_out,
        }
        return json_in_pieces(
            fields,
            output=as_text(finished.stdout, "replace", is_whole=not finished.stdout_truncated),
            error=as_text(finished.stderr, "replace", is_whole=not finished.stderr_truncated),
        )

    async def _stream(
        self,
        request: Request,
        box: ServedBox,
        argv: Sequence[str],
        asked: Command | Code,
        held: AsyncExitStack,
    ) -> Response:
        return await streaming_response(
            box.sandbox,
            argv,
            cwd=box.resolve(asked.folder),
            env=box.environment | asked.env,
            slots=self._slots,
            timeout=_seconds(asked.timeout),
            accept=request.headers.get("accept"),
            held=held,
        )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
