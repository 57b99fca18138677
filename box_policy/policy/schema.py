"""The JSON Schema of a policy, for editors: made from the models, so that it can't say anything else."""

from itertools import combinations
from typing import Any

from pydantic import AliasChoices, TypeAdapter

from box_policy.policy.forms import SPELLINGS
from box_policy.policy.model import NetworkPolicy, VercelPolicy


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of every accepted form.

    It says which keys and types there are. Whether an entry is a host name or an address range, only
    the parser says.
    """
    schema: dict[str, Any] = TypeAdapter(NetworkPolicy | VercelPolicy).json_schema(mode="validation")
    definitions = schema["$defs"]
    _add_spellings(definitions["NetworkPolicy"])
    # With neither key it would be no policy of this form.
    definitions["VercelPolicy"]["minProperties"] = 1
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Network policy",
        "anyOf": [{"enum": ["allow-all", "deny-all"]}, *schema["anyOf"]],
        "$defs": definitions,
    }


def _add_spellings(definition: dict[str, Any]) -> None:
    """Add what pydantic's schema leaves out: the other spellings, and that only ``custom`` takes lists."""
    properties = definition["properties"]
    lists: list[str] = []
    rules: list[dict[str, Any]] = []
    for name, field in NetworkPolicy.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            spellings = SPELLINGS[name]
            lists += spellings
            for spelling in spellings:
                properties[spelling] = properties[name] | {"title": spelling}
            rules += ({"not": {"required": list(pair)}} for pair in combinations(spellings, 2))
    definition["allOf"] = [
        {
            "if": {"properties": {"mode": {"const": "custom"}}},
            "else": {"properties": {spelling: {"type": "null"} for spelling in lists}},
        },
        *rules,
    ]
