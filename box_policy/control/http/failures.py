"""What both APIs answer when a request comes to nothing, each in the form of its paths."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from box_policy.control.http.answers import ApiError, internal_error

type Handler = Callable[[Request, Exception], Awaitable[Response]]


async def _on_api_error(request: Request, error: Exception) -> Response:
    return answered(request, error if isinstance(error, ApiError) else internal_error())


async def _on_http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 404:
        return answered(request, ApiError("not_found", "there is nothing at this path"))
    if isinstance(error, HTTPException) and error.status_code == 405:
        message = "this path takes other methods, which the header Allow lists"
        return answered(request, ApiError("method_not_allowed", message, headers=error.headers))
    return answered(request, internal_error())


async def _on_fault(request: Request, error: Exception) -> Response:
    return answered(request, internal_error())


def answered(request: Request, error: ApiError) -> Response:
    """The answer to a request that is refused."""
    return error.response_at(request.scope["path"])


HANDLERS: Final[Mapping[type[Exception], Handler]] = {
    ApiError: _on_api_error,
    HTTPException: _on_http_error,
    Exception: _on_fault,
}
"""An app's exception handlers, for whatever has none of its own."""
