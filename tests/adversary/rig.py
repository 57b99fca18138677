"""A gate with one box, in the test's own loop behind a real redirect, watched from outside and inside."""

import asyncio
import secrets
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

import dnslib

from box_policy.audit.records import Entry, PolicyRecord, Record
from box_policy.audit.sinks import Audit
from box_policy.control.store import PolicyStore
from box_policy.gate.boxes import GatedBox
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Gate, Settings
from box_policy.gate.limits import Limits
from box_policy.gate.poller import Poller
from box_policy.policy.model import NetworkPolicy
from tests.adversary.attack import CUSTOM
from tests.adversary.attacker import Seen, classify
from tests.gate.redirect import marked
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

BOX: Final = "b"
TCP_PORT: Final = 18480
DNS_PORT: Final = 18453

PATIENCE: Final = 1.0
"""Seconds after which a client that has heard nothing has been left hanging."""
LIMITS: Final = Limits(
    verdict_timeout=2, connect_timeout=2, linger=0.3, http_idle_timeout=2, dns_idle_timeout=2
)
"""After more than that patience, and less than the time in which everything has to be over."""
_REST: Final = 3.5
_CHUNK: Final = 65536


class Client:
    """A connection of the box's, redirected to the gate's listener as its firewall would."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.error = ""
        """Why there is no connection."""

    async def send(self, data: bytes) -> None:
        """Send; an error is seen by who reads."""
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError:
            pass

    async def read(self, size: int | None = None, *, until: bytes = b"", patience: float = PATIENCE) -> Seen:
        """Read to the end, or so many bytes, or up to those, and say what that was."""
        loop, started, ended = asyncio.get_running_loop(), time.monotonic(), None
        data = b""
        if self.error:
            return Seen(self.error, ended=self.error)
        try:
            async with asyncio.timeout(patience):
                while ended is None and not (
                    (size is not None and len(data) >= size) or (until and until in data)
                ):
                    piece = await loop.sock_recv(self._sock, _CHUNK if size is None else size - len(data))
                    data += piece
                    ended = None if piece else "eof"
        except TimeoutError:
            ended = "timeout"
        except ConnectionResetError:
            ended = "reset"
        except OSError as error:
            ended = type(error).__name__
        return classify(data, ended, time.monotonic() - started)

    async def response(self) -> Seen:
        """Read one HTTP response that announces its length, and has a body."""
        head = await self.read(until=b"\r\n\r\n")
        if b"\r\n\r\n" not in head.data:
            return head
        start, _, body = head.data.partition(b"\r\n\r\n")
        lines = start.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        if length > len(body):
            rest = await self.read(length - len(body))
            if len(rest.data) < length - len(body):
                return Seen(rest.ended or "data", data=head.data + rest.data)
        return Seen("http", head.code, head.data)

    def end(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._sock.close()


class Rig:
    """A gate with one box, whose every step can be watched, from :meth:`open` to :meth:`close`."""

    def __init__(self, lab: Lab, limits: Limits) -> None:
        self.lab = lab
        self.records: list[Record] = []
        self.policies: list[PolicyRecord] = []
        self.unhandled: list[str] = []
        """What nobody in the gate took care of: the loop's exception handler was called."""
        self.nonce = ""
        self.audit = Audit(self._note)
        self._embedded = EmbeddedGate(Settings(name_servers=(lab.nameserver,), limits=limits), self.audit)
        self.store = PolicyStore(self.gate, self.audit)
        self.opened: list[Client] = []
        """By the script, to be watched later."""
        self._clients: list[Client] = []
        self._sockets: list[socket.socket] = []

    @property
    def gate(self) -> Gate:
        return self._embedded.gate

    @property
    def box(self) -> GatedBox:
        return self.gate.boxes[BOX]

    @classmethod
    async def open(cls, lab: Lab, limits: Limits | None = None) -> Self:
        rig = cls(lab, limits or LIMITS)
        rig._embedded.start()
        asyncio.get_running_loop().set_exception_handler(rig._unhandled)
        rig.store.create(BOX, NetworkPolicy.parse(CUSTOM), source="test")
        rig.serve(BOX)
        return rig

    def serve(self, box: str) -> None:
        """Take in what is redirected, on behalf of a box."""
        self.stop_listening()
        tcp = [_listening("0.0.0.0", TCP_PORT)]
        dns_tcp = [_listening("127.0.0.1", DNS_PORT)]
        dns_udp = [_bound("127.0.0.1", DNS_PORT)]
        self._sockets = tcp + dns_tcp + dns_udp
        self.gate.serve(box, tcp=tcp, dns_udp=dns_udp, dns_tcp=dns_tcp)

    def is_listening(self) -> bool:
        return bool(self._sockets)

    async def close(self) -> None:
        self.release()
        async with AsyncExitStack() as stack:
            stack.callback(self.stop_listening)
            stack.callback(asyncio.get_running_loop().set_exception_handler, None)
            stack.push_async_callback(self._embedded.close)

    def stop_listening(self) -> None:
        """Close the box's own descriptors of its sockets."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _note(self, record: Entry) -> None:
        (self.records if isinstance(record, Record) else self.policies).append(record)  # type: ignore[arg-type]

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context['message']}: {context.get('exception')!r}")

    # The box's side.

    async def connect(self, address: str, port: int) -> Client:
        """Connect to an address; the kernel brings it to the gate."""
        return await self._connect(marked(socket.SOCK_STREAM, address), address, port)

    async def connect_own(self, port: int = TCP_PORT) -> Client:
        """Connect to the gate's own listener, by no redirect."""
        return await self._connect(socket.socket(), "127.0.0.1", port)

    async def _connect(self, sock: socket.socket, address: str, port: int) -> Client:
        sock.setblocking(False)
        client = Client(sock)
        self._clients.append(client)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as error:
            client.error = "reset" if isinstance(error, ConnectionResetError) else type(error).__name__
        return client

    async def ask(self, name: str, kind: str = "A", patience: float = PATIENCE) -> str:
        """Ask over UDP. The answer's code, or ``silence``."""
        with marked(socket.SOCK_DGRAM, plan.EVIL4) as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (plan.EVIL4, 53))
            await loop.sock_sendall(sock, self.question(name, kind))
            try:
                async with asyncio.timeout(patience):
                    return rcode(await loop.sock_recv(sock, _CHUNK))
            except TimeoutError:
                return "silence"

    @staticmethod
    def question(name: str, kind: str = "A") -> bytes:
        return bytes(dnslib.DNSRecord.question(name, kind).pack())

    async def ask_tcp(self, client: Client, name: str, kind: str = "A") -> str:
        """Ask over a connection to the DNS port. The answer's code, or how it ended."""
        message = self.question(name, kind)
        await client.send(len(message).to_bytes(2) + message)
        length = await client.read(2)
        if len(length.data) < 2:
            return length.kind
        return rcode((await client.read(int.from_bytes(length.data))).data)

    def hello(self, name: bytes | None) -> bytes:
        """A ClientHello with the secret in it."""
        return client_hello(name, random=self.nonce.encode().ljust(32, b"\0"))

    def request(self, host: str, *, line: str = "GET / HTTP/1.1", more: str = "") -> bytes:
        """An HTTP request with the secret in it."""
        return f"{line}\r\nHost: {host}\r\nX-Secret: {self.nonce}\r\n{more}\r\n".encode()

    def release(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.opened.clear()

    # The gate, seen from inside.

    def begin(self) -> None:
        """A new run: nothing seen, nothing known."""
        self.lab.reset()
        self.records.clear()
        self.policies.clear()
        self.unhandled.clear()
        self.nonce = secrets.token_hex(8)
        self.gate.resolver._cache.clear()

    def state(self) -> dict[str, int]:
        """How much the gate holds on behalf of its boxes, and altogether."""
        gate, relay = self.gate, self.gate.lane.relay
        box = gate.boxes.get(BOX)
        own_addresses = gate._operator.own_addresses
        held = 2 * len(relay._pipes) + (getattr(own_addresses, "_socket", None) is not None)
        state = {
            "poller": _watched(gate.lane.poller),
            "arriving": len(gate.lane.arriving._deadlines),
            "connecting": len(gate.lane.connecting._deadlines),
            "leaving": len(gate.lane.leaving._deadlines),
            "overhearing": len(gate.lane.overhearing._deadlines),
            "pairs": len(relay.pairs),
            "emptying": len(relay.emptying),
            "being asked": len(gate.resolver._asking),
            "resolving": len(gate.resolver._tasks),
            "dns tasks": len(gate.dns._tasks),
            "http tasks": len(self._embedded._door._tasks),
            "mitmproxy": len(self._embedded._master.addons.get("proxyserver").connections),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())) - held,
        }
        if box is not None:
            state |= {
                "live": len(box.live),
                "asking": len(box.asking),
                "pending": box.pending,
                "questions": box.questions,
                "dns connections": box.dns_connections,
                "overheard": box.overheard,
            }
        return state

    async def rest(self, before: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Wait until the gate holds what it did before; what of it differs after a while."""
        deadline = time.monotonic() + _REST
        while True:
            after = self.state()
            differing = {
                key: (before.get(key, 0), after.get(key, 0))
                for key in before.keys() | after.keys()
                if before.get(key) != after.get(key)
            }
            if not differing or time.monotonic() > deadline:
                return differing
            await asyncio.sleep(0.002)

    async def works(self) -> str:
        """Does what is allowed still work? What doesn't, or an empty string."""
        client = await self.connect(plan.CIDR4, plan.ECHO_PORT)
        await client.send(b"x")
        if (seen := await client.read(1)).data != b"x":
            return f"a connection by address: {seen.kind}"
        client.close()
        client = await self.connect(plan.EVIL4, 80)
        await client.send(self.request("allowed.test"))
        if (seen := await client.response()).code != 200:
            return f"a request: {seen}"
        client.close()
        if (answer := await self.ask("allowed.test")) != "NOERROR":
            return f"a question: {answer}"
        return ""


def _watched(poller: Poller) -> int:
    """How many descriptors are watched, by the boxes' own pollers too. Not asked of the gate: a fault may
    wait there."""
    targets = poller._targets.values()
    return sum(_watched(target) if isinstance(target, Poller) else 1 for target in targets)


def rcode(answer: bytes) -> str:
    """The name of a DNS answer's code."""
    try:
        return str(dnslib.RCODE[dnslib.DNSRecord.parse(answer).header.rcode])
    except dnslib.DNSError:
        return "garbage"


def _listening(host: str, port: int) -> socket.socket:
    sock = _bound(host, port, socket.SOCK_STREAM)
    sock.listen(128)
    return sock


def _bound(host: str, port: int, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock
