"""The API's own description (OpenAPI 3.1), served at ``/openapi.json``."""

from functools import cache
from typing import Any, Final

from box_policy.audit.records import Event, Protocol
from box_policy.audit.stream import EVENT_ID
from box_policy.control.http import schemas
from box_policy.control.http.answers import ERRORS
from box_policy.control.http.queries import MAX_BACKLOG, MAX_VALUES, NAME
from box_policy.gate.mode import BOX_ID
from box_policy.policy.reasons import Reason

type Description = dict[str, Any]

_EVERYWHERE: Final = (
    "http_invalid",
    "unauthorized",
    "origin_refused",
    "peer_refused",
    "host_refused",
    "internal_error",
)
_BODY: Final = (
    "body_invalid",
    "query_invalid",
    "precondition_invalid",
    "body_timeout",
    "body_too_large",
    "busy",
    "media_type_unsupported",
)
_MORE: Final[dict[int, Description]] = {
    412: {"generation": {"type": "integer", "minimum": 1}},
    422: {"issues": schemas.reference("Issues")},
}
"""What an error of that status says besides its code and message."""
_HEADERS: Final[dict[int, str]] = {401: "WWW-Authenticate", 503: "Retry-After"}


@cache
def document(version: str) -> Description:
    """The description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "box-policy control API",
            "version": version,
            "description": "Which hosts boxes may reach: policies, verdicts and records of a running gate.",
        },
        "security": [{"token": []}, {"key": []}, {}],
        "paths": {
            "/v1/boxes": {"get": _operation("List the boxes.", "Boxes")},
            "/v1/boxes/{box}/network-policy": _policy_path(),
            "/v1/status": {"get": _operation("How the gate is doing.", "Status")},
            "/v1/explain": {"post": _explain()},
            "/v1/decisions": {"get": _decisions()},
            "/healthz": {"get": _operation("Is the process alive?", _state("ok"))},
            "/readyz": {"get": _readiness()},
            "/metrics": {"get": _operation("Numbers for Prometheus.", "", media_type="text/plain")},
            "/openapi.json": {"get": _operation("This document.", {"type": "object"})},
        },
        "components": {
            "schemas": schemas.components(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Box-Api-Key"},
            },
        },
    }


def _operation(
    summary: str,
    answer: str | Description,
    *errors: str,
    media_type: str = "application/json",
    **more: Any,
) -> Description:
    """An operation that answers with a schema, by name or as such, or with one of the errors."""
    schema = (
        (schemas.reference(answer) if answer else {"type": "string"}) if isinstance(answer, str) else answer
    )
    responses: dict[str, Description] = {"200": _response("Done.", schema, media_type)}
    codes: dict[int, list[str]] = {}
    for code in (*_EVERYWHERE, *errors):
        codes.setdefault(ERRORS[code][0], []).append(code)
    for status in sorted(codes):
        meaning = " ".join(f"`{code}`: {ERRORS[code][1]}" for code in codes[status])
        responses[str(status)] = _response(
            meaning, schemas.error(codes[status], **_MORE.get(status, {})), header=_HEADERS.get(status)
        )
    return {"summary": summary, "responses": responses, **more}


def _response(
    meaning: str, schema: Description, media_type: str = "application/json", *, header: str | None = None
) -> Description:
    response: Description = {"description": meaning, "content": {media_type: {"schema": schema}}}
    if header is not None:
        response["headers"] = {header: {"required": True, "schema": {"type": "string"}}}
    return response


def _policy_path() -> Description:
    get = _operation("The policy in force, in canonical form.", "CanonicalPolicy", "box_unknown")
    put = _operation(
        "Put a policy in force.",
        "PolicyInForce",
        *_BODY,
        "box_unknown",
        "generation_stale",
        "policy_invalid",
        description="Answered when it is in force, and what it no longer allows has been cut. The policy "
        "that is in force already changes nothing, not even the generation.",
        parameters=[
            _parameter(
                "If-Match",
                {"type": "string", "maxLength": 1000},
                'The generations that the change is meant for: "3", or * for whichever is in force.',
                where="header",
                example="*",
            )
        ],
        requestBody=_body("Policy"),
    )
    for operation in (get, put):
        operation["responses"]["200"]["headers"] = {
            "ETag": {
                "required": True,
                "description": "The generation, in quotes.",
                "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
            }
        }
    box = _parameter("box", schemas.reference("BoxId"), "The box's id.", where="path", required=True)
    return {"parameters": [box], "get": get, "put": put}


def _explain() -> Description:
    return _operation(
        "What would the gate say?",
        "Explanation",
        *_BODY,
        "box_unknown",
        "request_invalid",
        description="By the policy of a box, or one that is sent along. Nothing is connected to; with "
        "`resolve`, the gate resolves names that are allowed and judges their addresses.",
        requestBody=_body("Question"),
    )


def _decisions() -> Description:
    def some(name: str, values: Description, meaning: str) -> Description:
        return _parameter(name, {"type": "array", "items": values, "maxItems": MAX_VALUES}, meaning)

    return _operation(
        "Follow decisions as they are made.",
        "StreamEvent",
        "query_invalid",
        "too_many_streams",
        media_type="text/event-stream",
        description="Server-sent events, described one by one. `lost`: so many records could not be shown; "
        "null if nobody knows how many. A record passes if it has one of the values of each kind given.",
        parameters=[
            some("box", {"type": "string", "pattern": f"^{BOX_ID}$"}, "The box."),
            some("event", {"enum": [*Event]}, "The kind of record."),
            some("protocol", {"enum": [*Protocol]}, "The protocol."),
            some("verdict", {"enum": ["allow", "deny"]}, "The verdict."),
            some("reason", {"enum": [*Reason]}, "The reason."),
            some("name", {"type": "string", "pattern": f"^{NAME}$"}, "The name, or *. and what it ends in."),
            _parameter(
                "backlog",
                {"type": "integer", "minimum": 0, "maximum": MAX_BACKLOG},
                "First the last so many records that pass.",
            ),
            _parameter("follow", {"type": "boolean"}, "false: end after what there is.", example=False),
            _parameter("last_event_id", _event_id(), "Go on behind this record; goes before backlog."),
            _parameter("Last-Event-ID", _event_id(), "The same; goes before the query.", where="header"),
        ],
    )


def _readiness() -> Description:
    operation = _operation("Does the gate serve?", _state("ready"))
    operation["responses"]["503"] = _response("Not yet.", _state("starting"))
    return operation


def _event_id() -> Description:
    return {"type": "string", "pattern": f"^({EVENT_ID})?$"}


def _state(word: str) -> Description:
    return schemas.object_of({"status": {"const": word}})


def _body(name: str) -> Description:
    return {"required": True, "content": {"application/json": {"schema": schemas.reference(name)}}}


def _parameter(
    name: str, schema: Description, meaning: str, *, where: str = "query", **more: Any
) -> Description:
    return {"name": name, "in": where, "description": meaning, "schema": schema, **more}
