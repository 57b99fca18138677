"""Arguments of a wrong type are refused in the caller's own words, and nothing is sent."""

import re
from pathlib import Path
from typing import Any

import pytest

from box_policy import BoxError
from box_policy.sdk import values
from tests.sdk.conftest import Client
from tests.sdk.stub import Answer, Stub

ENVIRONMENTS: list[tuple[Any, str]] = [
    (["A=1"], "env is a dict of strings.*; not a list"),
    ("A=1", "env is a dict of strings.*; not a str"),
    ({"A": 80_80}, "env is a dict of strings.*; the value of 'A' is an int"),
    ({"A": None}, "env is a dict of strings.*; the value of 'A' is a NoneType"),
    ({1: "a"}, "env is a dict of strings.*; the key 1 is an int"),
]


@pytest.mark.parametrize(("env", "message"), ENVIRONMENTS)
async def test_variables(client: Client, stub: Stub, env: Any, message: str) -> None:
    box = await client(client.Box.create)
    for call, arguments, options in (
        (client.Box.create, [], {}),
        (client.EphemeralBox.create, [], {}),
        (box.exec.command, ["true"], {}),
        (box.exec.stream, ["true"], {}),
        (box.exec.code, [], {"code": "1", "lang": "js"}),
        (box.exec.stream_code, [], {"code": "1", "lang": "js"}),
    ):
        with pytest.raises(BoxError, match=message):
            await client(call, *arguments, **options, env=env)
    with pytest.raises(BoxError, match=message.replace("env", "vars")):
        await client(client.Box.set_all_env, env)
    with pytest.raises(BoxError, match="value is a string; not an int"):
        await client(client.Box.set_env, "A", 1)
    assert len(stub.asked) == 1


def test_a_value_of_a_variable_is_not_shown() -> None:
    with pytest.raises(BoxError) as raised:
        values.environment({"TOKEN": b"secret"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("env", [{"A": "1", "B": ""}, ["A=1", "B="], ("A=1", "B=")])
def test_a_session_s_variables_may_be_a_mapping(env: Any) -> None:
    assert values.session_environment(env) == ["A=1", "B="]
    assert values.session_environment(None) is None


async def test_a_session_s_arguments(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    for options, message in (
        ({"cmd": "x", "env": "A=1"}, "env is a dict of strings.*or a list"),
        ({"cmd": "x", "env": {"A": 1}}, "the value of 'A' is an int"),
        ({"cmd": ["ls"]}, "cmd is a string; not a list"),
        ({"argv": "ls -l"}, r'argv is a list of strings.*\["ls", "-l"\]'),
        ({"argv": ["ls", 1]}, "argv is a list of strings"),
    ):
        with pytest.raises(BoxError, match=message):
            await client(box.exec.session, **options)
    assert len(stub.asked) == 1


@pytest.mark.parametrize("command", [["ls"], None, b"ls"])
async def test_a_command(client: Client, stub: Stub, command: Any) -> None:
    box = await client(client.Box.create)
    for call in (box.exec.command, box.exec.stream):
        with pytest.raises(BoxError, match=r"command is a string: .*exec\.session\(argv=\.\.\.\)"):
            await client(call, command)
    assert len(stub.asked) == 1


async def test_code(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    for call in (box.exec.code, box.exec.stream_code):
        for lang in ("ruby", "Python", None, ["js"]):
            with pytest.raises(BoxError, match=f"lang is one of js, ts, python; not {re.escape(repr(lang))}"):
                await client(call, code="1", lang=lang)
        with pytest.raises(BoxError, match="code is a string; not an int"):
            await client(call, code=1, lang="js")
    assert len(stub.asked) == 1


@pytest.mark.parametrize("labels", ["ci", ["ci", 1], {"ci": 1}, 5])
async def test_labels(client: Client, stub: Stub, labels: Any) -> None:
    for call in (client.Box.create, client.EphemeralBox.create):
        with pytest.raises(BoxError, match="labels is a list of strings"):
            await client(call, labels=labels)
    assert stub.asked == []


@pytest.mark.parametrize("name", ["delete_on_exit", "keep_alive", "debug"])
async def test_truth_values(client: Client, stub: Stub, name: str) -> None:
    wrong: list[Any] = ["false", 0, 1, "yes", []]
    for value in wrong:
        with pytest.raises(BoxError, match=f"{name} is True or False; not {re.escape(repr(value))}"):
            await client(client.Box.create, **{name: value})
        if name != "keep_alive":
            with pytest.raises(BoxError, match=f"{name} is True or False"):
                await client(client.Box.get, "x", **{name: value})
    assert stub.asked == []
    await client(client.Box.create, **{name: None})


@pytest.mark.parametrize("content", [b"x", bytearray(b"x"), memoryview(b"x")])
async def test_bytes_in_place_of_text(client: Client, stub: Stub, content: Any) -> None:
    box = await client(client.Box.create)
    with pytest.raises(BoxError, match=r'content is a string; for bytes .*encoding="base64"'):
        await client(box.files.write, path="x", content=content)
    with pytest.raises(BoxError, match="content is a string; not an int"):
        await client(box.files.write, path="x", content=5)
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"path": "a", "destination": "b"}, "not a dict"),
        ("a", "not a str"),
        (["a"], "entry 0 is a str"),
        ([{"path": "a"}], "entry 0 has the keys 'path'"),
        ([{"src": "a", "destination": "b"}], "entry 0 has the keys 'src', 'destination'"),
        ([{}], "entry 0 has the keys none"),
        ([{"path": 1, "destination": "b"}], "those of entry 0 are not"),
        ([{"path": "a", "destination": b"b"}], "those of entry 0 are not"),
    ],
)
async def test_uploads(client: Client, stub: Stub, files: Any, message: str) -> None:
    box = await client(client.Box.create)
    with pytest.raises(BoxError, match=f'list of .*"path".*"destination".*{message}'):
        await client(box.files.upload, files)
    assert len(stub.asked) == 1


async def test_a_local_path_may_be_a_path_object(client: Client, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    stub.on("POST", ".*/files/upload", lambda _: Answer({}))
    box = await client(client.Box.create)
    await client(box.files.upload, [{"path": tmp_path / "one", "destination": "a"}])
    assert b"1" in stub.asked[-1].content
