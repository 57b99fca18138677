"""Verdicts on targets, without a connection being made."""

import json

import httpx
import pytest

from box_policy.policy.model import MAX_ISSUES
from tests.control.conftest import BOX, POLICY, Control
from tests.control.test_api import ALLOWLIST, JSON, error, in_force


class TestExplaining:
    async def ask(self, control: Control, **question: object) -> httpx.Response:
        return await control.client.post("/v1/explain", json=question)

    async def test_by_the_policy_in_force(self, control: Control) -> None:
        await control.client.put(POLICY, json=ALLOWLIST)
        targets = ["https://index.example", "evil.test:443", "dns:a.example.com", "192.0.2.1:22"]
        answer = (await self.ask(control, box=BOX, targets=targets)).json()
        assert (answer["box"], answer["generation"]) == (BOX, 2)
        assert [verdict["allowed"] for verdict in answer["verdicts"]] == [True, False, True, False]
        assert answer["verdicts"][0] == {
            "target": "https://index.example",
            "allowed": True,
            "reason": "name_allowed",
            "rule": "allowed_domains: index.example",
            "addresses": [],
            "dropped": [],
        }
        assert control.world.resolved == []

    async def test_by_a_policy_that_is_sent_along(self, control: Control) -> None:
        answer = (await self.ask(control, policy={"allow": ["x.test"]}, targets=["x.test:1"])).json()
        assert (answer["box"], answer["generation"], answer["verdicts"][0]["allowed"]) == (None, None, True)
        assert in_force(control.world) == ({"mode": "deny-all"}, 1)

    async def test_with_the_addresses_of_what_is_allowed(self, control: Control) -> None:
        control.world.addresses = {"good.test": "93.184.215.14", "bad.test": "10.0.0.1"}
        policy = {"allow": ["good.test", "bad.test", "gone.test"]}
        targets = ["good.test:443", "bad.test:443", "gone.test:443", "denied.test:443", "dns:good.test"]
        answer = (await self.ask(control, policy=policy, targets=targets, resolve=True)).json()
        assert [verdict["reason"] for verdict in answer["verdicts"]] == [
            "name_allowed", "resolved_special", "resolution_failed", "name_not_allowed", "name_allowed"
        ]  # fmt: skip
        assert answer["verdicts"][0]["addresses"] == ["93.184.215.14"]
        assert answer["verdicts"][1]["dropped"] == ["10.0.0.1"]
        assert sorted(control.world.resolved) == ["bad.test", "gone.test", "good.test"]

    @pytest.mark.parametrize(
        ("question", "location"),
        [
            ({"box": BOX, "targets": ["index.example:1", "index.example"]}, ["targets", 1]),
            ({"box": BOX, "targets": ["index.example:1", 5]}, ["targets", 1]),
            ({"box": BOX, "targets": ["\ud800:1"]}, ["targets", 0]),
            ({"box": BOX, "targets": ["a" * 5000 + ":1"]}, ["targets", 0]),
            ({"box": BOX, "targets": []}, ["targets"]),
            ({"box": BOX, "targets": ["x.test:1"] * 101}, ["targets"]),
            ({"box": BOX, "targets": "x.test:1"}, ["targets"]),
            ({"box": BOX}, ["targets"]),
            ({"box": 1, "targets": ["x.test:1"]}, ["box"]),
            ({"box": BOX, "policy": "deny-all", "targets": ["x.test:1"]}, []),
            ({"targets": ["x.test:1"]}, []),
            ({"box": BOX, "targets": ["x.test:1"], "resolve": 1}, ["resolve"]),
            ({"box": BOX, "targets": ["x.test:1"], "extra": 1}, ["extra"]),
            ({"policy": {"mode": "custom", "allowed_domains": ["*"]}, "targets": ["x.test:1"]},
             ["policy", "allowed_domains", 0]),
            ({"policy": None, "targets": ["x.test:1"]}, ["policy"]),
            ([], []),
            (None, []),
        ],
        ids=lambda value: str(value)[:60],
    )  # fmt: skip
    async def test_a_question_that_can_not_be_answered(
        self, control: Control, question: object, location: list[str | int]
    ) -> None:
        content = json.dumps(question)
        response = await control.client.post("/v1/explain", content=content, headers=JSON)
        (issue,) = error(response)["issues"]
        assert response.status_code == 422
        assert issue["location"] == location

    async def test_more_unknown_keys_than_are_worth_telling(self, control: Control) -> None:
        question = {f"{number:x}": 1 for number in range(50_000)} | {"y" * 5000: 1, "targets": ["x.test:1"]}
        response = await self.ask(control, box=BOX, **question)
        issues = error(response)["issues"]
        assert len(issues) == MAX_ISSUES + 1
        assert issues[-1]["message"] == f"and {50_001 - MAX_ISSUES} more unknown keys"
        response = await self.ask(control, box=BOX, targets=["x.test:1"], **{"y" * 5000: 1})
        assert len(error(response)["issues"][0]["location"][0]) < 300

    async def test_an_unknown_box(self, control: Control) -> None:
        assert error(await self.ask(control, box="nobody", targets=["x.test:1"]))["code"] == "box_unknown"
