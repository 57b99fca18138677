"""Containers that share a network: one that holds it, the gate, and programs beside it."""

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import docker
import yaml
from docker.models.containers import Container
from docker.models.networks import Network

from tests.lab import plan

REPOSITORY: Final = Path(__file__).parents[2]
LABEL: Final = "box-policy-test"
_PATIENCE: Final = 30.0
_SLEEP: Final = ["sleep", "infinity"]

HARDENED: Final[Mapping[str, Any]] = {
    "user": "1000:1000",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
}
"""A program as configs/compose.yaml has it."""
ROOT: Final[Mapping[str, Any]] = {"cap_drop": ["ALL"], "user": "0:0"}

_GATE: Final[Mapping[str, Any]] = {
    "user": "0:0",
    "cap_drop": ["ALL"],
    "cap_add": ["NET_ADMIN"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
    "tmpfs": {"/run/box-policy": "mode=0700,uid=0,gid=0,size=1m"},
}
_ENVIRONMENT: Final = {"BOX_POLICY_SIDECAR": "1", "BOX_POLICY_NAME_SERVERS": plan.NAMESERVER4}


@dataclass(frozen=True)
class Run:
    """What a program in a container came to."""

    status: int
    output: str
    """Standard output and error."""


def run(container: Container, *command: str, **options: Any) -> Run:
    """Run a program in a container that runs."""
    done = container.exec_run(list(command), **options)
    if done.exit_code is None or not isinstance(done.output, bytes):
        raise AssertionError(f"the engine doesn't say what came of {command}")
    return Run(done.exit_code, done.output.decode(errors="replace"))


def curl(container: Container, url: str, *options: str, **more: Any) -> Run:
    """Fetch a URL. Its output ends with the status of HTTP."""
    wanted = ["curl", "-sS", "--max-time", "8", "--write-out", " %{http_code}", *options, url]
    return run(container, *wanted, **more)


def python(container: Container, source: str, *arguments: str, **options: Any) -> Run:
    """Run a program in Python."""
    return run(container, "python3", "-c", source, *arguments, **options)


def wait_until[T](predicate: Callable[[], T], what: str, patience: float = _PATIENCE) -> T:
    """Ask again and again: an engine tells nobody what its containers do inside."""
    deadline = time.monotonic() + patience
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.05)
    return value


def wait_ready(gate: Container) -> None:
    """Wait until a gate says so itself. AssertionError, with its words, if it ends instead."""

    def ready() -> bool:
        gate.reload()
        said = logs(gate)
        if gate.status not in ("created", "running"):
            raise AssertionError(f"the gate has ended: {said}")
        return "box-policy: ready" in said

    wait_until(ready, "the gate is ready")
    assert run(gate, "box-policy", "status", "--ready").status == 0, logs(gate)


def logs(container: Container) -> str:
    """All that a container has said."""
    return str(container.logs().decode(errors="replace"))


def write_policy(directory: Path, policy: Mapping[str, Any] | str) -> None:
    """Put a policy in force, as an editor does: under another name first."""
    text = policy if isinstance(policy, str) else yaml.safe_dump(dict(policy))
    partial = directory / ".policy.yaml.new"
    partial.write_text(text)
    partial.chmod(0o644)
    partial.rename(directory / "policy.yaml")


class Pod:
    """A network, held by a container that does nothing else, and who shares it."""

    def __init__(self, maker: "PodMaker", number: int, network: str, holder: Mapping[str, Any]) -> None:
        self._maker = maker
        self.directory = maker.directory / f"policy-{number}"
        """What the gate has at /etc/box-policy."""
        self.directory.mkdir(mode=0o755)
        self.holder = maker.start(
            maker.image,
            entrypoint=_SLEEP,
            network=network,
            user="65532:65532",
            healthcheck={"test": ["NONE"]},
            **holder,
        )

    def gate(
        self,
        policy: Mapping[str, Any] | str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        **options: Any,
    ) -> Container:
        """Start a gate, and wait until it's ready."""
        if policy is not None:
            write_policy(self.directory, policy)
        started = self._maker.start(
            self._maker.image,
            **{
                **_GATE,
                "network_mode": f"container:{self.holder.id}",
                "environment": {**_ENVIRONMENT, **(environment or {})},
                "volumes": [f"{self.directory}:/etc/box-policy:ro"],
                "healthcheck": {"test": ["NONE"]},
                **options,
            },
        )
        if ready:
            wait_ready(started)
        return started

    def program(self, *, command: Sequence[str] = _SLEEP, **options: Any) -> Container:
        """Start a program beside the gate, which sleeps: tests run others in its place."""
        return self._maker.start(
            self._maker.base,
            command=list(command),
            **{"network_mode": f"container:{self.holder.id}", **options},
        )


class PodMaker:
    """Makes containers and networks, and removes them at its end."""

    def __init__(self, client: docker.DockerClient, image: str, base: str, directory: Path) -> None:
        self.client = client
        self.image = image
        """The gate's."""
        self.base = base
        """What programs run in."""
        self.directory = directory
        self._containers: list[Container] = []
        self._networks: list[Network] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # At once: each takes the engine a while, and little of this machine.
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda container: container.remove(force=True, v=True), self._containers))
        for network in self._networks:
            network.remove()

    def __call__(self, *, network: str = "bridge", **holder: Any) -> Pod:
        """A pod without a gate. ``network``: the engine's own, or one that ``network()`` made."""
        return Pod(self, next(self._numbers), network, holder)

    def network(self, **options: Any) -> str:
        """A network of its own, where the engine's resolver answers at 127.0.0.11; its name."""
        made = self.client.networks.create(
            f"{LABEL}-{os.getpid()}-{next(self._numbers)}", labels={LABEL: ""}, **options
        )
        self._networks.append(made)
        return str(made.name)

    def start(self, image: str, **options: Any) -> Container:
        """Start a container."""
        container = self.client.containers.create(image, labels=[LABEL], **options)
        self._containers.append(container)
        container.start()
        return container
