"""A service whose boxes are containers, with a real engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from box_policy.sandbox.docker import identity
from tests.containers.engine import Engine, engine
from tests.lab import Lab, plan
from tests.service.conftest import Server, until
from tests.service.test_boxes import ALLOWED, REACH

DOCKER = "box-policy-test/base"
PYTHON = "box-policy-test/python:3"


@pytest.fixture(scope="module")
def docker() -> Engine:
    """The engine, whose base image has another name as well."""
    started = engine()
    client = started.client()
    client.images.get(DOCKER).tag("box-policy-test/python", "3")
    client.close()
    return started


def serve(docker: Engine, *options: str) -> Server:
    return Server(*options, env={"DOCKER_HOST": docker.address})


@pytest.fixture(scope="module")
def running(docker: Engine, running_lab: Lab) -> Iterator[Server]:
    images = ("--image", DOCKER, "--image", f"python={PYTHON}")
    with serve(docker, *images, "--name-server", running_lab.nameserver) as server:
        yield server


@pytest.fixture
def service(running: Server) -> Iterator[Server]:
    running.delete_all()
    yield running
    running.delete_all()


def images(docker: Engine) -> set[str]:
    """The ids of images that are snapshots."""
    client = docker.client()
    try:
        return {str(image.id) for image in client.images.list(all=True, filters={"label": identity.SNAPSHOT})}
    finally:
        client.close()


def snapshot(service: Server, box: str, name: str = "one") -> Any:
    return service.ask("POST", f"/{box}/snapshots", {"name": name}).ok()


def from_snapshot(service: Server, snapshot_id: str, **body: object) -> Any:
    return service.ask("POST", "/from-snapshot", {"snapshot_id": snapshot_id, **body}).ok()


class TestBoxes:
    def test_it_is_made_of_the_image(self, service: Server) -> None:
        box = service.create()
        assert box["image"] == DOCKER
        said = service.run(box["id"], "echo $HOME $PWD; echo $PATH; . /etc/os-release; echo $ID $VERSION_ID")
        assert said["output"].split("\n") == [
            "/workspace/home /workspace/home",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "debian 13",
            "",
        ]

    def test_what_bounds_it(self, service: Server) -> None:
        assert set(service.create()["limits"]) == {"memory", "pids", "cpus"}

    def test_it_reaches_what_is_allowed(self, service: Server, lab: Lab) -> None:
        box = service.create(network_policy=ALLOWED)["id"]
        denied = service.run(box, REACH.format("evil.test"))["output"]
        assert lab.packets(plan.EVIL4) == [] and denied != "200"
        assert service.run(box, REACH.format("allowed.test"))["output"] == "200"
        service.ask("PUT", f"/{box}/config/network-policy", {"mode": "deny-all"}).ok()
        lab.reset()
        assert service.run(box, REACH.format("allowed.test"))["output"] != "200"
        assert lab.packets() == []

    def test_programs_and_files(self, service: Server) -> None:
        box = service.create()["id"]
        service.ask("POST", f"/{box}/files/write", {"path": "a/b.txt", "content": "text"}).ok()
        code = {
            "code": "print(open('a/b.txt').read(), 6 * 7)",
            "language": "python",
        }
        assert service.ask("POST", f"/{box}/code", code).ok()["output"] == "text 42\n"
        assert service.run(box, "sleep 60", timeout=200)["timed_out"]

    def test_pausing_stops_it(self, service: Server) -> None:
        box = service.create()["id"]
        assert service.ask("POST", f"/{box}/pause").ok() == {"status": "paused"}
        answer = service.ask("POST", f"/{box}/exec", {"command": ["true"]})
        assert (answer.status, answer.json["code"]) == (409, "box_paused")
        assert service.ask("POST", f"/{box}/resume").ok() == {"status": "idle"}
        assert service.run(box, "echo on")["output"] == "on\n"

    def test_which_image(self, service: Server) -> None:
        assert service.create(runtime="python")["image"] == PYTHON
        assert service.create(image=PYTHON)["image"] == PYTHON
        for body, code in (
            ({"image": "debian:13"}, "image_refused"),
            ({"image": "--privileged"}, "request_invalid"),
            ({"image": 5}, "request_invalid"),
            ({"runtime": "node"}, "runtime_missing"),
            ({"runtime": "python", "image": PYTHON}, "request_invalid"),
        ):
            answer = service.ask("POST", "", body)
            assert (answer.status, answer.json["code"]) == (422, code), body
        assert len(service.ask("GET", "").ok()) == 2

    def test_an_image_that_can_not_be_had(self, docker: Engine, running_lab: Lab) -> None:
        with serve(docker, "--image", "box-policy-test/absent") as server:
            answer = server.ask("POST", "", {})
            assert (answer.status, answer.json["code"]) == (500, "box_failed")
            assert "box-policy-test/absent" in answer.error


class TestSnapshots:
    def test_all_files_come_back(self, service: Server) -> None:
        box = service.create(network_policy=ALLOWED)["id"]
        install = "printf '#!/bin/sh\\necho tool' >/usr/local/bin/tool; chmod +x /usr/local/bin/tool"
        assert service.run(box, f"{install}; echo kept >file")["exit_code"] == 0
        taken = snapshot(service, box)
        assert (taken["status"], taken["box_id"], taken["network_policy"]) == ("ready", box, ALLOWED)
        service.run(box, "echo later >file")
        again = from_snapshot(service, taken["id"])
        assert (again["snapshot_id"], again["network_policy"]) == (taken["id"], ALLOWED)
        assert service.run(again["id"], "tool; cat file; echo $HOME $USER")["output"].split("\n")[:3] == [
            "tool",
            "kept",
            "/workspace/home root",
        ]
        assert set(again["limits"]) == {"memory", "pids", "cpus"}

    def test_its_image_goes_with_it(self, service: Server, docker: Engine) -> None:
        taken = snapshot(service, service.create()["id"])
        assert images(docker) == {taken["image"]}
        service.ask("DELETE", "/snapshots", {"ids": [taken["id"]]}).ok()
        assert images(docker) == set()

    def test_but_not_before_the_boxes_that_were_made_of_it(self, service: Server, docker: Engine) -> None:
        box = service.create()["id"]
        first = snapshot(service, box)
        made = from_snapshot(service, first["id"])["id"]
        second = snapshot(service, made)
        service.ask("DELETE", f"/{box}/snapshots/{first['id']}").ok()
        answer = service.ask("POST", "/from-snapshot", {"snapshot_id": first["id"]})
        assert (answer.status, answer.json["code"]) == (404, "snapshot_unknown")
        assert service.run(made, "echo on")["output"] == "on\n"
        service.ask("DELETE", f"/{made}").ok()
        service.ask("DELETE", "/snapshots", {"ids": [second["id"]]}).ok()
        assert images(docker) == set()

    def test_what_does_not_fit(self, service: Server) -> None:
        taken = snapshot(service, service.create(runtime="python")["id"])
        for body in ({"image": PYTHON}, {"runtime": "node"}):
            answer = service.ask("POST", "/from-snapshot", {"snapshot_id": taken["id"], **body})
            assert (answer.status, answer.json["code"]) == (422, "request_invalid"), body
        assert from_snapshot(service, taken["id"], runtime="python")["runtime"] == "python"

    def test_of_a_box_that_has_ended(self, service: Server) -> None:
        box = service.create()["id"]
        service.ask("DELETE", f"/{box}").ok()
        assert service.ask("POST", f"/{box}/snapshots", {"name": "late"}).status == 404

    def test_without_a_directory_they_end_with_the_service(self, docker: Engine, running_lab: Lab) -> None:
        before = images(docker)
        with serve(docker, "--image", DOCKER) as server:
            taken = snapshot(server, server.create()["id"])
            from_snapshot(server, taken["id"])
            assert images(docker) == before | {taken["image"]}
        assert images(docker) == before


class TestInADirectory:
    @pytest.fixture
    def kept(self, docker: Engine, running_lab: Lab, snapshots: Path) -> Iterator[dict[str, Any]]:
        """A snapshot of a service that was killed."""
        with serve(docker, "--image", DOCKER, "--snapshots", str(snapshots)) as server:
            box = server.create(network_policy=ALLOWED, size="medium")["id"]
            server.run(box, "echo kept >file")
            taken = snapshot(server, box)
            server.kill()
        yield taken
        client = docker.client()
        if taken["image"] in images(docker):
            client.images.remove(taken["image"], force=True)
        client.close()

    def test_they_outlive_the_service(self, kept: dict[str, Any], docker: Engine, snapshots: Path) -> None:
        with serve(docker, "--image", DOCKER, "--snapshots", str(snapshots)) as server:
            assert server.ask("GET", "/snapshots").ok()["snapshots"] == [kept]
            box = from_snapshot(server, kept["id"])
            assert (box["network_policy"], box["size"]) == (ALLOWED, "medium")
            assert server.run(box["id"], "cat file")["output"] == "kept\n"
            # Its image is in use: it goes later, even if this service is killed first.
            server.ask("DELETE", "/snapshots?all=true", {}).ok()
            assert kept["image"] in images(docker)
            server.kill()
        until(lambda: not containers(docker, box["id"]))
        with serve(docker, "--image", DOCKER, "--snapshots", str(snapshots)) as server:
            assert server.ask("GET", "/snapshots").ok()["snapshots"] == []
            until(lambda: kept["image"] not in images(docker))
        assert [path.name for path in snapshots.iterdir()] == [".lock"]

    def test_another_backend_or_engine_can_not_use_them(
        self, kept: dict[str, Any], docker: Engine, snapshots: Path
    ) -> None:
        with Server("--snapshots", str(snapshots)) as server:
            for method, path, body in (
                ("POST", "/from-snapshot", {"snapshot_id": kept["id"]}),
                ("DELETE", "/snapshots", {"ids": [kept["id"]]}),
            ):
                answer = server.ask(method, path, body)
                assert (answer.status, answer.json["code"]) == (409, "snapshot_unusable")
                assert "serve --backend docker" in answer.error
            answer = server.ask("POST", "", {"image": DOCKER})
            assert (answer.status, answer.json["code"]) == (422, "image_refused")
            box = server.create()["id"]
            archive = snapshot(server, box)
        with serve(docker, "--image", DOCKER, "--snapshots", str(snapshots)) as server:
            answer = server.ask("POST", "/from-snapshot", {"snapshot_id": archive["id"]})
            assert (answer.status, answer.json["code"]) == (409, "snapshot_unusable")
            assert "serve --backend namespaces" in answer.error
            client = docker.client()
            until(lambda: not containers(docker, kept["box_id"]))
            client.images.remove(kept["image"])
            client.close()
            answer = server.ask("POST", "/from-snapshot", {"snapshot_id": kept["id"]})
            assert (answer.status, answer.json["code"]) == (409, "snapshot_unusable")
            assert "is gone" in answer.error and server.ask("GET", "").ok() == []
            server.ask("DELETE", "/snapshots?all=true", {}).ok()
        assert [path.name for path in snapshots.iterdir()] == [".lock"]


def containers(docker: Engine, box: str) -> list[str]:
    """The containers of a box."""
    client = docker.client()
    try:
        found = client.containers.list(all=True, filters={"label": f"{identity.BOX}={box}"})
        return [str(container.id) for container in found]
    finally:
        client.close()


def test_an_engine_that_is_not_there() -> None:
    command = ["--image", DOCKER]
    with pytest.raises(AssertionError, match=r"the Docker engine can't be reached"):
        Server(*command, env={"DOCKER_HOST": "unix:///nonexistent.sock"})
