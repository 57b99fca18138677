"""configs/compose.yaml, as it is, on a real engine."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import docker
import pytest
import yaml
from docker.models.containers import Container

from tests.containers import attacks
from tests.containers.engine import Engine
from tests.containers.pod import REPOSITORY, curl, python, run, wait_until, write_policy
from tests.lab import Lab, plan

pytest_plugins = ["tests.containers.fixtures"]

FILE: Final = REPOSITORY / "configs" / "compose.yaml"
PROJECT: Final = "box-policy-test"
ALLOWED: Final = {"mode": "custom", "allowed_domains": ["allowed.test"]}


class Compose:
    """``docker compose`` for the file, with what a test adds to it."""

    def __init__(self, engine: Engine, directory: Path, variables: Mapping[str, str]) -> None:
        self._environment = dict(engine.environment)
        self._variables = dict(variables)
        self._command = [*engine.compose, "--project-name", PROJECT, "--file", str(FILE)]
        self._added = directory / "added.yaml"

    def add(self, services: Mapping[str, Any]) -> None:
        self._added.write_text(yaml.safe_dump({"services": dict(services)}))

    def __call__(
        self, *arguments: str, check: bool = True, without: str = ""
    ) -> subprocess.CompletedProcess[str]:
        added = ["--file", str(self._added)] if self._added.exists() else []
        done = subprocess.run(
            [*self._command, *added, *arguments],
            env={
                **self._environment,
                **{name: value for name, value in self._variables.items() if name != without},
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies")
    directory.chmod(0o755)
    write_policy(directory, ALLOWED)
    return directory


@pytest.fixture(scope="module")
def compose(
    docker_engine: Engine, gate_image: str, policies: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compose:
    if not docker_engine.compose:
        pytest.skip("the compose plugin is missing: make test fetches it")
    variables = {
        "BOX_POLICY_IMAGE": gate_image,
        "APP_IMAGE": docker_engine.image,
        "POLICY_DIRECTORY": str(policies),
    }
    compose = Compose(docker_engine, tmp_path_factory.mktemp("compose"), variables)
    compose.add(
        {
            # Where the world's name server is; on a machine, whatever the engine is set up with.
            "net": {"dns": [plan.NAMESERVER4]},
            "gate": {"healthcheck": {"interval": "500ms"}},
            "app": {"command": ["sleep", "infinity"]},
        }
    )
    return compose


@pytest.fixture(scope="module")
def up(compose: Compose) -> Iterator[None]:
    compose("up", "--detach", "--quiet-pull")
    yield
    compose("down", "--volumes", "--timeout", "1")


def _container(client: docker.DockerClient, service: str) -> Container:
    labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
    (found,) = client.containers.list(all=True, filters={"label": labels})
    return found


@pytest.fixture
def app(up: None, docker_client: docker.DockerClient) -> Container:
    return _container(docker_client, "app")


@pytest.fixture
def gate(up: None, docker_client: docker.DockerClient) -> Container:
    return _container(docker_client, "gate")


def test_without_a_directory_of_policies_nothing_starts(compose: Compose) -> None:
    done = compose("config", check=False, without="POLICY_DIRECTORY")
    assert done.returncode != 0
    assert "set POLICY_DIRECTORY" in done.stderr


def test_only_the_gate_has_a_capability_and_its_socket(compose: Compose) -> None:
    services = json.loads(compose("config", "--format", "json").stdout)["services"]
    added = {name: service.get("cap_add") for name, service in services.items()}
    assert added == {"net": None, "gate": ["NET_ADMIN"], "app": None}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert "docker.sock" not in json.dumps(service), name
    assert services["app"]["user"] == "1000:1000"
    assert not services["app"].get("volumes")
    assert services["app"]["depends_on"]["gate"]["condition"] == "service_healthy"
    # A daemon that starts anew doesn't wait for the gate.
    assert services["app"]["restart"] == "no"


def test_what_is_allowed_is_fetched(app: Container, world: Lab) -> None:
    assert curl(app, "http://allowed.test/").output.endswith(" 200")
    assert curl(app, "https://allowed.test/", "--insecure").output.endswith(" 200")
    assert {request.address for request in world.requests()} <= {plan.ALLOWED4, plan.ALLOWED6}


def test_what_is_denied_is_not(app: Container, world: Lab) -> None:
    assert curl(app, "http://evil.test/").status != 0
    assert curl(app, f"http://{plan.EVIL4}/").output.endswith(" 403")
    print(python(app, attacks.program(attacks.DIRECT + attacks.DOCKERS_RESOLVER)).output)
    assert world.packets(plan.EVIL4) == []
    assert not [question for question in world.dns.questions if "evil" in question.name]


def test_a_policy_that_is_renamed_into_place_is_followed(app: Container, policies: Path, world: Lab) -> None:
    write_policy(policies, {"mode": "custom", "allowed_domains": ["evil.test"]})
    try:
        wait_until(lambda: curl(app, "http://evil.test/").output.endswith(" 200"), "the new policy", 10)
        assert curl(app, "http://allowed.test/").status != 0
    finally:
        write_policy(policies, ALLOWED)
    wait_until(lambda: curl(app, "http://allowed.test/").output.endswith(" 200"), "the old policy", 10)
    assert curl(app, "http://evil.test/").status != 0


def test_the_gate_is_asked_and_told_from_the_host(compose: Compose, app: Container, world: Lab) -> None:
    curl(app, f"http://{plan.EVIL4}/")
    assert "default" in compose("exec", "-T", "gate", "box-policy", "status").stdout
    compose("exec", "-T", "gate", "box-policy", "policy", "set", "--deny-all")
    assert curl(app, "http://allowed.test/").status != 0
    compose("exec", "-T", "gate", "box-policy", "policy", "set", "--allow", "allowed.test")
    assert curl(app, "http://allowed.test/").output.endswith(" 200")


def test_a_killed_gate_is_restarted_beside_a_program_that_goes_on(
    app: Container, gate: Container, world: Lab
) -> None:
    gate.reload()
    restarts, pid = gate.attrs["RestartCount"], app.attrs["State"]["Pid"]
    # Not by the engine's kill, which counts as the operator's wish. Its own pid 1 is out of its reach.
    subprocess.run(["kill", "-9", str(gate.attrs["State"]["Pid"])], check=True)

    def restarted() -> bool:
        gate.reload()
        return gate.attrs["RestartCount"] > restarts and gate.status == "running"

    wait_until(restarted, "the engine restarts the gate")
    wait_until(lambda: run(gate, "box-policy", "status", "--ready").status == 0, "it is ready")
    wait_until(lambda: curl(app, "http://allowed.test/").output.endswith(" 200"), "the network is back")
    app.reload()
    assert app.attrs["State"]["Pid"] == pid
    assert world.packets(plan.EVIL4) == []


def test_the_program_can_write_nothing_that_the_gate_reads(app: Container) -> None:
    for path in ("/etc/hosts", "/etc/resolv.conf", "/etc/box-policy", "/run/box-policy"):
        for user in ("1000:1000", "0:0"):
            assert run(app, "sh", "-c", f"echo x >> {path}", user=user).status != 0, (path, user)
