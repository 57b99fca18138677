"""Boxes of a service: what they are made of, how they are found, and how they end."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import Lab, plan
from tests.service.conftest import Server, until

ALLOWED = {"mode": "custom", "allowed_domains": ["allowed.test"]}
REACH = "curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' http://{0}/ 2>&1"


# Has a timer continue it, and opens one connection after the other.
AWAKE = f"""
import ctypes, signal, socket, time
libc = ctypes.CDLL(None)
long, int_ = ctypes.c_long, ctypes.c_int
class Event(ctypes.Structure):
    _fields_ = [("value", long), ("signo", int_), ("notify", int_), ("pad", long * 6)]
class Times(ctypes.Structure):
    _fields_ = [("every", long), ("every_ns", long), ("first", long), ("first_ns", long)]
signal.signal(signal.SIGCONT, lambda *_: None)
timer = ctypes.c_void_p()
assert libc.timer_create(1, ctypes.byref(Event(0, signal.SIGCONT, 0)), ctypes.byref(timer)) == 0
assert libc.timer_settime(timer, 0, ctypes.byref(Times(0, 5_000_000, 0, 5_000_000)), None) == 0
while True:
    try:
        socket.create_connection(("{plan.ALLOWED4}", 80), 1).close()
        with socket.create_connection(("{plan.ALLOWED4}", 80), 1) as sock:
            sock.sendall(b"GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\nConnection: close\\r\\n\\r\\n")
            sock.recv(100)
        socket.getaddrinfo("evil.test", 80)
    except OSError:
        pass
    time.sleep(0.01)
"""


def reach(service: Server, box: str, name: str) -> str:
    """What curl in a box gets of a name, over plain HTTP."""
    return str(service.run(box, REACH.format(name))["output"])


class TestCreate:
    def test_the_default_is_the_hosted_service_s(self, service: Server) -> None:
        box = service.create()
        assert box["network_policy"] == {"mode": "allow-all"}
        assert (box["status"], box["size"], box["keep_alive"], box["ephemeral"]) == (
            "idle",
            "small",
            False,
            False,
        )
        assert abs(box["created_at"] - time.time()) < 60

    def test_behind_its_policy_from_the_first_packet(self, service: Server, lab: Lab) -> None:
        box = service.create(network_policy=ALLOWED)
        assert box["network_policy"] == ALLOWED
        denied = reach(service, box["id"], "evil.test")
        assert lab.connections(plan.EVIL4) == [] and lab.requests(plan.EVIL4) == []
        assert denied != "200"
        assert reach(service, box["id"], "allowed.test") == "200"
        assert len(lab.requests(plan.ALLOWED4)) == 1

    @pytest.mark.parametrize(
        ("written", "canonical"),
        [
            ("deny-all", {"mode": "deny-all"}),
            (
                {"mode": "custom", "allowedDomains": ["A.Test."]},
                {"mode": "custom", "allowed_domains": ["a.test"]},
            ),
            (
                {
                    "mode": "custom",
                    "allowed_domains": ["a.test"],
                    "allowed_cidrs": None,
                    "denied_cidrs": None,
                },
                {"mode": "custom", "allowed_domains": ["a.test"]},
            ),
            (
                {"allow": {"a.test": []}, "subnets": {"deny": ["51.0.0.0/8"]}},
                {"mode": "custom", "allowed_domains": ["a.test"], "denied_cidrs": ["51.0.0.0/8"]},
            ),
            (None, {"mode": "allow-all"}),
        ],
    )
    def test_every_form_of_policy(self, service: Server, written: object, canonical: object) -> None:
        assert service.create(network_policy=written)["network_policy"] == canonical

    @pytest.mark.parametrize(
        "wrong", [{}, [], "custom", {"mode": "bogus"}, {"mode": "custom", "allow": []}, 7]
    )
    def test_no_policy_no_box(self, service: Server, wrong: object) -> None:
        answer = service.ask("POST", "", {"network_policy": wrong})
        assert (answer.status, answer.json["code"]) == (422, "policy_invalid")
        assert answer.json["issues"][0]["location"][0] == "network_policy"
        assert service.ask("GET", "").ok() == []

    def test_what_is_wrong_is_named(self, service: Server) -> None:
        policy = {"mode": "custom", "allowed_domains": ["a.test", "https://b.test/x"]}
        answer = service.ask("POST", "", {"network_policy": policy})
        assert answer.json["issues"][0]["location"] == ["network_policy", "allowed_domains", 1]
        assert "allowed_domains[1]" in answer.error and "b.test" in answer.error

    @pytest.mark.parametrize(
        "key",
        [
            "agent",
            "attach_headers",
            "browser",
            "github_token",
            "init_command",
            "mcp_servers",
            "model",
            "skills",
        ],
    )
    def test_what_is_not_ours_is_refused(self, service: Server, key: str) -> None:
        answer = service.ask("POST", "", {key: {"x": "y"}})
        assert (answer.status, answer.json["code"]) == (501, "not_supported")
        assert key in answer.error
        assert service.ask("GET", "").ok() == []

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"nmae": "x"}, "nmae: unknown key"),
            ({"name": "a/b"}, "name"),
            ({"name": "snapshots"}, "name"),
            ({"ttl": 0}, "ttl"),
            ({"ttl": True}, "ttl"),
            ({"ttl": 10**9}, "ttl"),
            ({"size": "huge"}, "size 'huge'"),
            ({"labels": ["x"] * 2 + ["y" * 21]}, "labels.2"),
            ({"labels": list("abcdef")}, "labels"),
            ({"env_vars": {"A B": "x"}}, "A B"),
            ({"env_vars": {"A": "x\0y"}}, "NUL"),
            ({"env_vars": {"A": "x" * 70_000}}, "64 KiB"),
            ({"env_vars": {"A": 7}}, "env_vars.A"),
            ({"keep_alive": "yes"}, "keep_alive"),
            ({"snapshot_id": "snap-1"}, "from-snapshot"),
            ([], "valid dictionary"),
            ({f"k{number}": 1 for number in range(1000)}, "more than 40 keys"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, service: Server, body: object, said: str) -> None:
        answer = service.ask("POST", "", body)
        assert answer.status == 422 and said in answer.error
        assert service.ask("GET", "").ok() == []

    def test_environment(self, service: Server) -> None:
        service.ask("PUT", "/settings/env", {"env_vars": {"EVERYWHERE": "1", "BOTH": "service"}}).ok()
        try:
            box = service.create(env_vars={"MINE": "two words", "BOTH": "box"})["id"]
        finally:
            service.ask("PUT", "/settings/env", {"env_vars": {}}).ok()
        said = service.run(box, 'echo "$EVERYWHERE/$MINE/$BOTH/$HOME/$PWD"')["output"]
        assert said == "1/two words/box//workspace/home//workspace/home\n"
        said = service.run(box, 'echo "$BOTH $MORE"', env={"BOTH": "request", "MORE": "3"})["output"]
        assert said == "request 3\n"


class TestRuntime:
    @pytest.mark.parametrize("runtime", ["python", "node"])
    def test_what_the_machine_has(self, service: Server, runtime: str) -> None:
        box = service.create(runtime=runtime)
        assert box["runtime"] == runtime
        program = {"python": "python3", "node": "node"}[runtime]
        assert service.run(box["id"], f"{program} --version")["exit_code"] == 0

    @pytest.mark.parametrize("runtime", ["python-alpine", "cobol", "../python"])
    def test_what_is_missing(self, service: Server, runtime: str) -> None:
        answer = service.ask("POST", "", {"runtime": runtime})
        assert (answer.status, answer.json["code"]) == (422, "runtime_missing")
        assert runtime in answer.error
        assert service.ask("GET", "").ok() == []


class TestFind:
    def test_by_id_and_by_name(self, service: Server) -> None:
        box = service.create(name="alpha")
        assert service.ask("GET", f"/{box['id']}").ok() == service.ask("GET", "/alpha").ok()
        assert service.ask("GET", "/alpha").ok()["id"] == box["id"]

    def test_a_name_is_taken_until_its_box_is_gone(self, service: Server) -> None:
        service.create(name="alpha")
        answer = service.ask("POST", "", {"name": "alpha"})
        assert (answer.status, answer.json["code"]) == (409, "name_taken")
        service.ask("DELETE", "/alpha").ok()
        service.create(name="alpha")

    def test_a_name_is_free_again_if_its_box_could_not_be_made(self, service: Server) -> None:
        assert service.ask("POST", "", {"name": "alpha", "runtime": "cobol"}).status == 422
        service.create(name="alpha")

    def test_of_two_at_once_one_gets_the_name(self, service: Server) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: service.ask("POST", "", {"name": "alpha"}), range(8)))
        assert sorted(answer.status for answer in answers) == [201, *[409] * 7]
        assert len(service.ask("GET", "").ok()) == 1

    def test_an_unknown_one(self, service: Server) -> None:
        for method, path in (("GET", "/nobody"), ("DELETE", "/nobody"), ("GET", "/nobody/status")):
            answer = service.ask(method, path)
            assert (answer.status, answer.json["code"], answer.error) == (
                404,
                "box_unknown",
                "there is no box 'nobody'",
            )

    def test_all_or_those_with_a_label(self, service: Server) -> None:
        one = service.create(labels=["a", "b"])["id"]
        two = service.create(labels=["b"])["id"]
        assert [box["id"] for box in service.ask("GET", "").ok()] == [one, two]
        assert [box["id"] for box in service.ask("GET", "?label=a").ok()] == [one]
        assert service.ask("POST", f"/{two}/config/labels", {"label": "a"}).ok() == {"labels": ["b", "a"]}
        assert service.ask("DELETE", f"/{one}/config/labels/a").ok() == {"labels": ["b"]}
        assert [box["id"] for box in service.ask("GET", "?label=a").ok()] == [two]
        assert service.ask("GET", "?colour=a").status == 422


class TestPolicy:
    def test_an_update_is_in_force_when_it_is_answered(self, service: Server, lab: Lab) -> None:
        box = service.create()["id"]
        assert reach(service, box, "evil.test") == "200"
        seen = len(lab.connections(plan.EVIL4))
        answer = service.ask("PUT", f"/{box}/config/network-policy", {"mode": "deny-all"}).ok()
        assert answer == {"network_policy": {"mode": "deny-all"}, "network_policy_generation": 2}
        assert service.ask("GET", f"/{box}").ok()["network_policy"] == {"mode": "deny-all"}
        denied = reach(service, box, "evil.test")
        assert len(lab.connections(plan.EVIL4)) == seen
        assert denied != "200"

    def test_a_wrong_one_changes_nothing(self, service: Server) -> None:
        box = service.create(network_policy="deny-all")["id"]
        answer = service.ask("PUT", f"/{box}/config/network-policy", {"mode": "allow_all"})
        assert (answer.status, answer.json["code"]) == (422, "policy_invalid")
        assert service.ask("GET", f"/{box}/config/network-policy").ok() == {
            "network_policy": {"mode": "deny-all"},
            "network_policy_generation": 1,
        }

    def test_each_box_has_its_own(self, service: Server, lab: Lab) -> None:
        one = service.create(network_policy=ALLOWED)["id"]
        two = service.create(network_policy={"mode": "custom", "allowed_domains": ["evil.test"]})["id"]
        assert (reach(service, one, "allowed.test"), reach(service, two, "evil.test")) == ("200", "200")
        seen = len(lab.connections())
        denied = reach(service, one, "evil.test"), reach(service, two, "allowed.test")
        assert len(lab.connections()) == seen
        assert "200" not in denied

    def test_the_control_api_sees_the_same_boxes(self, service: Server) -> None:
        box = service.create(network_policy=ALLOWED)["id"]
        found = service.ask("GET", f"/../../v1/boxes/{box}/network-policy").ok()
        assert found == ALLOWED


class TestEnd:
    def test_deleted(self, service: Server) -> None:
        box = service.create(name="alpha")["id"]
        assert service.ask("DELETE", f"/{box}").ok() == {}
        for key in (box, "alpha"):
            answer = service.ask("GET", f"/{key}")
            assert (answer.status, answer.error) == (404, f"there is no box {key!r}: it was deleted")

    def test_several_or_none(self, service: Server) -> None:
        ids = [service.create()["id"] for _ in range(3)]
        assert service.ask("DELETE", "", {"ids": [ids[0], "nobody"]}).status == 404
        assert len(service.ask("GET", "").ok()) == 3
        assert service.ask("DELETE", "", {"ids": ids[:2]}).ok() == {"deleted": 2, "ids": ids[:2]}
        assert [box["id"] for box in service.ask("GET", "").ok()] == ids[2:]

    @pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": [""]}, {"ids": "all"}, {"ids": None}])
    def test_a_list_that_came_out_empty_deletes_nothing(self, service: Server, body: object) -> None:
        service.create()
        assert service.ask("DELETE", "", body).status == 422
        assert len(service.ask("GET", "").ok()) == 1

    def test_its_time_is_over(self, service: Server) -> None:
        box = service.create(ttl=1, ephemeral=True)
        assert box["expires_at"] - box["created_at"] in (1, 2)
        until(lambda: service.ask("GET", f"/{box['id']}").status == 404)
        assert service.ask("GET", f"/{box['id']}").error.endswith("its time was over")

    def test_an_ephemeral_one_has_three_days(self, service: Server) -> None:
        box = service.create(ephemeral=True)
        assert box["ephemeral"] and box["expires_at"] - box["created_at"] in (259_200, 259_201)

    def test_its_processes_are_killed(self, service: Server, lab: Lab) -> None:
        box = service.create()["id"]
        service.run(box, "kill -9 -1 || true")
        assert service.run(box, "echo alive")["output"] == "alive\n", "pid 1 is out of its programs' reach"


class TestPause:
    def test_nothing_runs_meanwhile(self, service: Server) -> None:
        box = service.create()["id"]
        service.run(box, "(while sleep 0.01; do echo >> /tmp/ticks; done) >/dev/null 2>&1 &")
        assert service.ask("POST", f"/{box}/pause").ok() == {"status": "paused"}
        for method, path, body in (
            ("POST", "/exec", {"command": ["true"]}),
            ("POST", "/exec-stream", {"command": ["true"]}),
            ("POST", "/code", {"code": "1", "language": "python"}),
            ("GET", "/files/list", None),
            ("POST", "/snapshots", {"name": "x"}),
        ):
            answer = service.ask(method, f"/{box}{path}", body)
            assert (answer.status, answer.json["code"]) == (409, "box_paused"), path
        assert service.ask("GET", f"/{box}/status").ok() == {"status": "paused"}
        assert service.ask("POST", f"/{box}/resume").ok() == {"status": "idle"}
        before = service.run(box, "wc -l < /tmp/ticks")["output"]
        more = f"while [ $(wc -l < /tmp/ticks) -le {before} ]; do sleep 0.01; done"
        assert service.run(box, more, timeout=10_000)["exit_code"] == 0

    def test_its_policy_changes_meanwhile(self, service: Server, lab: Lab) -> None:
        box = service.create()["id"]
        service.ask("POST", f"/{box}/pause").ok()
        service.ask("PUT", f"/{box}/config/network-policy", {"mode": "deny-all"}).ok()
        service.ask("POST", f"/{box}/resume").ok()
        denied = reach(service, box, "evil.test")
        assert lab.connections(plan.EVIL4) == []
        assert denied != "200"

    def test_a_program_that_has_itself_continued_gets_nowhere(self, service: Server, lab: Lab) -> None:
        """A timer sends it SIGCONT: while the box is paused nothing new that it opens is served."""
        box = service.create()["id"]
        service.ask("POST", f"/{box}/files/write", {"path": "p.py", "content": AWAKE}).ok()
        service.run(box, "python3 p.py >/dev/null 2>&1 &")
        until(lambda: len(lab.connections(plan.ALLOWED4)) > 3)
        service.ask("POST", f"/{box}/pause").ok()
        seen = len(lab.connections(plan.ALLOWED4))
        asked = len(lab.dns.questions)
        time.sleep(0.5)
        # One may have been under way.
        assert len(lab.connections(plan.ALLOWED4)) <= seen + 1
        assert len(lab.dns.questions) <= asked + 1
        service.ask("POST", f"/{box}/resume").ok()
        until(lambda: len(lab.connections(plan.ALLOWED4)) > seen + 3)

    def test_what_it_tries_meanwhile_is_judged_when_it_goes_on(self, service: Server, lab: Lab) -> None:
        box = service.create()["id"]
        service.ask("POST", f"/{box}/files/write", {"path": "p.py", "content": AWAKE}).ok()
        service.run(box, "python3 p.py >/dev/null 2>&1 &")
        until(lambda: len(lab.connections(plan.ALLOWED4)) > 3)
        service.ask("POST", f"/{box}/pause").ok()
        service.ask("PUT", f"/{box}/config/network-policy", {"mode": "deny-all"}).ok()
        seen = len(lab.connections(plan.ALLOWED4))
        service.ask("POST", f"/{box}/resume").ok()
        service.run(box, "sleep 0.3")
        assert len(lab.connections(plan.ALLOWED4)) == seen

    def test_a_box_that_is_kept_alive_is_not_paused(self, service: Server) -> None:
        box = service.create(keep_alive=True)["id"]
        answer = service.ask("POST", f"/{box}/pause")
        assert (answer.status, answer.error) == (409, "Keep-alive boxes cannot be paused")

    def test_a_paused_box_is_deleted(self, service: Server) -> None:
        box = service.create()["id"]
        service.ask("POST", f"/{box}/pause").ok()
        service.ask("DELETE", f"/{box}").ok()
        assert service.ask("GET", f"/{box}").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/git/clone",
        "/git/status",
        "/logs",
        "/runs",
        "/runs/1/cancel",
        "/run/stream",
        "/schedules",
        "/preview",
    ],
)
def test_what_the_hosted_service_has_and_this_one_has_not(service: Server, path: str) -> None:
    for method in ("GET", "POST"):
        answer = service.ask(method, f"/box-x{path}")
        assert (answer.status, answer.json["code"]) == (501, "not_supported")
        assert answer.error.startswith("this service does not have ")


def test_paths_that_nobody_has(service: Server) -> None:
    answer = service.ask("GET", "/box-x/nonsense")
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    answer = service.ask("PATCH", "")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
