"""Keyword arguments: none is ignored."""

from typing import Any

import pytest

from box_policy import BoxError, BoxUnsupportedError
from tests.sdk.conftest import Client
from tests.sdk.stub import Stub


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("network_polcy", "network_policy"), ("networkpolicy", "network_policy"), ("lables", "labels")],
)
async def test_an_unknown_option_names_the_nearest(
    client: Client, stub: Stub, option: str, nearest: str
) -> None:
    for call in (client.Box.create, client.EphemeralBox.create):
        with pytest.raises(TypeError, match=f"'{option}'; did you mean '{nearest}'"):
            await client(call, **{option: "x"})
    with pytest.raises(TypeError, match=f"'{option}'; did you mean '{nearest}'"):
        await client(client.Box.from_snapshot, "s", **{option: "x"})
    assert stub.asked == []


async def test_every_call_refuses_what_it_does_not_know(client: Client, stub: Stub) -> None:
    for call, arguments in (
        (client.Box.get, ["x"]),
        (client.Box.get_by_name, ["x"]),
        (client.Box.list, []),
        (client.Box.list_env, []),
        (client.Box.delete_snapshots, []),
        (client.EphemeralBox.get_by_name, ["x"]),
    ):
        with pytest.raises(TypeError, match=r"'zzz'; there are: .*base_url"):
            await client(call, *arguments, zzz=1)
    assert stub.asked == []


async def test_two_spellings_of_one_option(client: Client, stub: Stub) -> None:
    with pytest.raises(TypeError, match="'network_policy' twice"):
        await client(client.Box.create, network_policy="allow-all", networkPolicy="deny-all")


async def test_the_camel_case_spelling_counts(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, networkPolicy={"mode": "deny-all"})
    assert stub.boxes[box.id]["network_policy"] == {"mode": "deny-all"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("agent", {"harness": "x"}),
        ("attach_headers", {"a.test": {"x": "y"}}),
        ("browser", True),
        ("git", {"token": "t"}),
        ("init_command", "true"),
        ("mcp_servers", [{"name": "x"}]),
        ("skills", ["x"]),
    ],
)
async def test_what_is_not_supported_says_so(client: Client, stub: Stub, option: str, value: object) -> None:
    with pytest.raises(BoxUnsupportedError, match=option):
        await client(client.Box.create, **{option: value})
    assert (await client(client.Box.create, **{option: None})).id == "box-1"


async def test_the_namespaces_that_are_not_supported_say_so(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    for call in (
        box.agent.run,
        box.agent.stream,
        box.browser.tab.create,
        box.git.clone,
        box.schedule.exec,
        box.skills.add,
        box.logs,
        box.list_runs,
        box.get_init_command,
        box.list_public_urls,
    ):
        with pytest.raises(BoxUnsupportedError, match="not supported: "):
            await client(call)
    with pytest.raises(BoxUnsupportedError):
        await client(client.Box.get, box.id, git_token="t")
    assert box.model_config == {"harness": None, "model": None}


@pytest.mark.parametrize("timeout", [0, -1, "60", True, float("nan"), float("inf")])
async def test_a_timeout_is_a_time(client: Client, stub: Stub, timeout: Any) -> None:
    with pytest.raises(BoxError, match="milliseconds"):
        await client(client.Box.create, timeout=timeout)
    box = await client(client.Box.create, timeout=None)
    with pytest.raises(BoxError, match="milliseconds"):
        await client(box.exec.command, "true", timeout=timeout)


async def test_what_a_creation_sends(client: Client, stub: Stub) -> None:
    options = {
        "name": "n",
        "labels": ["l"],
        "runtime": "python",
        "size": "large",
        "ttl": 60,
        "keep_alive": True,
    }
    box = await client(client.Box.create, **options, env={"A": "1"}, debug=True)
    assert stub.asked[0].body == options | {"env_vars": {"A": "1"}}
    assert (box.id, box.size, box.keep_alive) == ("box-1", "large", True)
    with pytest.raises(BoxError, match="Keep-alive boxes cannot be paused"):
        await client(box.pause)
    ephemeral = await client(client.EphemeralBox.create, ttl=60)
    assert stub.asked[-1].body == {"ttl": 60, "ephemeral": True}
    assert ephemeral.expires_at == 1_060
    await client(client.Box.from_snapshot, "s1", network_policy="deny-all")
    assert stub.asked[-1].path == "/v2/box/from-snapshot"
    assert stub.asked[-1].body == {"snapshot_id": "s1", "network_policy": {"mode": "deny-all"}}


async def test_a_deletion_that_names_nothing_is_refused(client: Client, stub: Stub) -> None:
    for ids in ([], "", " ", [""], None, ["a", ""]):
        with pytest.raises(BoxError, match="box_ids"):
            await client(client.Box.delete_boxes, box_ids=ids)
    for ids in ([], ""):
        with pytest.raises(BoxError, match="snapshot_ids"):
            await client(client.Box.delete_snapshots, snapshot_ids=ids)
    assert stub.asked == []
    await client(client.Box.delete_snapshots)
    assert (stub.asked[-1].query, stub.asked[-1].body) == ({"all": "true"}, {})
    await client(client.EphemeralBox.delete_snapshots, snapshot_ids="a")
    assert (stub.asked[-1].query, stub.asked[-1].body) == ({}, {"ids": ["a"]})
