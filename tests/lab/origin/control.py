"""The origin's side of the control channel, and its life."""

import asyncio
import os
import resource
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.lab.origin.certificates import Certificates
from tests.lab.origin.journal import Journal
from tests.lab.origin.nameserver import NameServer
from tests.lab.origin.recorder import Recorder
from tests.lab.origin.services import listen
from tests.lab.origin.streams import Acceptor
from tests.lab.origin.zone import Zone
from tests.lab.records import Connection, Packet, Request, dump, load

_LONGEST_LINE: Final = 64 << 20


def run(control: socket.socket, notices: socket.socket, parent: int) -> None:
    """Serve until the tests' process closes its end of the channel or dies."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _, taps, _, _ = socket.recv_fds(control, 1, 2)
    with tempfile.TemporaryDirectory(prefix="box-policy-lab-") as folder:
        origin = Origin(notices, [socket.socket(fileno=tap) for tap in taps], Path(folder))
        asyncio.run(origin.serve(control, parent))


class Origin:
    """Everything in the origin's process."""

    def __init__(self, notices: socket.socket, taps: list[socket.socket], folder: Path) -> None:
        notices.setblocking(False)
        self._notices = notices
        self._ca_file = folder / "ca.pem"
        self._journal = Journal(self._notify)
        self._wire, self._loopback = (Recorder(tap, self._notify) for tap in taps)
        self._zone = Zone()
        self._acceptor = Acceptor(self._journal)

    async def serve(self, control: socket.socket, parent: int) -> None:
        """Open all services, then do what the tests ask."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._journal.fault(str(context)))
        for recorder in (self._wire, self._loopback):
            loop.add_reader(recorder.tap, recorder.readable)
        self._nameserver = NameServer(self._journal, self._zone)
        certificates = Certificates(self._ca_file)
        silent = await listen(self._acceptor, self._journal, certificates, self._nameserver)
        control.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=control, limit=_LONGEST_LINE)
        writer.write(dump({"ca": str(self._ca_file)}))
        # A child that the tests' process has forked may hold the channel open after it.
        serving = asyncio.create_task(self._converse(reader, writer))
        death = os.pidfd_open(parent)
        loop.add_reader(death, serving.cancel)
        if os.getppid() == parent:
            await asyncio.wait([serving])
        silent.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        operations: dict[str, Callable[..., Any]] = {
            "packets": lambda *wanted: _select(self._wire.packets(), *wanted),
            "loopback_packets": lambda *wanted: _select(self._loopback.packets(), *wanted),
            "connections": lambda *wanted: _select(self._journal.connections, *wanted),
            "requests": lambda *wanted: _select(self._journal.requests, *wanted),
            "questions": lambda: self._journal.questions,
            "faults": lambda: self._journal.faults,
            "set": self._zone.set,
        }
        while line := await reader.readline():
            name, arguments = load(line)
            try:
                if name == "reset":
                    await self._reset()
                    answer: Any = {"result": None}
                else:
                    answer = {"result": operations[name](*arguments)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            writer.write(dump(answer))
            await writer.drain()

    async def _reset(self) -> None:
        self._nameserver.reset()
        await self._acceptor.reset()
        self._zone.reset()
        self._journal.clear()
        # Last: the packets of the connections just cut are in by now.
        self._wire.clear()
        self._loopback.clear()

    def _notify(self) -> None:
        try:
            self._notices.send(b"!")
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # enough notices wait already, or nobody is left to read them


def _select[R: (Packet, Connection, Request)](
    records: list[R], address: str | None, port: int | None, protocol: str | None = None
) -> list[R]:
    return [
        record
        for record in records
        if (address is None or record.address == address)
        and (port is None or record.port == port)
        and (protocol is None or (isinstance(record, Packet) and record.protocol == protocol))
    ]
