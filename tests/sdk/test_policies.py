"""The network policy: what is asked for is in force, or nothing is."""

from typing import Any

import pytest

from box_policy import Box, BoxError, NetworkPolicyInput, PolicyValidationError
from box_policy.policy.model import NetworkPolicy
from box_policy.sdk.policies import requested
from tests.sdk.conftest import Client
from tests.sdk.stub import Answer, Asked, Stub

CUSTOM: dict[str, object] = {"mode": "custom", "allowed_domains": ["api.github.com", "*.index.example"]}
FORMS: list[tuple[object, dict[str, object]]] = [
    ({"mode": "allow-all"}, {"mode": "allow-all"}),
    ({"mode": "deny-all"}, {"mode": "deny-all"}),
    ("deny-all", {"mode": "deny-all"}),
    (CUSTOM, CUSTOM),
    ({"mode": "custom", "allowedDomains": ["a.test"]}, {"mode": "custom", "allowed_domains": ["a.test"]}),
    (
        {"mode": "custom", "allowed_domains": ["A.test."], "allowed_cidrs": None},
        {"mode": "custom", "allowed_domains": ["a.test"]},
    ),
    (
        {"allow": ["a.test"], "subnets": {"deny": ["192.0.2.1"]}},
        {"mode": "custom", "allowed_domains": ["a.test"], "denied_cidrs": ["192.0.2.1/32"]},
    ),
    ({"allow": {"a.test": []}}, {"mode": "custom", "allowed_domains": ["a.test"]}),
    (NetworkPolicy.parse(CUSTOM), CUSTOM),
]


@pytest.mark.parametrize(("form", "canonical"), FORMS)
async def test_every_form_is_sent_and_shown_in_its_canonical_form(
    client: Client, stub: Stub, form: object, canonical: object
) -> None:
    box = await client(client.Box.create, network_policy=form)
    assert stub.asked[0].body == {"network_policy": canonical}
    assert box.network_policy == canonical
    assert await client(box.update_network_policy, form) == canonical
    assert stub.asked[-1].body == canonical


@pytest.mark.parametrize("options", [{}, {"network_policy": None}])
async def test_a_box_without_a_policy_has_the_service_s_default(
    client: Client, stub: Stub, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    box = await client(client.Box.create, **options)
    assert stub.asked[0].body == {}
    print(box.network_policy)
    assert capsys.readouterr().out == "{'mode': 'allow-all'}\n"


BAD: list[tuple[object, tuple[str | int, ...]]] = [
    ({}, ()),
    ({"mode": "bogus"}, ("mode",)),
    ({"mode": "custom", "allowed_domains": ["ok.test", "https://x.test"]}, ("allowed_domains", 1)),
    ({"mode": "custom", "allow_domains": ["x.test"]}, ("allow_domains",)),
    ({"mode": "deny-all", "allowed_domains": ["x.test"]}, ("allowed_domains",)),
    ([], ()),
    (5, ()),
]


@pytest.mark.parametrize(("policy", "location"), BAD)
async def test_a_bad_policy_is_refused_before_anything_is_sent(
    client: Client, stub: Stub, policy: object, location: tuple[str | int, ...]
) -> None:
    box = await client(client.Box.create)
    sent = len(stub.asked)
    for call in (client.Box.create, client.EphemeralBox.create):
        with pytest.raises(PolicyValidationError) as raised:
            await client(call, network_policy=policy)
        assert [error["loc"] for error in raised.value.errors] == [location]
        assert raised.value.errors[0]["msg"] in str(raised.value)
    with pytest.raises(ValueError, match="network policy"):
        await client(box.update_network_policy, policy)
    with pytest.raises(PolicyValidationError):
        await client.enter(box.temporary_network_policy(policy))
    assert len(stub.asked) == sent


async def test_an_issue_shows_what_was_written(client: Client, stub: Stub) -> None:
    with pytest.raises(PolicyValidationError) as raised:
        await client(client.Box.create, network_policy={"mode": "custom", "allowed_cidrs": ["10.0.0.1/8"]})
    assert raised.value.errors[0]["input"] == "10.0.0.1/8"


async def test_an_update_to_none_is_refused(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, network_policy="deny-all")
    with pytest.raises(PolicyValidationError):
        await client(box.update_network_policy, None)
    assert stub.paths("PUT") == []


LIES: list[object] = [
    None,
    {"mode": "allow-all"},
    {"mode": "custom", "allowed_domains": []},
    {"mode": "x"},
    "{",
    5,
]


@pytest.mark.parametrize("echo", LIES)
@pytest.mark.parametrize("kind", ["create", "from_snapshot", "ephemeral"])
async def test_a_new_box_with_another_policy_is_deleted(
    client: Client, stub: Stub, echo: object, kind: str
) -> None:
    def lie(asked: Asked) -> Answer:
        return Answer({**stub.make(asked.body), "network_policy": echo}, 201)

    stub.on("POST", "/v2/box(/from-snapshot)?", lie)
    with pytest.raises(BoxError, match="the new box has been deleted"):
        match kind:
            case "create":
                await client(client.Box.create, network_policy=CUSTOM)
            case "from_snapshot":
                await client(client.Box.from_snapshot, "s1", network_policy=CUSTOM)
            case "ephemeral":
                await client(client.EphemeralBox.create, network_policy=CUSTOM)
    assert stub.boxes == {}


async def test_a_box_that_can_t_be_deleted_either_is_named(client: Client, stub: Stub) -> None:
    stub.on("POST", "/v2/box", lambda asked: Answer({"id": "lost", "network_policy": {"mode": "allow-all"}}))
    stub.on("DELETE", "/v2/box/lost", lambda _: Answer({"error": "not now"}, 500))
    with pytest.raises(BoxError, match="the new box, lost, could not be deleted: not now"):
        await client(client.Box.create, network_policy="deny-all")


@pytest.mark.parametrize("echo", LIES)
async def test_an_update_that_is_not_confirmed_fails(client: Client, stub: Stub, echo: object) -> None:
    box = await client(client.Box.create, network_policy="deny-all")
    stub.on("PUT", ".*/network-policy", lambda _: Answer({"network_policy": echo}))
    with pytest.raises(BoxError):
        await client(box.update_network_policy, CUSTOM)
    with pytest.raises(BoxError):
        stub.on("PUT", ".*/network-policy", lambda _: Answer(content=b""))
        await client(box.update_network_policy, CUSTOM)


async def test_an_empty_list_is_not_an_absent_one(client: Client, stub: Stub) -> None:
    # With the empty list nothing is allowed; without it everything is but the one range.
    wanted = {"mode": "custom", "allowed_domains": [], "denied_cidrs": ["192.0.2.0/24"]}
    without = {"mode": "custom", "denied_cidrs": ["192.0.2.0/24"]}
    box = await client(client.Box.create)
    stub.on("PUT", ".*/network-policy", lambda _: Answer({"network_policy": without}))
    with pytest.raises(BoxError, match="another network policy"):
        await client(box.update_network_policy, wanted)


async def test_the_order_of_entries_is_the_service_s_own(client: Client, stub: Stub) -> None:
    def turned(asked: Asked) -> Answer:
        return Answer(
            {"network_policy": asked.body | {"allowed_domains": asked.body["allowed_domains"][::-1]}}
        )

    stub.on("PUT", ".*/network-policy", turned)
    box = await client(client.Box.create)
    assert (await client(box.update_network_policy, CUSTOM))["allowed_domains"] == [
        "*.index.example",
        "api.github.com",
    ]


async def test_a_refused_update_leaves_what_was(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, network_policy=CUSTOM)
    issue = {"location": ["allowed_domains", 0], "message": "no"}
    refusal = Answer({"error": "bad", "code": "policy_invalid", "issues": [issue, 5, {}]}, 422)
    stub.on("PUT", ".*/network-policy", lambda _: refusal)
    with pytest.raises(PolicyValidationError) as raised:
        await client(box.update_network_policy, "deny-all")
    assert (raised.value.status_code, raised.value.errors) == (
        422,
        [{"loc": ("allowed_domains", 0), "msg": "no", "input": None}],
    )
    assert box.network_policy == CUSTOM


async def test_what_is_shown_is_a_copy(client: Client, stub: Stub) -> None:
    policy: dict[str, Any] = {"mode": "custom", "allowed_domains": ["a.test"]}
    box = await client(client.Box.create, network_policy=policy)
    returned = await client(box.update_network_policy, policy)
    for mine in (policy, returned, box.network_policy):
        mine["allowed_domains"].append("evil.test")
    assert box.network_policy == {"mode": "custom", "allowed_domains": ["a.test"]}


async def test_what_is_in_force_is_asked_of_the_service(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    stub.boxes[box.id]["network_policy"] = {"mode": "deny-all"}
    # A property can't await: the asynchronous one shows what the service said last.
    assert box.network_policy == {"mode": "allow-all" if client.is_async else "deny-all"}
    assert await client(box.refresh_network_policy) == {"mode": "deny-all"}
    assert box.network_policy == {"mode": "deny-all"}


async def test_a_service_that_does_not_say_what_is_in_force_is_no_answer(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    stub.on("GET", ".*/network-policy", lambda _: Answer({}))
    with pytest.raises(BoxError, match="doesn't say"):
        await client(box.refresh_network_policy)
    stub.boxes[box.id]["network_policy"] = None
    with pytest.raises(BoxError, match="doesn't say"):
        await client(client.Box.get, box.id)


def test_a_type_checker_sees_every_form_and_no_other() -> None:
    # Checked by mypy, which complains as well of an "ignore" that ignores nothing.
    good: list[NetworkPolicyInput] = [
        "deny-all",
        {"mode": "allow-all"},
        {"mode": "custom", "allowed_domains": ["a.test"], "denied_cidrs": ["192.0.2.0/24"]},
        {"mode": "custom", "allowedDomains": ["a.test"]},
        {"allow": ["a.test"], "subnets": {"deny": ["192.0.2.0/24"]}},
        {"allow": {"a.test": []}},
        NetworkPolicy.parse("deny-all"),
    ]
    for policy in good:
        requested(policy)
    with pytest.raises(PolicyValidationError):
        Box.create(network_policy="allow")  # type: ignore[arg-type]
    with pytest.raises(PolicyValidationError):
        Box.create(network_policy={"mode": "custom", "allow_domains": ["a.test"]})  # type: ignore[arg-type]
    with pytest.raises(PolicyValidationError):
        Box.create(network_policy={"mode": "bogus"})  # type: ignore[arg-type]


class TestTemporarily:
    async def test_the_policy_is_another_inside_alone(self, client: Client, stub: Stub) -> None:
        box = await client(client.EphemeralBox.create, network_policy=CUSTOM)
        manager = box.temporary_network_policy("deny-all")
        assert await client.enter(manager) == {"mode": "deny-all"}
        assert box.network_policy == {"mode": "deny-all"}
        await client.leave(manager)
        assert box.network_policy == CUSTOM

    async def test_it_is_restored_when_the_block_fails(self, client: Client, stub: Stub) -> None:
        box = await client(client.Box.create, network_policy="deny-all")
        manager = box.temporary_network_policy("allow-all")
        await client.enter(manager)
        fault = RuntimeError("inside")
        with pytest.raises(RuntimeError, match="inside"):
            if not await client.leave(manager, fault):
                raise fault
        assert stub.boxes[box.id]["network_policy"] == {"mode": "deny-all"}

    async def test_what_was_in_force_is_asked_for(self, client: Client, stub: Stub) -> None:
        box = await client(client.Box.create, network_policy="allow-all")
        stub.boxes[box.id]["network_policy"] = CUSTOM
        manager = box.temporary_network_policy("deny-all")
        await client.enter(manager)
        await client.leave(manager)
        assert stub.boxes[box.id]["network_policy"] == CUSTOM

    async def test_a_failure_to_restore_says_what_is_in_force(self, client: Client, stub: Stub) -> None:
        box = await client(client.Box.create, network_policy="deny-all")
        manager = box.temporary_network_policy("allow-all")
        await client.enter(manager)
        stub.on("PUT", ".*/network-policy", lambda _: Answer({"error": "the gate is busy"}, 503))
        with pytest.raises(BoxError) as raised:
            await client.leave(manager)
        assert "the gate is busy; in force is {'mode': 'allow-all'}" in str(raised.value)
        assert raised.value.status_code == 503

    async def test_a_change_that_fails_is_taken_back(self, client: Client, stub: Stub) -> None:
        box = await client(client.Box.create, network_policy="deny-all")

        def half(asked: Asked) -> Answer:
            stub.boxes[box.id]["network_policy"] = asked.body
            if asked.body == {"mode": "allow-all"}:
                return Answer(content=b"half an ans")
            return Answer({"network_policy": asked.body})

        stub.on("PUT", ".*/network-policy", half)
        with pytest.raises(BoxError, match="JSON"):
            await client.enter(box.temporary_network_policy("allow-all"))
        assert stub.boxes[box.id]["network_policy"] == {"mode": "deny-all"}
