"""The lab as the tests see it: a handle on the origin's process."""

import asyncio
import os
import queue
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.lab import bpf, plan
from tests.lab.namespace import LabUnavailable
from tests.lab.records import Connection, Packet, Question, Request, dump, load

_ROOT: Final = Path(__file__).parents[2]
_PATIENCE: Final = 20.0
"""Seconds for the origin to start, to answer, or to end."""


class LabError(Exception):
    """The origin refused a command, or is gone."""


class Dns:
    """The origin's name server."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def set(
        self,
        name: str,
        *,
        A: Sequence[str] = (),
        AAAA: Sequence[str] = (),
        CNAME: str | None = None,
        HTTPS: str | None = None,
        TXT: str | None = None,
        ttl: int = 60,
        rcode: str = "NOERROR",
        delay: float = 0,
        silent: bool = False,
        sequence: Sequence[Sequence[str]] = (),
        truncate: bool = False,
        wrong_id_first: bool = False,
        wrong_question_first: bool = False,
        raw: bytes | None = None,
    ) -> None:
        """Replace all that a name has, from the next question on. ``*.x`` stands for any depth below x.

        ``HTTPS`` is in zone-file form (``1 . alpn=h2``). ``delay`` is in seconds. ``sequence``: the nth
        question of a type gets the addresses of that family in the nth list, and the last list from then on.
        ``truncate``: over UDP an empty answer with TC. ``wrong_id_first``, ``wrong_question_first``: a forged
        answer comes before the true one. ``raw``: these bytes, under the question's id, are the answer.
        LabError if it can't be put into an answer.
        """
        values = {key: value for key, value in locals().items() if key not in {"self", "name"}}
        self._ask("set", name, values)

    @property
    def questions(self) -> list[Question]:
        """What has been asked so far, in order."""
        return [Question(**fields) for fields in self._ask("questions")]


class Lab:
    """The origin, started by ``Lab.start()`` in a process that has called ``enter()``."""

    nameserver: str = plan.NAMESERVER4
    nameserver6: str = plan.NAMESERVER6
    ca_pem: Path
    """The certificate of the authority behind every TLS port."""
    process_id: int
    """The origin's."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, notices: socket.socket
    ) -> None:
        self._process = process
        self._control = control
        self._lines = control.makefile("rb")
        self._notices = notices
        self._lock = threading.Lock()
        self.process_id = process.pid
        self.dns = Dns(self._ask)

    @classmethod
    def start(cls) -> Self:
        """Start the origin and lay the cable to it. LabUnavailable if this machine can't."""
        control, origin_control = socket.socketpair()
        notices, origin_notices = socket.socketpair()
        control.settimeout(_PATIENCE)
        notices.setblocking(False)
        with origin_control, origin_notices:
            ends = (origin_control.fileno(), origin_notices.fileno())
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.origin", *map(str, ends), str(os.getpid())],
                cwd=_ROOT,
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for pytest, whose end is the origin's too.
                start_new_session=True,
            )
        lab = cls(process, control, notices)
        try:
            # Imported only now, while the origin starts: it takes 130 ms.
            from tests.lab import network

            if lab._lines.readline() != b"unshared\n":
                raise LabUnavailable("the origin's process could not make a network namespace")
            try:
                network.connect(process.pid)
                taps = [
                    network.tap(plan.GATE_INTERFACE, bpf.OUTGOING),
                    network.tap("lo", bpf.OUTGOING_ATTEMPTS),
                ]
            except (OSError, network.NetlinkError) as error:
                raise LabUnavailable(f"the kernel refuses the lab's network: {error}") from error
            socket.send_fds(control, [b"t"], [tap.fileno() for tap in taps])
            for tap in taps:
                tap.close()
            started = lab._lines.readline()
            if not started:
                raise LabError("the origin's process died at its start")
            lab.ca_pem = Path(load(started)["ca"])
        except BaseException:
            lab.close()
            raise
        return lab

    def close(self) -> None:
        """End the origin and take its cable away. Repeating it does nothing."""
        if self._lines.closed:
            return
        self._lines.close()
        self._control.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if hasattr(self, "ca_pem"):  # gone already, unless the origin was killed
            shutil.rmtree(self.ca_pem.parent, ignore_errors=True)
        self._notices.close()
        from tests.lab import network

        network.disconnect()

    def reset(self) -> None:
        """Cut all connections at the origin, restore the zone, forget all records."""
        self._ask("reset")

    def packets(
        self, address: str | None = None, port: int | None = None, *, protocol: str | None = None
    ) -> list[Packet]:
        """The IP packets that the gate's host has sent to the world, in order.

        Every packet sent before this call is among them, so an empty list proves that nothing went
        there. LabError if the recorder had to drop packets. The kernel's own neighbour discovery and
        multicast reports are left out.
        """
        return [Packet(**fields) for fields in self._ask("packets", address, port, protocol)]

    def loopback_packets(
        self, address: str | None = None, port: int | None = None, *, protocol: str | None = None
    ) -> list[Packet]:
        """The same of packets that the gate's host has sent to itself, under whichever of its addresses.

        Of TCP only those that open a connection.
        """
        return [Packet(**fields) for fields in self._ask("loopback_packets", address, port, protocol)]

    def connections(self, address: str | None = None, port: int | None = None) -> list[Connection]:
        """The TCP connections that the origin has accepted, in order, as far as it has got with them.

        For what must have happened use ``expect``; for what must not have, ``packets``.
        """
        return [Connection(**fields) for fields in self._ask("connections", address, port)]

    def requests(self, address: str | None = None, port: int | None = None) -> list[Request]:
        """The HTTP requests whose head the origin has read, in order."""
        return [Request(**fields) for fields in self._ask("requests", address, port)]

    def faults(self) -> list[str]:
        """What went wrong in the origin itself."""
        return list(self._ask("faults"))

    def expect[T](self, predicate: Callable[[], T], timeout: float = 5.0) -> T:
        """Wait until ``predicate`` is true of what the origin has seen; returns its value.

        It is called again whenever the origin has seen something. AssertionError after ``timeout``
        seconds. This blocks the thread: use ``expect_async`` where the gate runs in the same event loop.
        """
        deadline = time.monotonic() + timeout
        while not (value := self._probe(predicate)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"the origin has not seen it within {timeout} s")
            select.select([self._notices], [], [], left)
        return value

    async def expect_async[T](self, predicate: Callable[[], T], timeout: float = 5.0) -> T:
        """``expect`` for a coroutine: the event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        noticed = asyncio.Event()
        loop.add_reader(self._notices, noticed.set)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    noticed.clear()
                    if value := self._probe(predicate):
                        return value
                    await noticed.wait()
        except TimeoutError as error:
            raise AssertionError(f"the origin has not seen it within {timeout} s") from error
        finally:
            loop.remove_reader(self._notices)

    def listen(self, port: int) -> socket.socket:
        """A listening socket of the test's own at the origin, on all its addresses."""
        made: queue.SimpleQueue[socket.socket | OSError] = queue.SimpleQueue()

        def make() -> None:
            # The network namespace is a thread's property, and a socket's: this thread has no other use.
            try:
                self.move_to_origin()
                made.put(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))
            except OSError as error:
                made.put(error)

        threading.Thread(target=make).start()
        sock = made.get()
        if isinstance(sock, OSError):
            raise sock
        return sock

    def move_to_origin(self) -> None:
        """Move the calling thread, or a child process before its exec, into the origin's network."""
        with open(f"/proc/{self.process_id}/ns/net", "rb") as namespace:
            os.setns(namespace.fileno(), os.CLONE_NEWNET)

    def _probe[T](self, predicate: Callable[[], T]) -> T:
        # First the notices, then the look: what comes in between leaves a notice behind.
        try:
            while self._notices.recv(65536):
                pass
        except BlockingIOError:
            pass
        return predicate()

    def _ask(self, operation: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                self._control.sendall(dump([operation, arguments]))
                line = self._lines.readline()
            except (OSError, ValueError) as error:
                raise LabError(f"the origin doesn't answer: {error}") from error
        if not line:
            raise LabError("the origin's process has died")
        answer = load(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["result"]
