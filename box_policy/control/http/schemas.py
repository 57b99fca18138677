"""JSON Schemas (draft 2020-12) of what the API takes and gives."""

from typing import Any, Final

from box_policy.audit.records import MAX_ADDRESSES, Event, Outcome, Protocol
from box_policy.audit.stream import EVENT_ID
from box_policy.control.http.explanations import MAX_TARGET, MAX_TARGETS
from box_policy.gate.mode import BOX_ID
from box_policy.policy.reasons import Reason
from box_policy.policy.schema import json_schema

type Schema = dict[str, Any]

_STRING: Final[Schema] = {"type": "string"}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_STRINGS: Final[Schema] = {"type": "array", "items": _STRING}


def reference(name: str) -> Schema:
    """A reference to one of the :func:`components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(required: Schema, **optional: Schema) -> Schema:
    """An object with these properties, and no others."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def error(codes: list[str], **more: Schema) -> Schema:
    """An error with one of the codes."""
    return object_of({"error": object_of({"code": {"enum": codes}, "message": _STRING} | more)})


def components() -> dict[str, Schema]:
    """Every schema that has a name."""
    policy = _relocated(json_schema())
    definitions: dict[str, Schema] = policy.pop("$defs")
    del policy["$schema"]
    generation = {"type": "integer", "minimum": 1}
    box = {
        "id": reference("BoxId"),
        "generation": generation,
        "mode": {"enum": ["allow-all", "deny-all", "custom"]},
        "kind": {"enum": ["allow-all", "deny-all", "allowlist", "denylist"]},
        "source": _STRING,
        "since": _TIME,
    }
    return definitions | {
        "BoxId": {"type": "string", "pattern": f"^{BOX_ID}$", "example": "default"},
        "Policy": policy | {"example": {"mode": "custom", "allowed_domains": ["index.example"]}},
        "CanonicalPolicy": object_of(
            {"mode": box["mode"]}, allowed_domains=_STRINGS, allowed_cidrs=_STRINGS, denied_cidrs=_STRINGS
        ),
        "PolicyInForce": object_of(
            {"box": reference("BoxId"), "generation": generation, "policy": reference("CanonicalPolicy")}
        ),
        "Boxes": object_of({"boxes": {"type": "array", "items": object_of(box)}}),
        "Status": object_of(
            {
                "version": _STRING,
                "started": _TIME,
                "uptime": _SECONDS,
                "ready": _BOOLEAN,
                "boxes": {
                    "type": "array",
                    "items": object_of(box | {"connections": _COUNT, "pending": _COUNT}),
                },
                "sources": {"type": "array", "items": _source()},
                "records_lost": _COUNT,
                "streams": _COUNT,
            }
        ),
        "Question": _question(),
        "Explanation": object_of(
            {
                "box": {"type": ["string", "null"]},
                "generation": {"type": ["integer", "null"], "minimum": 1},
                "verdicts": {"type": "array", "items": _verdict(), "minItems": 1, "maxItems": MAX_TARGETS},
            }
        ),
        "Issues": {
            "type": "array",
            "items": object_of(
                {
                    "location": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "message": _STRING,
                }
            ),
            "minItems": 1,
        },
        "Record": _record(),
        "PolicyRecord": _policy_record(),
        "SuppressedRecord": object_of(
            {
                "time": _TIME,
                "event": {"const": Event.SUPPRESSED},
                "box": _STRING,
                "records": {"type": "integer", "minimum": 1},
            }
        ),
        "Lost": object_of({"records": {"type": ["integer", "null"], "minimum": 1}}),
        "StreamEvent": _stream_event(),
    }


def _source() -> Schema:
    return object_of(
        {
            "path": _STRING,
            "state": {"enum": ["ok", "refused", "missing", "being_written"]},
            "box": {"type": ["string", "null"]},
            "error": {"type": ["string", "null"]},
            "since": _TIME,
        }
    )


def _question() -> Schema:
    target = {"type": "string", "maxLength": MAX_TARGET}
    targets = {"type": "array", "items": target, "minItems": 1, "maxItems": MAX_TARGETS}
    common = {"targets": targets}
    return {
        "oneOf": [
            object_of({"box": reference("BoxId")} | common, resolve=_BOOLEAN),
            object_of({"policy": reference("Policy")} | common, resolve=_BOOLEAN),
        ],
        "example": {
            "box": "default",
            "targets": ["https://index.example", "dns:index.example", "192.0.2.1:443"],
        },
    }


def _verdict() -> Schema:
    return object_of(
        {
            "target": _STRING,
            "allowed": _BOOLEAN,
            "reason": {"enum": [*Reason]},
            "rule": _STRING,
            "addresses": _STRINGS,
            "dropped": _STRINGS,
        }
    )


def _record() -> Schema:
    port = {"type": "integer", "minimum": 0, "maximum": 65535}
    return object_of(
        {
            "time": _TIME,
            "event": {"enum": [Event.DECISION, Event.END]},
            "connection": _COUNT,
            "box": _STRING,
            "generation": _COUNT,
            "protocol": {"enum": [*Protocol]},
            "verdict": {"enum": ["allow", "deny"]},
            "reason": {"enum": [*Reason]},
        },
        rule=_STRING,
        name=_STRING,
        claimed_address=_STRING,
        claimed_port=port,
        resolved=_STRINGS | {"maxItems": MAX_ADDRESSES},
        dialled=_STRING,
        mismatch=_BOOLEAN,
        ech=_BOOLEAN,
        detail=_STRING,
        bytes_up=_COUNT,
        bytes_down=_COUNT,
        duration=_SECONDS,
    )


def _policy_record() -> Schema:
    return object_of(
        {
            "time": _TIME,
            "event": {"const": Event.POLICY},
            "box": _STRING,
            "generation": _COUNT,
            "outcome": {"enum": [*Outcome]},
            "source": _STRING,
        },
        detail=_STRING,
    )


def _stream_event() -> Schema:
    """A server-sent event; ``data`` is JSON, and ``id`` the last one that was sent."""

    def event(names: list[str], data: str) -> Schema:
        content = {"contentMediaType": "application/json", "contentSchema": reference(data)}
        last_id = {"type": "string", "pattern": f"^{EVENT_ID}$"}
        return object_of({"id": last_id, "event": {"enum": names}, "data": {"type": "string"} | content})

    return {
        "oneOf": [
            event([Event.DECISION, Event.END], "Record"),
            event([Event.POLICY], "PolicyRecord"),
            event([Event.SUPPRESSED], "SuppressedRecord"),
            event(["lost"], "Lost"),
        ]
    }


def _relocated(schema: Any) -> Any:
    """The schema with its references pointing to where an API's description keeps such things."""
    if isinstance(schema, dict):
        return {
            key: value.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _relocated(value)
            for key, value in schema.items()
        }
    return [_relocated(value) for value in schema] if isinstance(schema, list) else schema
