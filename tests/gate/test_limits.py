"""Limits as operators write them, and as the documentation lists them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from box_policy.gate.limits import Limits

DOCUMENT = Path(__file__).parents[2] / "docs" / "boxes.md"


def test_what_is_not_given_is_as_by_default() -> None:
    assert Limits.parse([]) == Limits()
    assert Limits.parse(["connections=512", "linger=0.5"]) == Limits(connections=512, linger=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["connections"], "'connections' is not NAME=VALUE, such as connections=512"),
        (["conections=5"], "there is no limit 'conections', but verdict_timeout, "),
        (["=5"], "there is no limit ''"),
        (["connections=5", "connections=6"], "connections is given twice"),
        (["connections=many"], "connections=many: not a whole number above 0"),
        (["connections=0"], "connections=0: not a whole number above 0"),
        (["connections=-1"], "connections=-1: not a whole number above 0"),
        (["connections=1.5"], "connections=1.5: not a whole number above 0"),
        (["connections="], "connections=: not a whole number above 0"),
        (["connections=" + "9" * 5000], "not a whole number above 0"),
        (["linger=nan"], "linger=nan: not a number of seconds above 0"),
        (["linger=inf"], "linger=inf: not a number of seconds above 0"),
        (["linger=0"], "linger=0: not a number of seconds above 0"),
    ],
)
def test_what_is_wrong_is_said(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Limits.parse(given)


def test_all_are_documented_with_their_defaults() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9,]+)( s)? \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (float(value.replace(",", "")), bool(unit)) for name, value, unit in rows}
    assert documented == {
        each.name: (float(getattr(Limits(), each.name)), each.name.endswith(("timeout", "linger")))
        for each in fields(Limits)
    }
