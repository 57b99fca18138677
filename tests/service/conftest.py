"""A service in a process of its own, as an operator starts it, and a client for its bare API."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

COMMAND = [sys.executable, "-m", "box_policy", "serve"]
PATIENCE = 30.0
"""Seconds for what takes a fraction of one."""


def until(condition: Callable[[], bool]) -> None:
    """Return when a condition holds, of which no event tells."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


class Answer:
    """An answer of the service."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.content = response.content
        self.headers = response.headers

    @property
    def json(self) -> Any:
        return httpx.Response(200, content=self.content).json()

    @property
    def error(self) -> str:
        error = self.json["error"]
        assert isinstance(error, str)
        return error

    def ok(self) -> Any:
        """What it says, if it is no error."""
        assert self.status < 300, (self.status, self.content[:2000])
        return self.json


class Server:
    """``box-policy serve`` on a port of loopback."""

    def __init__(self, *options: str, env: dict[str, str] | None = None) -> None:
        self.key = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [*COMMAND, "--listen", "127.0.0.1:0", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"BOX_POLICY_API_KEY": self.key} | (env or {}),
        )
        assert self._process.stderr is not None
        said = ""
        while (found := re.search(r"http://[0-9.]+:[0-9]+", said)) is None:
            line = self._process.stderr.readline()
            assert line, f"the service did not start: {said}"
            said += line
        self.url = found[0]
        self._client = httpx.Client(
            base_url=self.url, headers={"X-Box-Api-Key": self.key}, timeout=PATIENCE, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """One request; ``path`` is below /v2/box."""
        if body is not None:
            options["json"] = body
        return Answer(self._client.request(method, f"/v2/box{path}", **options))

    def create(self, **body: object) -> Any:
        """A new box, as the service tells of it."""
        return self.ask("POST", "", body).ok()

    def run(self, box: str, command: str, **more: object) -> Any:
        """What becomes of a shell command in a box."""
        return self.ask("POST", f"/{box}/exec", {"command": ["sh", "-c", command], **more}).ok()

    def delete_all(self) -> None:
        """Delete every box and snapshot."""
        ids = [box["id"] for box in self.ask("GET", "").ok()]
        if ids:
            self.ask("DELETE", "", {"ids": ids}).ok()
        self.ask("DELETE", "/snapshots?all=true", {}).ok()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def close(self) -> None:
        self._client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        if self._process.stderr is not None:
            self._process.stderr.close()


@pytest.fixture(scope="session")
def running_service(running_lab: object) -> Iterator[Server]:
    """The one service of this run. Tests take ``service``."""
    with Server() as server:
        try:
            answer = server.ask("POST", "", {})
            if answer.status == 500:
                pytest.skip(f"no boxes here: {answer.error}")
            yield server
        finally:
            server.close()


@pytest.fixture
def service(running_service: Server) -> Iterator[Server]:
    """A service without boxes or snapshots."""
    running_service.delete_all()
    yield running_service
    running_service.delete_all()


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """A directory for snapshots."""
    return tmp_path / "snapshots"
