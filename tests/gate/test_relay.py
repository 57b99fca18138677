"""Two sockets and what is left in the kernel when both sides have finished."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from box_policy.gate.poller import Poller
from box_policy.gate.relay import Pair, Relay
from box_policy.policy.reasons import Reason

SIZE = 256 * 1024
"""Bytes that the gate's side of a connection can hold, and the origin's can't."""


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


class Relayed:
    """A pair whose origin has nothing to say and does not read, and whose client sends and ends."""

    def __init__(self) -> None:
        self.ends: list[Reason] = []
        self.poller = Poller()
        self.relay = Relay(self.poller)
        to_client, self.client = connected()
        to_origin, self.origin = connected()
        to_origin.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIZE)  # the kernel doubles it
        for sock in (to_client, to_origin):
            sock.setblocking(False)
        self.pair: Pair = self.relay.start(
            to_client, to_origin, b"", lambda _, reason: self.ends.append(reason)
        )
        self.origin.shutdown(socket.SHUT_WR)

    def send(self, size: int) -> None:
        def send() -> None:
            self.client.sendall(bytes(size))
            self.client.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        deadline = time.monotonic() + 10
        while not (self.pair.up.finished and self.pair.down.finished) and not self.pair.closed:
            self.poller.run_ready()
            assert time.monotonic() < deadline
        sending.join()

    def close(self) -> None:
        self.relay.close()
        self.poller.close()
        self.client.close()
        self.origin.close()


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    relayed = Relayed()
    yield relayed
    relayed.close()


def test_what_the_kernel_has_not_sent_can_still_be_cut(relayed: Relayed) -> None:
    relayed.send(SIZE)
    assert (relayed.ends, relayed.relay.pairs) == ([], {relayed.pair})
    relayed.pair.close(Reason.POLICY_CHANGED)
    received = 0
    with pytest.raises(ConnectionResetError):
        while data := relayed.origin.recv(1 << 20):
            received += len(data)
    assert received < SIZE
    assert relayed.ends == [Reason.POLICY_CHANGED]


def test_it_ends_in_order_once_all_is_sent(relayed: Relayed) -> None:
    relayed.send(SIZE)
    received = 0
    while data := relayed.origin.recv(1 << 20):
        received += len(data)
        relayed.relay.close_emptied()
    assert received == SIZE
    relayed.relay.close_emptied()
    assert (relayed.ends, relayed.relay.pairs) == ([Reason.CLOSED], set())


def test_without_descriptors_for_pipes_all_arrives_as_well() -> None:
    poller, asked = Poller(), set[int]()

    def may_use(fd: int) -> bool:
        asked.add(fd)
        return False

    relay = Relay(poller, may_use)
    to_client, client = connected()
    to_origin, origin = connected()
    for sock in (to_client, to_origin):
        sock.setblocking(False)
    relay.start(to_client, to_origin, b"", lambda *_: None)
    data = bytes(range(256)) * 32 * 1024
    threading.Thread(target=client.sendall, args=(data,)).start()
    origin.setblocking(False)
    received, deadline = bytearray(), time.monotonic() + 10
    while len(received) < len(data):
        poller.run_ready()
        try:
            received += origin.recv(1 << 20)
        except BlockingIOError:
            assert time.monotonic() < deadline
    assert received == data
    assert asked, "there was much to be carried"
    assert relay._pipes == []
    relay.close()
    poller.close()
    client.close()
    origin.close()


def test_it_ends_when_the_origin_breaks_it(relayed: Relayed) -> None:
    relayed.send(SIZE)
    relayed.origin.close()  # with bytes unread: RST
    relayed.relay.close_emptied()
    assert relayed.ends == [Reason.CLOSED]


def test_it_ends_at_once_when_nothing_is_left(relayed: Relayed) -> None:
    relayed.send(1)
    assert relayed.ends == [Reason.CLOSED]
