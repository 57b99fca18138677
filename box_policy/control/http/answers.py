"""Answers: JSON, and errors in one form for the control API and one for the service."""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from box_policy.control.http.pace import Pace
from box_policy.policy.model import PolicyIssue

log = logging.getLogger(__name__)

SAFE_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""What each answer has."""
CLOSE: Final = (b"connection", b"close")
"""What an answer has after which the connection ends."""

SERVICE_PATHS: Final = "/v2/"
"""What the paths of the service begin with."""
_FAILED: Final = 1011
"""The code of a websocket that ends since the server has failed (RFC 6455, section 7.4.1)."""
_MAX_STEP: Final = 256
"""Characters of a key that are repeated to who sent it."""


ERRORS: Final = {
    "http_invalid": (
        400,
        "Not HTTP/1.1, or a head of more than 16 KiB or 100 lines, or tiny chunks.",
    ),
    "body_invalid": (400, "The body is not JSON that means one thing, or is a part, or nested too deeply."),
    "query_invalid": (400, "An unknown key or value in the query, or a last event id that is none."),
    "precondition_invalid": (400, "If-Match can't be read; or a precondition other than it."),
    "unauthorized": (401, "The token is missing, or wrong."),
    "origin_refused": (403, "The request has an Origin: it comes from a web page."),
    "peer_refused": (403, "The peer may not control the gate: another user, or a box."),
    "not_found": (404, "There is nothing at this path."),
    "box_unknown": (404, "There is no such box."),
    "method_not_allowed": (405, "This path takes other methods."),
    "body_timeout": (408, "The body was not here in time."),
    "generation_stale": (412, "The policy in force is of another generation."),
    "body_too_large": (413, "The body is larger than 8 MiB."),
    "media_type_unsupported": (415, "The body is not sent as application/json, plain."),
    "host_refused": (421, "Host is missing, or not this endpoint's."),
    "policy_invalid": (422, "The policy is not acceptable. The one in force stays."),
    "request_invalid": (422, "The question can't be answered as it is."),
    "too_many_streams": (429, "As many streams are open as there may be."),
    "busy": (503, "Other large bodies were worked on for as long as one may wait."),
    "internal_error": (500, "The gate has failed. Its log says why."),
}
"""Every error of the control API: its code, its status, and what it means."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        """Say what is wrong.

        Args:
            code: a word for programs: one of the :data:`ERRORS`, or any other with a ``status``.
            message: a sentence for people.
            status: of HTTP; None for that of the code in :data:`ERRORS`.
            more: what else the answer holds, ready for JSON.
        """
        super().__init__(message)
        self.status = ERRORS[code][0] if status is None else status
        self.code = code
        self.headers = headers
        self.more = more

    def response(self, *, flat: bool = False) -> Response:
        """The answer: ``{"error": {"code", "message", ...}}``, or flat: ``{"error": message, "code", ...}``.

        What asks the service prints ``error`` as it is.
        """
        answer: dict[str, object] = {"error": str(self), "code": self.code, **self.more}
        if not flat:
            answer = {"error": {"code": self.code, "message": str(self), **self.more}}
        return json_response(answer, self.status, self.headers)

    def response_at(self, path: str) -> Response:
        """The answer in the form that requests for ``path`` are answered in."""
        return self.response(flat=is_of_service(path))


def is_of_service(path: str) -> bool:
    """Is it a path of the service, and not of the control API?"""
    return path.startswith(SERVICE_PATHS)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON. Pure ASCII: what a stranger wrote, even half a surrogate pair, can be shown."""
    return rendered_response(json.dumps(value, separators=(",", ":"), allow_nan=False), status, headers)


def rendered_response(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that is JSON already."""
    return Response(body, status, headers, media_type="application/json")


def issues(found: Iterable[PolicyIssue], *, under: tuple[str | int, ...] = ()) -> list[dict[str, object]]:
    """Issues ready for JSON; ``under`` is where the policy stands in the body."""
    return [{"location": [*under, *map(_shown, issue.location)], "message": issue.message} for issue in found]


def _shown(step: str | int) -> str | int:
    return f"{step[:_MAX_STEP]}..." if isinstance(step, str) and len(step) > _MAX_STEP else step


def internal_error() -> ApiError:
    """What is said of a fault of ours: nothing."""
    return ApiError("internal_error", "the gate has failed to answer; its log says why")


class Answering:
    """Around everything: headers that each answer has, and an answer where the code behind it fails.

    An answer given before the request's body was read ends the connection: the rest of the body would
    have to be read, however much comes, or be taken for the next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pace = Pace(burst=10, per_second=0.2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._answer_websocket(scope, receive, send)
        else:
            raise RuntimeError(f"neither HTTP nor a websocket: {scope['type']}")

    async def _answer_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )
        started = complete = False

        async def receive_counted() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                unread = False
            return message

        async def send_safely(message: Message) -> None:
            nonlocal started, complete
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *SAFE_HEADERS, *([CLOSE] * unread)]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)
            if message.get("more_body", False):
                await asyncio.sleep(0)  # an app that always has more would keep the loop from all others

        try:
            await self._app(scope, receive_counted, send_safely)
        except ClientDisconnect:
            return
        except Exception as error:
            refused = self._refusal(error)
            if not started:
                await refused.response_at(scope["path"])(scope, receive, send_safely)
            elif not complete:
                raise  # half an answer: the server closes the connection

    async def _answer_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = answered = gone = False

        async def send_safely(message: Message) -> None:
            nonlocal accepted, answered, gone
            kind = message["type"]
            if accepted and kind.startswith("websocket.http.response"):
                # An answer to a request, too late for one.
                if kind == "websocket.http.response.start":
                    await send({"type": "websocket.close", "code": _FAILED})
                return
            if not accepted and kind == "websocket.close":
                if not answered:
                    await refuse(ApiError("not_found", "there is no websocket at this path"))
                return
            accepted = accepted or kind == "websocket.accept"
            if kind == "websocket.http.response.start":
                answered = True
                message["headers"] = [*message.get("headers", ()), *SAFE_HEADERS]
            try:
                await send(message)
            except OSError:
                gone = True
                raise
            await asyncio.sleep(0)

        async def refuse(error: ApiError) -> None:
            await error.response_at(scope["path"])(scope, receive, send_safely)

        try:
            await self._app(scope, receive, send_safely)
        except (ClientDisconnect, WebSocketDisconnect):
            return
        except Exception as error:
            if not gone:
                await refuse(self._refusal(error))
        else:
            if not (accepted or answered):
                await refuse(internal_error())

    def _refusal(self, error: Exception) -> ApiError:
        """What is said of a request that raised; a fault of ours is logged."""
        if isinstance(error, ApiError):
            return error
        if self._pace.allows():
            log.exception("a request to the control endpoint failed in the gate")
        return internal_error()
