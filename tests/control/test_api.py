"""The control API: what it answers, and what it changes."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from box_policy.audit.records import MAX_DETAIL, Outcome, PolicyRecord
from box_policy.control.api import make_app
from box_policy.control.http.answers import ERRORS, Answering
from box_policy.policy.model import NetworkPolicy
from tests.control.conftest import BOX, POLICY, Control, MakeControl, World

JSON = {"Content-Type": "application/json"}
ONE_NAME = {"mode": "custom", "allowed_domains": ["index.example"]}
ALLOWLIST = {"mode": "custom", "allowed_domains": ["index.example", "*.example.com"]}


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of a response that holds one, in the one form that there is."""
    body = response.json()
    assert list(body) == ["error"]
    assert ERRORS[body["error"]["code"]][0] == response.status_code
    assert body["error"]["message"]
    return dict(body["error"])


def in_force(world: World) -> tuple[dict[str, object], int]:
    """What the gate itself enforces."""
    compiled, generation = world.gate.in_force[BOX]
    return compiled.policy.canonical(), generation


class TestReading:
    async def test_the_boxes(self, control: Control) -> None:
        (box,) = (await control.client.get("/v1/boxes")).json()["boxes"]
        since = box.pop("since")
        assert box == {
            "id": BOX, "generation": 1, "mode": "deny-all", "kind": "deny-all", "source": "test"
        }  # fmt: skip
        assert since.endswith("+00:00")

    async def test_a_policy_and_its_generation(self, control: Control) -> None:
        response = await control.client.get(POLICY)
        assert (response.json(), response.headers["etag"]) == ({"mode": "deny-all"}, '"1"')

    @pytest.mark.parametrize("box", ["nobody", "..%2f", "%00", "b%20", "a" * 1000])
    @pytest.mark.parametrize("method", ["GET", "PUT"])
    async def test_an_unknown_box(self, control: Control, box: str, method: str) -> None:
        response = await control.client.request(
            method, f"/v1/boxes/{box}/network-policy", json=None if method == "GET" else "allow-all"
        )
        assert error(response)["code"] in ("box_unknown", "not_found")
        assert [known.box for known in control.world.store] == [BOX]

    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/boxes/", "/v1/boxes/b", "//v1/boxes", "/v1/boxes/b/x"])
    async def test_a_path_that_is_none(self, control: Control, path: str) -> None:
        assert error(await control.client.get(path))["code"] == "not_found"

    @pytest.mark.parametrize(
        ("method", "path"), [("DELETE", POLICY), ("POST", POLICY), ("PUT", "/v1/status")]
    )
    async def test_a_method_that_a_path_does_not_take(self, control: Control, method: str, path: str) -> None:
        response = await control.client.request(method, path)
        assert error(response)["code"] == "method_not_allowed"
        assert "GET" in response.headers["allow"]

    async def test_status(self, control: Control) -> None:
        @dataclass
        class Source:
            path: str = "/etc/policy.yaml"
            state: Literal["refused"] = "refused"
            box: str | None = None
            error: str | None = "line 1"
            since: float = 0.0

        control.world.sources.append(Source())
        status = (await control.client.get("/v1/status")).json()
        assert (status["version"], status["ready"], status["records_lost"]) == ("1.2.3", True, 7)
        assert (status["boxes"][0]["connections"], status["boxes"][0]["pending"]) == (3, 1)
        assert status["sources"] == [
            {"path": "/etc/policy.yaml", "state": "refused", "box": None, "error": "line 1",
             "since": "1970-01-01T00:00:00.000+00:00"}
        ]  # fmt: skip
        assert 0 <= status["uptime"] < 60

    async def test_health_is_not_readiness(self, control: Control) -> None:
        control.world.ready = False
        assert (await control.client.get("/healthz")).json() == {"status": "ok"}
        response = await control.client.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "starting"})
        control.world.ready = True
        response = await control.client.get("/readyz")
        assert (response.status_code, response.json()) == (200, {"status": "ready"})

    async def test_metrics(self, control: Control) -> None:
        await control.client.put(POLICY, json="allow-all")
        response = await control.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        lines = response.text.splitlines()
        assert 'box_policy_policy_records_total{outcome="accepted"} 2.0' in lines
        assert "box_policy_connections 3.0" in lines
        assert "box_policy_records_lost_total 7.0" in lines
        assert 'box_policy_build_info{version="1.2.3"} 1.0' in lines

    @pytest.mark.parametrize("path", ["/v1/boxes", "/metrics", "/nothing", "/v1/decisions?follow=false"])
    async def test_no_answer_is_kept_or_guessed_at(self, control: Control, path: str) -> None:
        headers = (await control.client.get(path)).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert "server" not in headers


class TestPutting:
    @pytest.mark.parametrize(
        ("written", "canonical"),
        [
            (ALLOWLIST, ALLOWLIST),
            ("allow-all", {"mode": "allow-all"}),
            ({"mode": "custom", "allowedDomains": ["Index.example."]}, ONE_NAME),
            ({"allow": {"index.example": []}}, ONE_NAME),
            (
                {"allow": ["*"], "subnets": {"deny": ["10.0.0.0/8"]}},
                {"mode": "custom", "denied_cidrs": ["10.0.0.0/8"]},
            ),
        ],
        ids=["canonical", "bare mode", "camelCase", "map of rules", "all but"],
    )  # fmt: skip
    async def test_every_form_is_in_force_when_it_is_answered(
        self, control: Control, written: object, canonical: object
    ) -> None:
        response = await control.client.put(POLICY, json=written)
        assert (response.status_code, response.headers["etag"]) == (200, '"2"')
        assert response.json() == {"box": BOX, "generation": 2, "policy": canonical}
        assert in_force(control.world) == (canonical, 2)
        assert (await control.client.get(POLICY)).json() == canonical
        last = control.world.records[-1]
        assert isinstance(last, PolicyRecord)
        assert (last.source, last.outcome) == ("control", Outcome.ACCEPTED)

    async def test_the_same_policy_changes_nothing(self, control: Control) -> None:
        for _ in range(2):
            response = await control.client.put(POLICY, json=ALLOWLIST)
            assert response.json()["generation"] == 2
        assert len(control.world.records) == 2

    async def test_a_large_policy(self, control: Control) -> None:
        names = [f"host-{number}.example.com" for number in range(20_000)]
        response = await control.client.put(POLICY, json={"allow": names}, timeout=30)
        assert response.json()["policy"]["allowed_domains"] == names
        assert in_force(control.world)[1] == 2

    async def test_a_hundred_at_once(self, control: Control) -> None:
        acknowledged: list[tuple[int, object]] = []

        async def put(number: int) -> None:
            policy = {"mode": "custom", "allowed_domains": [f"h{number}.test"] * (1 + number % 3)}
            response = await control.client.put(POLICY, json=policy, timeout=30)
            acknowledged.append((response.json()["generation"], response.json()["policy"]))

        await asyncio.gather(*map(put, range(100)))
        generations = sorted(generation for generation, _ in acknowledged)
        assert generations == list(range(2, 102))
        assert in_force(control.world) == (dict(acknowledged)[101], 101)

    @pytest.mark.parametrize("value", ['"1"', "1", '"7", "1"', "7,1", "*"])
    async def test_a_change_meant_for_the_policy_in_force(self, control: Control, value: str) -> None:
        response = await control.client.put(POLICY, json=ALLOWLIST, headers={"If-Match": value})
        assert (response.status_code, in_force(control.world)[1]) == (200, 2)

    async def test_a_change_meant_for_another(self, control: Control) -> None:
        first = await control.client.put(POLICY, json=ALLOWLIST, headers={"If-Match": '"1"'})
        assert first.status_code == 200
        replayed = await control.client.put(POLICY, json="allow-all", headers={"If-Match": '"1"'})
        assert error(replayed)["generation"] == 2
        assert in_force(control.world) == (ALLOWLIST, 2)

    @pytest.mark.parametrize(
        "value", ["", "x", 'W/"1"', '"1" "2"', '"1",', '*, "1"', '"-1"', '"' + "1" * 30 + '"']
    )
    async def test_a_precondition_that_is_none(self, control: Control, value: str) -> None:
        response = await control.client.put(POLICY, json=ALLOWLIST, headers={"If-Match": value})
        assert error(response)["code"] == "precondition_invalid"
        assert in_force(control.world)[1] == 1

    @pytest.mark.parametrize(
        ("query", "headers", "code"),
        [
            ("?dry_run=true", {}, "query_invalid"),
            ("", {"If-None-Match": "*"}, "precondition_invalid"),
            ("", {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, "precondition_invalid"),
            ("", {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, "precondition_invalid"),
            ("", {"Content-Range": "bytes 0-3/10"}, "body_invalid"),
        ],
        ids=str,
    )
    async def test_nothing_that_a_client_says_is_left_unheard(
        self, control: Control, query: str, headers: dict[str, str], code: str
    ) -> None:
        response = await control.client.put(POLICY + query, json=ALLOWLIST, headers=headers)
        assert error(response)["code"] == code
        assert in_force(control.world)[1] == 1
        question = {"box": BOX, "targets": ["x.test:1"]}
        response = await control.client.post("/v1/explain" + query, json=question, headers=headers)
        assert error(response)["code"] == code

    async def test_several_preconditions_are_one_list(self, control: Control) -> None:
        headers = [("If-Match", '"7"'), ("If-Match", '"1"')]
        response = await control.client.put(POLICY, json=ALLOWLIST, headers=headers)
        assert response.status_code == 200

    async def test_a_fault_of_the_gate_changes_nothing_and_says_nothing(
        self, control: Control, caplog: pytest.LogCaptureFixture
    ) -> None:
        control.world.may_fail = True
        control.world.gate.fault = RuntimeError("the secret of the house")
        response = await control.client.put(POLICY, json=ALLOWLIST)
        assert error(response)["code"] == "internal_error"
        assert "secret" not in response.text
        assert "the secret of the house" in caplog.text
        control.world.gate.fault = None
        assert in_force(control.world) == ({"mode": "deny-all"}, 1)
        assert (await control.client.get(POLICY)).headers["etag"] == '"1"'


class TestRefusing:
    async def test_every_issue_with_its_place(self, control: Control) -> None:
        policy = {
            "mode": "custom",
            "allowed_domains": ["ok.test", "https://x.test"],
            "denied_cidrs": ["nope"],
        }
        response = await control.client.put(POLICY, json=policy)
        issues = error(response)["issues"]
        assert [issue["location"] for issue in issues] == [["allowed_domains", 1], ["denied_cidrs", 0]]
        assert all(issue["message"] for issue in issues)
        assert in_force(control.world) == ({"mode": "deny-all"}, 1)
        (refused,) = control.world.refused()
        assert (refused.box, refused.generation, refused.source) == (BOX, 1, "control")
        assert "allowed_domains[1]" in refused.detail

    async def test_many_refusals_leave_few_records(self, control: Control) -> None:
        policy = {"mode": "custom", "allowed_domains": ["*"] * 900}
        begun = time.monotonic()
        for _ in range(40):
            assert (await control.client.put(POLICY, json=policy, timeout=30)).status_code == 422
        refused = control.world.refused()
        assert 10 <= len(refused) <= 11 + (time.monotonic() - begun)
        assert all(len(record.detail) <= MAX_DETAIL for record in refused)

    async def test_a_refusal_that_can_not_be_recorded_is_still_one(self, control: Control) -> None:
        control.world.may_fail = True

        def broken(_: object) -> None:
            raise RuntimeError("disk on fire")

        control.world.audit.add(broken)
        assert error(await control.client.put(POLICY, json="custom"))["code"] == "policy_invalid"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"mode: deny-all",
            b'{"mode": "allow-all"} x',
            b'{"mode": "allow-all", "mode": "deny-all"}',
            b'{"mode": "custom", "allowed_domains": [{"a": 1, "a": 1}]}',
            b"NaN",
            b'{"mode": Infinity}',
            b'{"mode": -Infinity}',
            b'{"mode": 1e999}',
            b'{"mode": ' + b"9" * 1_000_000 + b"}",
            b'{"mode": 0.' + b"9" * 1_000_000 + b"}",
            b'\xef\xbb\xbf"allow-all"',
            '"allow-all"'.encode("utf-16"),
            b'"\xff"',
            b"[" * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 100_000,
            b'"' + b'\\"' * 1_000_000,
            b'"\n"',
            b'"' + b"x" * 20_000 + b'"',
            b"[" + b"1," * 1_000_001 + b"1]",
            b"{" + b",".join(b'"%x":1' % number for number in range(250_001)) + b"}",
        ],
        ids=lambda body: f"{body[:24]!r}",
    )
    async def test_a_body_that_is_not_json_to_everybody(self, control: Control, body: bytes) -> None:
        response = await control.client.put(POLICY, content=body, headers=JSON)
        assert error(response)["code"] == "body_invalid"
        assert in_force(control.world) == ({"mode": "deny-all"}, 1)

    async def test_brackets_in_strings_are_no_nesting(self, control: Control) -> None:
        policy = '{"mode": "custom", "allowed_domains": ["' + "[" * 50 + '\\"' + "{" * 50 + '"]}'
        response = await control.client.put(POLICY, content=policy, headers=JSON)
        assert error(response)["code"] == "policy_invalid"

    @pytest.mark.parametrize(("depth", "code"), [(16, "policy_invalid"), (17, "body_invalid")])
    async def test_as_deep_as_it_may_be(self, control: Control, depth: int, code: str) -> None:
        body = "[" * depth + "]" * depth
        assert error(await control.client.put(POLICY, content=body, headers=JSON))["code"] == code

    async def test_half_a_surrogate_pair(self, control: Control) -> None:
        response = await control.client.put(POLICY, content=b'{"\\ud800": "\\udfff"}', headers=JSON)
        assert error(response)["code"] == "policy_invalid"

    @pytest.mark.parametrize(
        "headers",
        [
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/json; charset=utf-16"},
            {"Content-Type": "application/json, text/plain"},
            {"Content-Type": "application/jsonp"},
            {"Content-Type": ""},
            {},
            JSON | {"Content-Encoding": "gzip"},
            JSON | {"Content-Encoding": "identity, br"},
            [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        ],
        ids=str,
    )
    async def test_another_media_type(self, control: Control, headers: Any) -> None:
        response = await control.client.put(POLICY, content=b'"allow-all"', headers=headers)
        assert error(response)["code"] == "media_type_unsupported"
        assert in_force(control.world)[1] == 1

    @pytest.mark.parametrize(
        "value", ['application/json; charset="UTF-8"', "Application/JSON ;charset=utf-8"]
    )
    async def test_the_media_type_spelt_otherwise(self, control: Control, value: str) -> None:
        response = await control.client.put(POLICY, content=b'"allow-all"', headers={"Content-Type": value})
        assert response.status_code == 200

    @given(
        body=st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["mode", "allow", "subnets", "allowed_domains", "deny"])
                        | st.text(max_size=4),
                        inner,
                        max_size=3,
                    )
                ),
                max_leaves=6,
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    async def test_whatever_is_refused_changes_nothing(self, world: World, body: bytes) -> None:
        before = in_force(world)
        app = Answering(make_app(world.backend))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            response = await client.put(POLICY, content=body, headers=JSON)
        if response.status_code == 200:
            policy = NetworkPolicy.parse(json.loads(body))
            assert in_force(world) == (policy.canonical(), response.json()["generation"])
        else:
            assert error(response)["code"] in ("body_invalid", "policy_invalid")
            assert in_force(world) == before


async def test_two_endpoints_have_one_gate(make_control: MakeControl) -> None:
    first, second = make_control(), make_control()
    await first.client.put(POLICY, json="allow-all")
    assert (await second.client.get(POLICY)).json() == {"mode": "allow-all"}
