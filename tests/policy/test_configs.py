"""The example policies, and the schema that editors use."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from box_policy.policy.document import parse_document
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.policy.schema import json_schema

from .test_model import DOCUMENTED

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA = CONFIGS / "policy.schema.json"

KINDS = {
    "allow-all.yaml": "allow-all",
    "camel-case.json": "allowlist",
    "cidr.yaml": "allowlist",
    "deny-all.yaml": "deny-all",
    "denylist.yaml": "denylist",
    "npm-github.yaml": "allowlist",
    "python-packages.yaml": "allowlist",
    "vercel.json": "allowlist",
    "vercel.yaml": "allowlist",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_example_is_a_policy_and_follows_the_schema(name: str, kind: str) -> None:
    text = (CONFIGS / name).read_text()
    assert parse_document(text, name=name).kind == kind
    jsonschema.validate(yaml.safe_load(text), json_schema())


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith(".yaml")])
def test_yaml_examples_name_their_schema_and_explain_themselves(name: str) -> None:
    first, second = (CONFIGS / name).read_text().splitlines()[:2]
    assert first == "# yaml-language-server: $schema=policy.schema.json"
    assert second.startswith("# ")


def test_the_schema_in_the_repository_is_that_of_the_models() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), (
        "write it anew: python -c 'import json; from box_policy.policy.schema import json_schema; "
        "print(json.dumps(json_schema(), indent=2))' > configs/policy.schema.json"
    )


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("written", [written for written, _ in DOCUMENTED])
def test_the_schema_accepts_every_documented_form(written: object) -> None:
    jsonschema.validate(written, json_schema())


REFUSED: list[Any] = [
    *("custom", "", None, [], {}),
    {"mode": "open"},
    {"mode": "custom", "extra": 1},
    {"mode": "custom", "allowed_domains": "x.test"},
    {"mode": "custom", "allowed_domains": [1]},
    {"mode": "allow-all", "allowed_domains": []},
    {"mode": "deny-all", "deniedCIDRs": ["1.1.1.0/24"]},
    {"mode": "custom", "allowed_domains": [], "allowedDomains": []},
    {"mode": "custom", "allowedCidrs": [], "allowedCIDRs": []},
    {"mode": "custom", "allow": []},
    {"allow": {"x.test": [{"transform": []}]}},
    {"allow": [], "subnets": {"allowed": []}},
]


@pytest.mark.parametrize("written", REFUSED)
def test_the_schema_refuses_what_the_parser_refuses(written: object) -> None:
    with pytest.raises(PolicyError):
        NetworkPolicy.parse(written)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, json_schema())
