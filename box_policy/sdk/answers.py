"""What the service answers: JSON of the form that was expected, or an error that says why not."""

import json
from collections.abc import Mapping
from typing import Any, Final

import pydantic

from box_policy.sdk.errors import (
    BoxAuthError,
    BoxError,
    BoxFileError,
    BoxNotFoundError,
    BoxTimeoutError,
    BoxUnsupportedError,
    PolicyIssueDict,
    PolicyValidationError,
)

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of an answer that is held in memory."""
MAX_ERROR: Final = 256 * 1024
"""Bytes that are read of an answer that is an error."""
_MOST_SHOWN: Final = 4_000
"""Characters of the service's own words in a message."""

_OF_CODES: Final[Mapping[str, type[BoxError]]] = {
    **dict.fromkeys(("unauthorized", "peer_refused", "host_refused", "origin_refused"), BoxAuthError),
    **dict.fromkeys(("file_unknown", "file_forbidden", "file_conflict", "file_too_large"), BoxFileError),
    **dict.fromkeys(("not_text", "box_full"), BoxFileError),
}
_OF_STATUSES: Final[Mapping[int, type[BoxError]]] = {
    401: BoxAuthError,
    404: BoxNotFoundError,
    408: BoxTimeoutError,
    501: BoxUnsupportedError,
    504: BoxTimeoutError,
}


def encoded(value: object) -> bytes:
    """``value`` as JSON.

    Raises:
        BoxError: it can't be written as JSON.
    """
    try:
        return json.dumps(value, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise BoxError(f"the request can't be written as JSON: {error}") from None


def decoded(body: bytes) -> Any:
    """The value of an answer; an empty one is ``{}``.

    Raises:
        BoxError: it is not JSON.
    """
    if not body.strip():
        return {}
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BoxError(
            f"the service has answered with something else than JSON ({len(body)} bytes); "
            "is the base_url that of a box service?"
        ) from None


def as_object(value: Any) -> dict[str, Any]:
    """``value`` if it is an object.

    Raises:
        BoxError: it is none.
    """
    if not isinstance(value, dict):
        raise BoxError(f"the service has answered with {_kind(value)} where an object belongs")
    return value


def as_list(value: Any) -> list[Any]:
    """``value`` if it is a list.

    Raises:
        BoxError: it is none.
    """
    if not isinstance(value, list):
        raise BoxError(f"the service has answered with {_kind(value)} where a list belongs")
    return value


def text(answer: Mapping[str, Any], key: str) -> str:
    """The text at ``key``; empty if there is none.

    Raises:
        BoxError: something else is there.
    """
    value = answer.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BoxError(f'the service has answered with {_kind(value)} as "{key}", where text belongs')
    return value


def texts(answer: Mapping[str, Any], key: str) -> list[str]:
    """The list of texts at ``key``; empty if there is none.

    Raises:
        BoxError: something else is there.
    """
    found = as_list(answer.get(key) or [])
    if not all(isinstance(one, str) for one in found):
        raise BoxError(f'the service has answered with "{key}" that are not all text')
    return found


def model[Model: pydantic.BaseModel](form: type[Model], value: Any) -> Model:
    """``value`` as a ``form``.

    Raises:
        BoxError: it is no such thing.
    """
    try:
        return form.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BoxError(
            f"the service has answered with something that is no {form.__name__}: {where}: {first['msg']}"
        ) from None


def error_from(status: int, body: bytes) -> BoxError:
    """The error that an answer with ``status`` stands for."""
    message, code, answer = _said(body)
    if 300 <= status < 400:
        return BoxError(
            f"the service has answered with a redirect ({status}), which is not followed; "
            "give the address that it leads to as base_url",
            status,
        )
    message = message or f"the service has answered with status {status}"
    if code == "policy_invalid":
        return PolicyValidationError(message, status, code=code, errors=_issues(answer.get("issues")))
    if code is None and status == 403:  # of something on the way, which says no more than that
        return BoxAuthError(message, status)
    kind = _OF_CODES.get(code or "") or _OF_STATUSES.get(status, BoxError)
    return kind(message, status, code=code)


def printable(message: str) -> str:
    """The service's words, in part a stranger's, so that no terminal obeys them."""
    cut = message if len(message) <= _MOST_SHOWN else f"{message[:_MOST_SHOWN]}..."
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cut)


def _said(body: bytes) -> tuple[str, str | None, dict[str, Any]]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "", None, {}
    if not isinstance(answer, dict):
        return "", None, {}
    error = answer.get("error")
    if isinstance(error, dict):  # what lies beside the boxes in a service puts it one level down
        answer = error
        error = answer.get("message")
    code = answer.get("code")
    message = printable(error) if isinstance(error, str) else ""
    return message, code if isinstance(code, str) else None, answer


def _issues(found: Any) -> list[PolicyIssueDict]:
    issues = []
    for issue in found if isinstance(found, list) else []:
        location, message = (
            (issue.get(key) for key in ("location", "message")) if isinstance(issue, dict) else (0, 0)
        )
        if isinstance(location, list) and isinstance(message, str):
            loc = tuple(step for step in location if isinstance(step, str | int))
            issues.append(PolicyIssueDict(loc=loc, msg=printable(message), input=None))
    return issues


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
