"""How a program of the rig is told what to do: orders on stdin, answers on stdout, in JSON, one a line."""

import json
import sys
from collections.abc import Callable
from typing import Any


class LoadError(Exception):
    """A connection came to something else than it should."""


def obey(*orders: Callable[..., dict[str, Any]]) -> None:
    """Do what is ordered, by name, until stdin ends."""
    known = {order.__name__: order for order in orders}
    while line := sys.stdin.readline():
        print(json.dumps(carry_out(known, line)), flush=True)


def carry_out(known: dict[str, Callable[..., dict[str, Any]]], line: str) -> dict[str, Any]:
    """The answer to one order."""
    arguments: dict[str, Any] = json.loads(line)
    try:
        return known[arguments.pop("order")](**arguments)
    except (OSError, LoadError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
