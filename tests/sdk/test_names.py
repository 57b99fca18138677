"""The public names, and that they are the official client's."""

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import upstash_box
import upstash_box.types

import box_policy
from box_policy import sdk

CLASSES = [
    f"{prefix}{name}"
    for prefix in ("", "Async")
    for name in (
        "Box",
        "EphemeralBox",
        "Run",
        "StreamRun",
        "ExecNamespace",
        "FilesNamespace",
        "LabelsNamespace",
        "ExecSessionHandle",
    )
]
TYPES = [
    "BoxConfig",
    "EphemeralBoxConfig",
    "BoxGetOptions",
    "BoxConnectionOptions",
    "ListOptions",
    "AllowDenyNetworkPolicy",
    "CustomNetworkPolicy",
    "UploadFileEntry",
]
MODELS = ["Snapshot", "BoxData", "EphemeralBoxData", "FileEntry", "FileStat"]
DATACLASSES = ["RunCost", "ExecOutputChunk", "ExecExitChunk"]
OF_AGENTS = {
    "agent_id",
    "agent",
    "browser",
    "clone_repo",
    "customer_id",
    "enabled_skills",
    "model",
    "session_id",
    "total_compute_cost_usd",
    "total_cpu_ns",
    "total_input_tokens",
    "total_output_tokens",
    "total_prompts",
    "total_token_cost_usd",
    "use_managed_key",
}
"""Fields of the hosted product's own; here they are kept if a service sends them."""


def public(cls: Any) -> dict[str, Any]:
    return {
        name: inspect.getattr_static(cls, name)
        for name in dir(cls)
        if not name.startswith("_") or name in ("__aenter__", "__aiter__", "__enter__", "__iter__")
    }


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_and_parameter_of_theirs_is_here(name: str) -> None:
    theirs, ours = getattr(upstash_box, name), getattr(box_policy, name)
    for method, value in public(theirs).items():
        mine = inspect.getattr_static(ours, method, None)
        assert type(mine) is type(value), f"{name}.{method} is {mine!r} here"
        if isinstance(value, classmethod):
            value, mine = value.__func__, mine.__func__
        if not inspect.isfunction(value):
            continue
        kind = "cancel", "logs"
        assert method in kind or inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(value)
        found = inspect.signature(mine).parameters
        for position, parameter in enumerate(inspect.signature(value).parameters.values()):
            here = found.get(parameter.name)
            if parameter.kind is parameter.VAR_KEYWORD:
                here = next((one for one in found.values() if one.kind is one.VAR_KEYWORD), None)
            assert here is not None, f"{name}.{method} has no {parameter.name}"
            assert (here.kind, here.default) == (parameter.kind, parameter.default), f"{name}.{method}"
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                assert list(found)[position] == parameter.name, f"{name}.{method}"


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_here_besides_can_be_left_out(name: str) -> None:
    theirs, ours = getattr(upstash_box, name), getattr(box_policy, name)
    for method, value in public(theirs).items():
        mine = inspect.getattr_static(ours, method)
        if isinstance(value, classmethod):
            value, mine = value.__func__, mine.__func__
        if inspect.isfunction(value):
            known = inspect.signature(value).parameters
            for parameter in inspect.signature(mine).parameters.values():
                optional = parameter.default is not parameter.empty or parameter.kind in (
                    parameter.VAR_KEYWORD,
                    parameter.VAR_POSITIONAL,
                )
                assert parameter.name in known or optional, f"{name}.{method}: {parameter.name}"


@pytest.mark.parametrize("name", TYPES)
def test_every_option_of_theirs_is_here(name: str) -> None:
    theirs, ours = getattr(upstash_box.types, name), getattr(box_policy, name)
    assert set(theirs.__annotations__) <= ours.__optional_keys__ | ours.__required_keys__
    assert ours.__required_keys__ <= theirs.__required_keys__


@pytest.mark.parametrize("name", MODELS)
def test_every_field_of_theirs_is_here(name: str) -> None:
    theirs, ours = getattr(upstash_box, name).model_fields, getattr(box_policy, name).model_fields
    assert set(theirs) - OF_AGENTS <= set(ours)
    for field in set(theirs) - OF_AGENTS:
        assert (ours[field].is_required(), ours[field].default) == (
            theirs[field].is_required(),
            theirs[field].default,
        )


@pytest.mark.parametrize("name", DATACLASSES)
def test_data_classes_are_made_alike(name: str) -> None:
    theirs, ours = getattr(upstash_box, name), getattr(box_policy, name)
    found = inspect.signature(ours).parameters
    for position, parameter in enumerate(inspect.signature(theirs).parameters.values()):
        assert list(found)[position] == parameter.name
        assert found[parameter.name].default == parameter.default


def test_the_attributes_of_a_box() -> None:
    for name in ("id", "size", "keep_alive", "exec", "files", "labels"):
        assert f"self.{name}" in inspect.getsource(box_policy.Box.__init__)
        assert f"self.{name}" in inspect.getsource(upstash_box.Box.__init__)


def test_every_option_has_a_line_of_help() -> None:
    unsupported = {"agent", "attach_headers", "browser", "git", "init_command", "mcp_servers", "skills"}
    spellings = {"apiKey", "baseUrl", "networkPolicy"}
    for create in (box_policy.Box.create, box_policy.AsyncBox.create):
        said = re.findall(r"^ {4,12}(\w+): .*", inspect.getdoc(create) or "", re.MULTILINE)
        assert box_policy.BoxConfig.__optional_keys__ - unsupported - spellings <= set(said)


def test_every_exported_name_is_there() -> None:
    assert set(box_policy.__all__) == {*sdk.__all__, "__version__"}
    for name in sdk.__all__:
        assert getattr(box_policy, name) is getattr(sdk, name)
    assert {"Box", "__version__"} <= set(dir(box_policy))
    with pytest.raises(AttributeError, match="no attribute 'Bx'"):
        _ = box_policy.Bx  # type: ignore[attr-defined]


def test_the_package_alone_costs_nothing() -> None:
    code = "import sys, box_policy; print(*(m for m in ('typing', 'httpx', 'pydantic') if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({sys.path[0]!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    assert (found.stdout.strip(), found.stderr) == ("", "")
