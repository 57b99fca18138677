"""The load of the live benchmarks: clients in the box. ``python -m benchmarks.rig.live.box``"""

import random
import select
import socket
import sys
import time
from collections import deque
from typing import Any, Final

from benchmarks.rig import plan
from benchmarks.rig.bulk import limit_stalls
from benchmarks.rig.live.outcomes import Conversation, Outcome
from benchmarks.rig.live.plan import (
    CLIENT_PORTS,
    ELSEWHERE,
    FIRST,
    FIRST_NAME,
    FOREIGN,
    FOREIGN_NAME,
    HTTP_PORT,
    SECOND,
    SECOND_NAME,
)
from benchmarks.rig.orders import LoadError, obey
from tests.lab.namespace import unshare_network

_HAMMERING: Final = 24
"""Short connections at a time, while policies open and close."""
_STREAMS: Final = 16
"""Long ones besides."""
_CHUNK: Final = b"bytes that only an open window lets through\n" * 20
_REQUEST: Final = f"GET / HTTP/1.1\r\nHost: {plan.NAME}\r\n\r\n".encode()
_UPLOAD: Final = f"POST / HTTP/1.1\r\nHost: {FOREIGN_NAME}\r\nContent-Length: 1000000000\r\n\r\n".encode()
_EXCHANGED: Final = 4096
"""Bytes that each kept connection sends at a time."""


class LiveBox:
    """Each public method is an order; what it returns is the answer."""

    def __init__(self) -> None:
        self._kept: dict[str, list[socket.socket]] = {}

    def mix(self) -> dict[str, Any]:
        """Clients that connect all the time, each from a port of its own, until told to stop.

        Each names one of two hosts, and claims an address that is the first's, the second's or nobody's.
        """
        choose = random.Random(1)
        waiting: deque[tuple[Conversation, list[Any]]] = deque()
        connections: list[list[Any]] = []

        def begin(port: int) -> None:
            number = len(connections)
            name = choose.choice((FIRST_NAME, SECOND_NAME))
            address = choose.choice((FIRST, SECOND, ELSEWHERE))
            connection = [number, port, name, address, None, [time.monotonic()]]
            connections.append(connection)
            hello = plan.hello(plan.ANSWER, number, name=name)
            waiting.append((Conversation(_socket(), address, hello, port), connection))

        for port in CLIENT_PORTS:
            begin(port)
        stopped = False
        while waiting:
            conversation, connection = waiting.popleft()
            connection[4] = conversation.outcome()
            connection[5].append(time.monotonic())
            stopped = stopped or _told_to_stop()
            if not stopped:
                begin(connection[1])
        return {"connections": connections}

    def hammer(self) -> dict[str, Any]:
        """Connect to the allowed name and to the foreign address all the time, until told to stop.

        The latter by TLS for either name, with bytes that are no protocol at all, and by connections that
        send as long as they live: such bytes, or an upload by HTTP.
        """
        allowed, foreign = plan.hello(plan.ANSWER), plan.hello(plan.ANSWER, name=FOREIGN_NAME)
        kinds = [(plan.ALLOWED, allowed), (FOREIGN, foreign), (FOREIGN, _CHUNK), (FOREIGN, allowed)]
        waiting: deque[tuple[int, Conversation]] = deque()
        streams: deque[socket.socket] = deque()
        outcomes: list[dict[Outcome, int]] = [dict.fromkeys(Outcome, 0) for _ in kinds]
        streamed = 0
        turn = started = 0
        while not _told_to_stop():
            while len(waiting) < _HAMMERING:
                kind = turn % len(kinds)
                turn += 1
                waiting.append((kind, Conversation(_socket(), *kinds[kind])))
            kind, conversation = waiting.popleft()
            is_foreign = kinds[kind][0] == FOREIGN
            outcomes[kind][conversation.first_outcome() if is_foreign else conversation.outcome()] += 1
            if len(streams) < _STREAMS:
                # Half of them say nothing yet: a window that opens meanwhile lets them through as they are.
                started += 1
                first_bytes, port = (_UPLOAD, HTTP_PORT) if started % 2 else (b"", plan.PORT)
                streams.append(Conversation(_socket(), FOREIGN, first_bytes, port).sock)
            else:
                sock = streams.popleft()
                if (sent := _stream(sock)) is not None:
                    streamed += sent
                    streams.append(sock)
        for _, conversation in waiting:
            conversation.sock.close()
        for sock in streams:
            sock.close()
        return {"outcomes": outcomes, "streamed": streamed}

    def keep(self, group: str, count: int, name: str) -> dict[str, Any]:
        """Open TLS connections that stay, idle."""
        for _ in range(count):
            sock = Conversation(_socket(), plan.ALLOWED, plan.hello(plan.KEEP, name=name)).sock
            if sock.recv(16) != b"1":
                raise LoadError("a connection was refused")
            self._kept.setdefault(group, []).append(sock)
        return {}

    def keep_http(self, group: str, count: int) -> dict[str, Any]:
        """Open HTTP connections that stay, after one request each."""
        for _ in range(count):
            sock = Conversation(_socket(), plan.ALLOWED, _REQUEST, HTTP_PORT).sock
            answer = b""
            while not answer.endswith(b"\r\n\r\n1"):
                part = sock.recv(4096)
                answer += part
                if not part or not b"HTTP/1.1 200 ".startswith(answer[:13]):
                    raise LoadError(f"a request was refused: {answer!r}")
            self._kept.setdefault(group, []).append(sock)
        return {}

    def await_ends(self, group: str) -> dict[str, Any]:
        """Wait until all of the group have ended, for 5 s at most. How, and when the last one did."""
        sockets = {sock.fileno(): sock for sock in self._kept.pop(group)}
        epoll = select.epoll()
        for descriptor in sockets:
            epoll.register(descriptor, select.EPOLLIN)
        deadline = time.monotonic() + 5
        reset = closed = 0
        last = 0.0
        while sockets and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in epoll.poll(left):
                with sockets.pop(descriptor) as sock:
                    try:
                        if sock.recv(64):
                            raise LoadError("an idle connection was not idle")
                        closed += 1
                    except ConnectionError:
                        reset += 1
                last = time.monotonic()
        return {"reset": reset, "closed": closed, "left": len(sockets), "last": last}

    def send(self, group: str, number: int) -> dict[str, Any]:
        """Send bytes on each connection of the group, and don't wait for their echo."""
        for index, sock in enumerate(self._kept[group]):
            try:
                sock.sendall(_exchanged(index, number))
            except ConnectionError:
                pass  # as reading the echo will tell
        return {}

    def receive(self, group: str, numbers: list[int]) -> dict[str, Any]:
        """Read the echo of all that was sent; how many connections have lost any of it. They are closed."""
        damaged = 0
        for index, sock in enumerate(self._kept.pop(group)):
            wanted = b"".join(_exchanged(index, number) for number in numbers)
            with sock:
                try:
                    damaged += sock.recv(len(wanted), socket.MSG_WAITALL) != wanted
                except OSError:
                    damaged += 1
        return {"damaged": damaged}


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    limit_stalls(sock)
    return sock


def _stream(sock: socket.socket) -> int | None:
    """Send a little more; None, and closed, if the connection has ended."""
    try:
        sent = sock.send(_CHUNK, socket.MSG_DONTWAIT)
        try:
            if not sock.recv(4096, socket.MSG_DONTWAIT):
                sock.close()
                return None
        except BlockingIOError:
            pass
        return sent
    except BlockingIOError:
        return 0
    except ConnectionError:
        sock.close()
        return None


def _exchanged(index: int, number: int) -> bytes:
    return f"{index:08}{number:08}".encode() * (_EXCHANGED // 16)


def _told_to_stop() -> bool:
    if not select.select([sys.stdin], [], [], 0)[0]:
        return False
    sys.stdin.readline()
    return True


def main() -> None:
    """Say when there is a namespace, then obey until stdin ends."""
    unshare_network()
    print("unshared", flush=True)
    box = LiveBox()
    obey(box.mix, box.hammer, box.keep, box.keep_http, box.await_ends, box.send, box.receive)


if __name__ == "__main__":
    main()
