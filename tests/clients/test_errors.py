"""What the hosted product's Python clients tell when something can't be had."""

from typing import Any

import pytest
from upstash_box import BoxError

from tests.clients.conftest import Client, Make
from tests.lab import Lab


async def failing(client: Client, method: Any, *arguments: Any, **options: Any) -> tuple[int | None, str]:
    with pytest.raises(BoxError) as error:
        await client(method(*arguments, **options))
    return error.value.status_code, str(error.value)


async def test_a_wrong_key(client: Client) -> None:
    status, text = await failing(client, client.Box.create, api_key="wrong" * 8)
    assert status == 401
    assert "X-Box-Api-Key" in text


async def test_an_unknown_box(client: Client, make: Make) -> None:
    status, text = await failing(client, client.Box.get, "nobody")
    assert (status, text) == (404, "there is no box 'nobody'")
    box = await make()
    await client(client.Box.delete_boxes(box_ids=box.id))
    for method, arguments in (
        (box.exec.command, ("true",)),
        (box.files.read, ("file",)),
        (box.update_network_policy, ({"mode": "deny-all"},)),
        (box.get_status, ()),
    ):
        status, text = await failing(client, method, *arguments)
        assert status == 404
        assert box.id in text


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"mode": "bogus"}, "bogus"),
        ({"mode": "custom", "allowed_domains": ["ok.test", "https://no.test/path"]}, "https://no.test/path"),
        ({"mode": "custom", "allowed_domains": ["a.*.test"]}, "a.*.test"),
        ({"mode": "custom", "allowed_cidrs": ["10.0.0.1/8"]}, "10.0.0.1/8"),
        ({"mode": "custom", "denied_cidrs": ["300.0.0.0/8"]}, "300.0.0.0/8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_policy_names_the_entry(
    client: Client, make: Make, policy: object, named: str
) -> None:
    status, text = await failing(client, client.Box.create, network_policy=policy)
    assert status == 422
    assert named in text
    assert await client(client.Box.list()) == []
    box = await make()
    assert (await failing(client, box.update_network_policy, policy))[0] == 422


@pytest.mark.parametrize(
    ("config", "status", "named"),
    [
        ({"runtime": "cobol"}, 422, "cobol"),
        ({"runtime": "node-alpine"}, 422, "node-alpine"),
        ({"size": "gigantic"}, 422, "gigantic"),
        ({"labels": ["a", "b", "c", "d", "e", "f"]}, 422, "labels"),
        ({"name": "no/name"}, 422, "name"),
        ({"browser": True}, 501, "browser"),
        ({"init_command": "echo hello", "keep_alive": True}, 501, "init_command"),
        ({"skills": ["a/b/c"]}, 501, "skills"),
        ({"git": {"token": "t"}}, 501, "github_token"),
        ({"attach_headers": {"a.test": {"X-Key": "secret"}}}, 501, "attach_headers"),
        ({"mcp_servers": [{"name": "m", "url": "https://m.test/"}]}, 501, "mcp_servers"),
        ({"agent": {"harness": "claude-code", "model": "anthropic/m"}}, 501, "agent"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_a_box_cannot_be_made_with(
    client: Client, config: dict[str, Any], status: int, named: str
) -> None:
    found, text = await failing(client, client.Box.create, **config)
    assert found == status
    assert named in text
    assert "secret" not in text
    assert await client(client.Box.list()) == []


async def test_a_name_is_given_once(client: Client, make: Make) -> None:
    await make(name="mine")
    status, text = await failing(client, client.Box.create, name="mine")
    assert (status, text) == (409, "there is a box named 'mine' already")


async def test_what_this_service_does_not_have(client: Client, make: Make, lab: Lab) -> None:
    box = await make()
    box._is_agent_configured = True  # else the client itself refuses, and doesn't ask
    for method, options in (
        (box.git.status, {}),
        (box.git.clone, {"repo": "https://evil.test/x"}),
        (box.agent.run, {"prompt": "hello"}),
        (box.schedule.list, {}),
        (box.schedule.exec, {"cron": "* * * * *", "command": ["true"]}),
        (box.skills.add, {"skill_id": "a/b/c"}),
        (box.browser.list_tabs, {}),
        (box.logs, {}),
        (box.list_runs, {}),
        (box.get_public_url, {"port": 8080}),
        (box.get_init_command, {}),
        (box.configure_model, {"model": "anthropic/m"}),
    ):
        status, text = await failing(client, method, **options)
        assert (status, "does not have" in text) == (501, True), (method, text)
    assert lab.packets() == []
