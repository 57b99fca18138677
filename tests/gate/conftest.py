"""A gate in the test's own loop, with clients whose claims the test chooses."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from box_policy.audit.records import Entry, Event, Record
from box_policy.audit.sinks import Audit
from box_policy.gate.destination import Destination
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Settings
from box_policy.gate.limits import Limits
from box_policy.policy.model import NetworkPolicy
from tests.lab import Lab, plan

BOX = "b"
POLICY = {
    "mode": "custom",
    "allowed_domains": ["allowed.test", "*.wild.test", "front.cdn.test", "*.rebind.test"],
    "allowed_cidrs": [plan.CIDR],
}


@dataclass
class Client:
    """The box's end of a connection that the gate has just accepted."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> bytes:
        """All bytes until the end. ConnectionResetError if it ends with a reset."""
        async with asyncio.timeout(15):
            return await self.reader.read()

    async def read_response(self) -> tuple[int, bytes]:
        """Status and body of one HTTP response that announces its length."""
        async with asyncio.timeout(15):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next(
                (int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0
            )
            return int(lines[0].split()[1]), await self.reader.readexactly(length)

    def end(self) -> None:
        """Send FIN, and go on reading."""
        self.writer.write_eof()

    async def is_reset(self) -> bool:
        try:
            async with asyncio.timeout(15):
                while await self.reader.read(65536):
                    pass
        except ConnectionResetError:
            return True
        return False


@dataclass
class GateUnderTest:
    """The gate, and all that it has recorded."""

    embedded: EmbeddedGate
    lab: Lab
    records: list[Record] = field(default_factory=list)
    recorded: asyncio.Event = field(default_factory=asyncio.Event)
    sockets: list[socket.socket] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    may_fail: bool = False
    """The test breaks something in the gate itself, which logs it."""

    def note(self, record: Entry) -> None:
        if isinstance(record, Record):
            self.records.append(record)
        self.recorded.set()

    def put_policy(self, policy: object, box: str = BOX) -> int:
        """Returns how much was cut."""
        gate = self.embedded.gate
        generation = gate.boxes[box].generation + 1 if box in gate.boxes else 1
        return gate.put_policy(box, gate.compile(NetworkPolicy.parse(policy)), generation)

    async def claim(self, address: str, port: int, box: str = BOX) -> Client:
        """Connect as a box would to that address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            accepted, _ = listener.accept()
        self.writers.append(writer)
        self.embedded.gate.adopt(accepted, b"", box, Destination(ip_address(address), port))
        return Client(reader, writer)

    async def handshake(self, address: str, port: int, name: str | None) -> tuple[Client, ssl.SSLObject]:
        """A TLS handshake; the certificate has to be the lab's for that name."""
        client = await self.claim(address, port)
        context = ssl.create_default_context(cafile=str(self.lab.ca_pem))
        context.check_hostname = name is not None
        async with asyncio.timeout(15):
            await client.writer.start_tls(context, server_hostname=name)
        return client, client.writer.get_extra_info("ssl_object")

    async def record(self, matches: Callable[[Record], bool]) -> Record:
        """The first record that matches, waited for."""
        async with asyncio.timeout(15):
            while True:
                found = next((record for record in self.records if matches(record)), None)
                if found is not None:
                    return found
                self.recorded.clear()
                await self.recorded.wait()

    async def decision(self) -> Record:
        return await self.record(lambda record: record.event is Event.DECISION)

    async def end(self) -> Record:
        return await self.record(lambda record: record.event is Event.END)


type MakeGate = Callable[..., GateUnderTest]


@pytest.fixture
async def make_gate(lab: Lab, caplog: pytest.LogCaptureFixture) -> AsyncIterator[MakeGate]:
    """Makes gates of which one serves the box ``b``, with settings and limits of the test's choice."""
    gates: list[GateUnderTest] = []

    def make(policy: object = POLICY, limits: Limits | None = None, **settings: object) -> GateUnderTest:
        audit = Audit()
        chosen = {"name_servers": (lab.nameserver,), "limits": limits or Limits()} | settings
        embedded = EmbeddedGate(Settings(**chosen), audit)  # type: ignore[arg-type]
        gate = GateUnderTest(embedded, lab)
        audit.add(gate.note)
        embedded.start()
        gate.put_policy(policy)
        gates.append(gate)
        return gate

    yield make
    for gate in gates:
        for writer in gate.writers:
            writer.transport.abort()
        await gate.embedded.close()
        for sock in gate.sockets:
            sock.close()
        assert not gate.embedded.gate.boxes
    if not any(gate.may_fail for gate in gates):
        logged = [record for when in ("setup", "call") for record in caplog.get_records(when)]
        assert [record.getMessage() for record in logged if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def gate(make_gate: MakeGate) -> GateUnderTest:
    return make_gate()
