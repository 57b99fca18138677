"""A gate that commands can speak to, and commands that go on until they are ended."""

import asyncio
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import pytest
from starlette.types import Message, Receive, Scope, Send

from box_policy.audit.metrics import Metrics
from box_policy.audit.records import Entry
from box_policy.audit.sinks import Audit
from box_policy.audit.stream import RecordStream
from box_policy.control.api import Activity, Backend, make_app
from box_policy.control.endpoint import Endpoint
from box_policy.control.http.address import ControlAddress, InheritedAddress, UnixAddress
from box_policy.control.store import PolicyStore
from box_policy.gate.resolution import Resolution
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

TIMEOUT = 20.0
"""Seconds for what happens in a fraction of one."""


class NoTraffic:
    """Enforces nothing: there is nothing to enforce it on."""

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        return CompiledPolicy(policy)

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int) -> int:
        return 0

    def drop(self, box_id: str) -> None:
        pass


@dataclass
class FileStatus:
    """How a file that policies come from is doing."""

    path: str
    state: Literal["ok", "refused", "missing", "being_written"] = "ok"
    box: str | None = None
    error: str | None = None
    since: float = 0.0


async def resolve(name: str) -> Resolution:
    return Resolution(error="there is no network")


class Gate:
    """The control side of a gate, on a loop of its own: real but for the traffic."""

    def __init__(self, address: ControlAddress, token: str | None = None) -> None:
        self.address = address
        self.token = token
        self.boxes = ["default"]
        self.files: list[FileStatus] = []
        self.is_ready = True
        self._followed = threading.Semaphore(0)
        self._read = threading.Semaphore(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __str__(self) -> str:
        return str(self.address)

    def start(self) -> None:
        """A new life: no records, and the boxes anew."""
        self.stream = RecordStream()
        metrics = Metrics("1.2.3")
        self.audit = Audit(self.stream, metrics)
        self.store = PolicyStore(NoTraffic(), self.audit)
        backend = Backend(
            version="1.2.3",
            store=self.store,
            audit=self.audit,
            stream=self.stream,
            metrics=metrics,
            resolve=resolve,
            activity=lambda box: Activity(connections=3, pending=1),
            ready=lambda: self.is_ready,
            file_sources=lambda: self.files,
        )
        self.app = make_app(backend)
        self._run(self._begin())
        self.listen()

    async def _begin(self) -> None:
        for box in self.boxes:
            self._create(box, "deny-all")

    def create(self, box: str, policy: object) -> None:
        async def create() -> None:
            self._create(box, policy)

        self._run(create())

    def _create(self, box: str, policy: object) -> None:
        self.store.create(box, NetworkPolicy.parse(policy), source="/etc/policy.yaml")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        follows = scope["path"] == "/v1/decisions" and b"follow=false" not in scope["query_string"]
        reads = scope["path"].endswith("/network-policy") and scope["method"] == "GET"

        async def noted(message: Message) -> None:
            await send(message)
            if follows and message["type"] == "http.response.start":
                self._followed.release()
            elif reads and message["type"] == "http.response.body":
                self._read.release()

        await self.app(scope, receive, noted)

    def wait_for_stream(self) -> None:
        """Wait until one more client follows the records."""
        assert self._followed.acquire(timeout=TIMEOUT)

    def wait_for_read(self) -> None:
        """Wait until one more client has read a policy."""
        assert self._read.acquire(timeout=TIMEOUT)

    def stop(self) -> None:
        """End as a gate does that is told to."""
        self._run(self._end())
        self.cut()

    async def _end(self) -> None:
        self.stream.close()

    def listen(self) -> None:
        self._run(self._listen())

    async def _listen(self) -> None:
        self.endpoint = Endpoint(self.address, self._serve, token=self.token)
        self.endpoint.start()
        assert not isinstance(self.endpoint.address, InheritedAddress)
        self.address = self.endpoint.address
        self._serving = asyncio.ensure_future(self.endpoint.serve())

    def cut(self) -> None:
        """Break every connection and listen no more, while the gate itself goes on."""
        self._run(self._cut())

    async def _cut(self) -> None:
        await self.endpoint.close()
        await self._serving

    def put(self, policy: object, box: str = "default") -> None:
        self._run(self.store.put(box, NetworkPolicy.parse(policy), source="/etc/policy.yaml"))

    def tell(self, *records: Entry) -> None:
        """Have records made."""

        async def tell() -> None:
            for record in records:
                self.audit(record)

        self._run(tell())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run[T](self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate on a unix socket, with the one box ``default`` whose policy is deny-all."""
    gate = Gate(UnixAddress(tmp_path / "control.sock"))
    gate.start()
    yield gate
    gate.close()


class Running:
    """A command that runs until it is ended."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "box_policy", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: dict[str, queue.Queue[str | None]] = {"stdout": queue.Queue(), "stderr": queue.Queue()}
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str] | None) -> None:
        for line in stream or ():
            self._lines[name].put(line.rstrip("\n"))
        self._lines[name].put(None)

    def line(self) -> str:
        """The next line of its output."""
        return self._next("stdout")

    def said(self) -> str:
        """The next line on standard error."""
        return self._next("stderr")

    def _next(self, name: str) -> str:
        line = self._lines[name].get(timeout=TIMEOUT)
        if line is None:
            raise EOFError(f"nothing more on {name}; exit status {self._process.wait(TIMEOUT)}")
        return line

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, list[str], list[str]]:
        """Send it a signal. Its exit status, and what it wrote that nobody has read."""
        self._process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, list[str], list[str]]:
        """Wait for its end."""
        status = self._process.wait(TIMEOUT)
        for reader in self._readers:
            reader.join(TIMEOUT)
        left = [[line for line in lines.queue if line is not None] for lines in self._lines.values()]
        return status, left[0], left[1]

    def kill(self) -> None:
        self._process.kill()
        self.ended()


@pytest.fixture
def start(gate: Gate) -> Iterator[Callable[..., Running]]:
    """Starts commands that speak to the gate; kills what is left of them."""
    running: list[Running] = []

    def start(*arguments: str) -> Running:
        running.append(Running(*arguments, "--control", str(gate)))
        return running[-1]

    yield start
    for command in running:
        command.kill()
