"""The rooms of the package import downwards only, and the lowest floor does no input or output."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "box_policy"

FLOORS = {
    "policy": 1,
    "wire": 1,
    "audit": 2,
    "sdk": 2,
    "gate": 3,
    "control": 4,
    "sandbox": 4,
    "service": 5,
    "cli": 6,
}
ONLY = {"sdk": {"policy"}}
"""Rooms that may import less than their floor allows."""

PURE = {"policy", "wire"}
IMPURE_MODULES = {
    "aiohttp",
    "anyio",
    "asyncio",
    "ctypes",
    "dns",
    "fcntl",
    "fileinput",
    "ftplib",
    "glob",
    "http",
    "httpx",
    "io",
    "logging",
    "mitmproxy",
    "mitmproxy_rs",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "pyroute2",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "urllib.request",
    "watchfiles",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval"}


def faults(room: str, source: str, module: str) -> list[str]:
    """What a file of a room does that its floor forbids. ``module`` is the file's dotted name."""
    if room not in FLOORS:
        return [f"{module}: box_policy/{room} has no floor"]
    found = []
    for line, imported in _imports(ast.parse(source), module):
        if reason := _judge(room, imported):
            found.append(f"{module}:{line}: {reason}")
    if room in PURE:
        found += [
            f"{module}:{line}: calls {name}()" for line, name in _calls(ast.parse(source), IMPURE_CALLS)
        ]
    return found


def _judge(room: str, imported: str) -> str | None:
    parts = imported.split(".")
    if parts[0] != "box_policy":
        prefixes = {".".join(parts[: count + 1]) for count in range(len(parts))}
        impure = room in PURE and prefixes & IMPURE_MODULES
        return f"imports {imported}, which does input or output" if impure else None
    if len(parts) == 1 or parts[1] not in FLOORS:
        return None if room == "cli" else f"imports {imported}, which is the roof: only cli may"
    other = parts[1]
    if other == room:
        return None
    if FLOORS[other] >= FLOORS[room]:
        return f"imports {imported}, of floor {FLOORS[other]}, from floor {FLOORS[room]}"
    if room in ONLY and other not in ONLY[room]:
        return f"imports {imported}: {room} may import {', '.join(sorted(ONLY[room]))} alone"
    return None


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Every module imported, wherever in the file: in functions, under TYPE_CHECKING, by name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = name or ""
                if level:
                    package = module.split(".")[:-level]
                    base = ".".join([*package, *([name] if name else [])])
                if base == "box_policy":
                    yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
                else:
                    yield node.lineno, base
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def _calls(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in names:
                yield node.lineno, name


def test_every_file_keeps_to_its_floor() -> None:
    found = []
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        inside = path.relative_to(PACKAGE)
        # A package's __init__ is the module that relative imports in it count from, like any file in it.
        module = ".".join(["box_policy", *inside.with_suffix("").parts])
        found += faults(inside.parts[0], path.read_text(), module)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("policy", "import box_policy.gate.lane"),
        ("policy", "from box_policy.wire import client_hello"),
        ("wire", "from box_policy import policy"),
        ("wire", "from .. import policy"),
        ("wire", "from ..policy.domains import DomainSet"),
        ("audit", "from box_policy.sdk import Box"),
        ("sdk", "from box_policy.wire import client_hello"),
        ("sandbox", "from box_policy.control.store import Store"),
        ("gate", "def serve():\n    from box_policy.cli import main"),
        ("gate", "if TYPE_CHECKING:\n    from box_policy.control import store"),
        ("gate", "importlib.import_module('box_policy.cli.main')"),
        ("gate", "import box_policy"),
        ("gate", "from box_policy import Box"),
        ("attic", ""),
        ("policy", "import asyncio"),
        ("policy", "import os.path"),
        ("policy", "from pathlib import Path"),
        ("wire", "def read():\n    import socket"),
        ("wire", "from mitmproxy.net import tls"),
        ("policy", "open('policy.yaml')"),
    ],
)
def test_a_file_that_leaves_its_floor_is_reported(room: str, source: str) -> None:
    assert len(faults(room, source, f"box_policy.{room}.sample")) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("policy", "from box_policy.policy.domains import DomainSet"),
        ("policy", "from . import domains"),
        ("policy", "import ipaddress, re"),
        ("policy", "import ioports"),
        ("sdk", "from box_policy.policy import NetworkPolicy"),
        ("gate", "import asyncio, socket\nfrom box_policy import policy, wire, audit"),
        ("service", "from box_policy.control.store import Store"),
        ("cli", "from box_policy import __version__\nfrom box_policy.sandbox import launcher"),
    ],
)
def test_a_file_that_keeps_to_it_is_not(room: str, source: str) -> None:
    assert faults(room, source, f"box_policy.{room}.sample") == []
