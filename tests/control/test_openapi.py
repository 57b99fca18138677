"""The API's own description: valid, complete, and what the API does."""

import ast
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from box_policy.audit.records import Event, Outcome, PolicyRecord, Protocol
from box_policy.control.api import make_app
from box_policy.control.http.answers import ERRORS, Answering
from box_policy.control.http.openapi import document
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from tests.control.conftest import BOX, Control, World, record

PACKAGE = Path(__file__).parents[2] / "box_policy"


def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of one of the document's schemas."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document("1")["components"]}
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def operations() -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, item in document("1")["paths"].items()
        for method in item
        if method != "parameters"
    ]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


def test_every_reference_leads_somewhere() -> None:
    schemas = document("1")["components"]["schemas"]
    found = set(references(document("1")))
    assert found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(schemas)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_error_is_described() -> None:
    """Each code that the source names is in the table, and each of the table is of use, and documented.

    But not those with a status of their own, which are not the control API's.
    """
    named = set()
    for path in (PACKAGE / "control").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ApiError":
                assert isinstance(node.args[0], ast.Constant), "a code is written out"
                if any(keyword.arg == "status" for keyword in node.keywords):
                    continue
                named.add(node.args[0].value)
    assert named == set(ERRORS)
    described = json.dumps(document("1"))
    undescribed = {code for code in ERRORS if f'"{code}"' not in described}
    assert undescribed == {"not_found", "method_not_allowed"}, "of no operation that there is"


@pytest.mark.parametrize(
    "policy",
    [
        "deny-all",
        {"mode": "custom", "allowedDomains": ["x.test"]},
        {"allow": {"x.test": []}, "subnets": {"deny": ["10.0.0.0/8"]}},
    ],
)
def test_a_policy_of_every_form_is_one(policy: object) -> None:
    validator("Policy").validate(policy)
    validator("CanonicalPolicy").validate(NetworkPolicy.parse(policy).canonical())
    assert not validator("Policy").is_valid({"mode": "custom", "domains": []})


def test_records_are_as_described() -> None:
    full = record(
        rule="allowed_domains: *.x.test", name="a.x.test", claimed_address="192.0.2.1", claimed_port=443,
        resolved=("192.0.2.1",), dialled="192.0.2.1", mismatch=True, ech=True, detail="d",
        event=Event.END, protocol=Protocol.HTTP, reason=Reason.CLOSED, bytes_up=1, bytes_down=2, duration=0.5,
    )  # fmt: skip
    for each in (record(), full):
        validator("Record").validate(json.loads(each.as_json()))
    assert set(full.as_dict()) == set(document("1")["components"]["schemas"]["Record"]["properties"])
    for outcome in Outcome:
        change = PolicyRecord(box="b", generation=1, outcome=outcome, source="control", detail="d")
        validator("PolicyRecord").validate(json.loads(change.as_json()))


@pytest.mark.parametrize(("method", "path"), operations())
async def test_every_operation_is_there(control: Control, method: str, path: str) -> None:
    control.world.stream.close()
    response = await control.client.request(method, path.format(box=BOX))
    assert response.status_code in (200, 415)


async def test_no_operation_is_missing(world: World) -> None:
    app = make_app(world.backend)
    routes = {
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert routes == set(operations())


def _described_api() -> schemathesis.schemas.BaseSchema:
    world = World()
    world.store.create("default", NetworkPolicy.parse("deny-all"), source="test")  # the document's example
    world.stream.close()  # so that streams of records end
    return schemathesis.openapi.from_asgi("/openapi.json", Answering(make_app(world.backend)))


@_described_api().parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_does_what_it_says(case: schemathesis.Case[Any]) -> None:
    """Requests made up for every operation, good and bad; each answer is one that is described."""
    # Which texts are host names or address ranges only the parser says: what fits the schema may be refused.
    case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])
