"""A control endpoint on a real socket, in front of a gate that only takes notes."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import httpx
import httpx_sse
import pytest

from box_policy.audit.metrics import Metrics
from box_policy.audit.records import Entry, Event, Outcome, PolicyRecord, Protocol, Record
from box_policy.audit.sinks import Audit
from box_policy.audit.stream import RecordStream
from box_policy.control.api import Activity, Backend, SourceStatus, make_app
from box_policy.control.endpoint import Bounds, ControlAddress, Endpoint, TcpAddress, UnixAddress
from box_policy.control.store import PolicyStore
from box_policy.gate.resolution import Resolution
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy
from tests.control.gate_with_files import Files, no_events, only, watching

BOX = "b"
POLICY = f"/v1/boxes/{BOX}/network-policy"
TOKEN = "0123456789abcdef-token"


@dataclass
class FakeGate:
    """What the store puts policies in force in."""

    in_force: dict[str, tuple[CompiledPolicy, int]] = field(default_factory=dict)
    fault: Exception | None = None

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        return CompiledPolicy(policy)

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int) -> int:
        if self.fault is not None:
            raise self.fault
        self.in_force[box_id] = policy, generation
        return 0

    def drop(self, box_id: str) -> None:
        del self.in_force[box_id]


@dataclass
class World:
    """All that stands behind the API."""

    gate: FakeGate = field(default_factory=FakeGate)
    stream: RecordStream = field(default_factory=RecordStream)
    metrics: Metrics = field(default_factory=lambda: Metrics("1.2.3"))
    records: list[Entry] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """What the resolver finds."""
    resolved: list[str] = field(default_factory=list)
    """What it was asked for."""
    sources: list[SourceStatus] = field(default_factory=list)
    ready: bool = True
    may_fail: bool = False
    """The test breaks something, which is logged."""

    def __post_init__(self) -> None:
        self.audit = Audit(self.stream, self.metrics, self.records.append)
        self.store = PolicyStore(self.gate, self.audit)
        self.store.create(BOX, NetworkPolicy.parse("deny-all"), source="test")
        self.backend = Backend(
            version="1.2.3",
            store=self.store,
            audit=self.audit,
            stream=self.stream,
            metrics=self.metrics,
            resolve=self._resolve,
            activity=lambda box: Activity(3, 1),
            records_lost=lambda: 7,
            ready=lambda: self.ready,
            file_sources=lambda: self.sources,
        )

    async def _resolve(self, name: str) -> Resolution:
        self.resolved.append(name)
        if name not in self.addresses:
            return Resolution(error="no such name")
        return Resolution((ip_address(self.addresses[name]),))

    def refused(self) -> list[PolicyRecord]:
        return [
            record
            for record in self.records
            if isinstance(record, PolicyRecord) and record.outcome is Outcome.REFUSED
        ]


def record(number: int = 1, **fields: object) -> Record:
    defaults: dict[str, object] = {
        "event": Event.DECISION,
        "connection": number,
        "box": BOX,
        "generation": 1,
        "protocol": Protocol.TLS,
        "allowed": False,
        "reason": Reason.NAME_NOT_ALLOWED,
    }
    return Record(**(defaults | fields))  # type: ignore[arg-type]


@dataclass
class Control:
    """The endpoint while it serves, and a client of it."""

    world: World
    endpoint: Endpoint
    client: httpx.AsyncClient
    serving: asyncio.Task[None]

    @property
    def host(self) -> str:
        address = self.endpoint.address
        return str(address) if isinstance(address, TcpAddress) else "box-policy"

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which the test itself speaks."""
        address = self.endpoint.address
        if isinstance(address, UnixAddress):
            return await asyncio.open_unix_connection(address.path)
        assert isinstance(address, TcpAddress)
        return await asyncio.open_connection(str(address.host), address.port)

    async def say(self, *lines: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request in the test's own words (without Host, unless they have one): the status, and all
        that comes until the endpoint closes the connection."""
        reader, writer = await self.open()
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        try:
            async with asyncio.timeout(10):
                answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        writer.close()
        return int(answer.split()[1]) if answer else 0, answer

    @contextlib.asynccontextmanager
    async def follow(
        self, query: str = "", headers: dict[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[httpx_sse.ServerSentEvent]]:
        """The events of a stream."""
        async with (
            httpx_sse.aconnect_sse(
                self.client, "GET", f"/v1/decisions?{query}", headers=headers or {}, timeout=10
            ) as source,
            asyncio.timeout(20),
        ):
            assert source.response.status_code == 200, (await source.response.aread()).decode()
            # An id alone is no event (HTML Standard section 9.2.6); httpx-sse makes an empty one of it.
            yield (event async for event in source.aiter_sse() if event.data)


type MakeControl = Callable[..., Control]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def make_control(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[MakeControl]:
    """Makes endpoints: on a unix socket of their own, or where the test says."""
    controls: list[Control] = []
    names = itertools.count()

    def make(
        address: ControlAddress | None = None,
        *,
        token: str | None = None,
        bounds: Bounds | None = None,
        foreign: Callable[[int], bool] | None = None,
        **app_options: float,
    ) -> Control:
        app = make_app(world.backend, **app_options)  # type: ignore[arg-type]
        where = address or UnixAddress(tmp_path / f"{next(names)}.sock")
        endpoint = Endpoint(where, app, token=token, bounds=bounds, foreign=foreign)
        endpoint.start()
        transport = httpx.AsyncHTTPTransport(
            uds=str(endpoint.address.path) if isinstance(endpoint.address, UnixAddress) else None
        )
        base = str(endpoint.address) if isinstance(endpoint.address, TcpAddress) else "box-policy"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(transport=transport, base_url=f"http://{base}", headers=headers)
        control = Control(world, endpoint, client, asyncio.get_running_loop().create_task(endpoint.serve()))
        controls.append(control)
        return control

    yield make
    world.stream.close()
    for control in controls:
        await control.client.aclose()
        await control.endpoint.close()
        await control.serving
    if not world.may_fail:
        logged = [record for when in ("setup", "call") for record in caplog.get_records(when)]
        assert [record.getMessage() for record in logged if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def control(make_control: MakeControl) -> Control:
    return make_control()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o755)
    (folder / "web.yaml").write_text(only("web.test"))
    (folder / "default.yaml").write_text(only("default.test"))
    return folder


@pytest.fixture
async def files(folder: Path) -> AsyncIterator[Files]:
    """Of a directory, for web, which has a file, and db and mail, which haven't."""
    async with watching(Files(folder, ["web", "db", "mail"], poll=0.02, awatch=no_events)) as files:
        yield files
