"""Messages between the caller and a box's processes."""

import asyncio
import errno
import json
import os
import socket
from typing import Any

import pytest

from box_policy.sandbox.namespaces import channel as channel_module
from box_policy.sandbox.namespaces import messages
from box_policy.sandbox.namespaces.channel import Channel
from box_policy.sandbox.namespaces.messages import Message, MessageError
from tests.sandbox.boxes import PATIENCE, no_descriptors_left


class Received:
    """What came out of a channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.fds: list[int] = []
        self.ended = asyncio.Event()
        self.ends = 0
        self.channel = Channel(sock, self._on_message, self._on_end)

    def _on_message(self, message: Message, fds: list[int]) -> None:
        self.messages.append(message)
        self.fds += fds

    def _on_end(self) -> None:
        self.ends += 1
        self.ended.set()


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def ended(received: Received) -> None:
    async with asyncio.timeout(PATIENCE):
        await received.ended.wait()


@pytest.mark.parametrize("text", ["", "ä", "\udcff", "\n\0", "x" * 100_000])
def test_a_message_arrives_as_it_was(text: str) -> None:
    near, far = pair()
    with near, far:
        messages.send(near, {"text": text})
        assert messages.receive(far) == ({"text": text}, [])


def test_descriptors_arrive_and_end_at_an_exec() -> None:
    near, far = pair()
    reader, writer = os.pipe()
    with near, far:
        messages.send(near, {}, [reader, writer])
        received = messages.receive(far)
        assert received is not None
        assert [os.get_inheritable(fd) for fd in received[1]] == [False, False]
        messages.close_all([reader, writer, *received[1]])


def test_end_of_file() -> None:
    near, far = pair()
    near.close()
    with far:
        assert messages.receive(far) is None


def test_a_message_over_the_limit_is_not_sent() -> None:
    near, far = pair()
    with near, far, pytest.raises(MessageError, match="the limit is"):
        messages.send(near, {"text": "x" * messages.LIMIT})


@pytest.mark.parametrize(
    "datagram", [b"{", b"1", b"null", b"\xff", b'{"a": 1} {}', b"[" * 100_000, b"x" * (messages.LIMIT + 1)]
)
def test_a_datagram_that_is_no_message(datagram: bytes) -> None:
    near, far = pair()
    with near, far:
        near.send(datagram)
        with pytest.raises(MessageError):
            messages.receive(far)


def test_descriptors_of_a_refused_datagram_are_closed() -> None:
    near, far = pair()
    reader, writer = os.pipe()
    with near, far:
        near.sendmsg([b"nonsense"], messages.ancillary([writer]))
        os.close(writer)
        with pytest.raises(MessageError):
            messages.receive(far)
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_more_descriptors_than_a_message_has_room_for() -> None:
    near, far = pair()
    reader, writer = os.pipe()
    with near, far:
        near.sendmsg([b"{}"], messages.ancillary([writer] * (messages.MAX_DESCRIPTORS + 1)))
        os.close(writer)
        with pytest.raises(MessageError, match="truncated"):
            messages.receive(far)
        assert os.read(reader, 1) == b""
    os.close(reader)


async def test_a_slow_reader_delays_nobody_and_loses_nothing() -> None:
    near, far = pair()
    far.setblocking(False)
    channel = Received(near).channel
    reader, writer = os.pipe()
    count = 200
    for number in range(count):
        channel.send({"number": number, "filling": "x" * 10_000}, [writer])
    os.close(writer)
    loop = asyncio.get_running_loop()
    numbers: list[int] = []
    done = loop.create_future()

    def read() -> None:
        received = messages.receive(far)
        assert received is not None
        numbers.append(received[0]["number"])
        messages.close_all(received[1])
        if len(numbers) == count:
            done.set_result(None)

    loop.add_reader(far, read)
    async with asyncio.timeout(PATIENCE):
        await done
    loop.remove_reader(far)
    assert numbers == list(range(count))
    assert os.read(reader, 1) == b""  # no copy of the descriptor is left
    channel.close()
    far.close()
    os.close(reader)


async def test_the_end_is_told_once_and_after_the_last_message() -> None:
    near, far = pair()
    received = Received(near)
    far.send(json.dumps({"last": True}).encode())
    far.close()
    await ended(received)
    assert received.messages == [{"last": True}]
    received.channel.close()
    received.channel.read()
    assert received.ends == 1


async def test_a_flood_leaves_the_loop_its_turns() -> None:
    near, far = pair()
    far.setblocking(False)
    received = Received(near)
    taken = []
    for _ in range(20):
        try:
            while True:
                far.send(b"{}")
        except BlockingIOError:
            pass
        before = len(received.messages)
        await asyncio.sleep(0)
        taken.append(len(received.messages) - before)
    assert 0 < max(taken) <= 16
    far.close()
    received.channel.read()
    assert received.ends == 1


async def test_nonsense_ends_a_channel() -> None:
    near, far = pair()
    received = Received(near)
    with far:
        far.send(b"nonsense")
        await ended(received)
        assert far.recv(10) == b""


async def test_sending_to_nobody_is_no_error() -> None:
    near, far = pair()
    received = Received(near)
    far.close()
    received.channel.send({})
    await ended(received)
    received.channel.send({})


async def fill(channel: Channel, message: Message) -> int:
    """Send until no more is taken; how many were."""
    for count in range(100_000):
        try:
            channel.send(message)
        except OSError as error:
            assert error.errno == errno.ENOBUFS
            return count
    raise AssertionError("no bound")


@pytest.mark.parametrize(
    ("size", "most"),
    [(10, channel_module.MOST_UNSENT), (100_000, channel_module.MOST_UNSENT_BYTES // 100_000)],
)
async def test_what_waits_is_bounded_and_not_lost(size: int, most: int) -> None:
    near, far = pair()
    far.setblocking(False)
    received, other = Received(near), Received(far)
    asyncio.get_running_loop().remove_reader(far.fileno())
    count = await fill(received.channel, {"filling": "x" * size})
    assert 0 < count - most < 1000  # those that fitted into the socket
    reader, writer = os.pipe()
    with pytest.raises(OSError):
        received.channel.send({"filling": "x" * size}, [writer])
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    async with asyncio.timeout(PATIENCE):
        while len(other.messages) < count:
            other.channel.read()
            await asyncio.sleep(0)
    assert not received.ends
    received.channel.send({"last": True})
    other.channel.read()
    assert other.messages[count:] == [{"last": True}]
    received.channel.close()
    other.channel.close()


async def test_a_notice_waits_once_and_goes_first() -> None:
    near, far = pair()
    far.setblocking(False)
    received, other = Received(near), Received(far)
    asyncio.get_running_loop().remove_reader(far.fileno())
    count = await fill(received.channel, {"filling": "x" * 10})
    for number in range(5000):
        received.channel.notify({"dropped": number}, always=False)
        received.channel.notify({"kept": number % 3}, always=True)
    async with asyncio.timeout(PATIENCE):
        while len(other.messages) < count + 3:
            other.channel.read()
            await asyncio.sleep(0)
    assert other.messages[count:] == [{"kept": 0}, {"kept": 1}, {"kept": 2}]
    received.channel.close()
    other.channel.close()


async def test_what_the_kernel_refuses_for_a_while_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = pair()
    received, other = Received(near), Received(far)
    reader, writer = os.pipe()
    refusals = [errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM]
    try_send = Channel._try_send

    def refusing(channel: Channel, *arguments: Any) -> bool:
        if refusals:
            raise OSError(refusals.pop(), "refused")
        return try_send(channel, *arguments)

    monkeypatch.setattr(Channel, "_try_send", refusing)
    received.channel.notify({"number": 1}, always=True)
    received.channel.send({"number": 2}, [writer])
    os.close(writer)
    async with asyncio.timeout(PATIENCE):
        while len(other.messages) < 2:
            await asyncio.sleep(0.001)
    assert [message["number"] for message in other.messages] == [1, 2]
    assert not received.ends
    messages.close_all(other.fds)
    assert os.read(reader, 1) == b""
    os.close(reader)
    received.channel.close()
    other.channel.close()


async def test_descriptors_that_cannot_be_sent_now() -> None:
    near, far = pair()
    received = Received(near)
    with far, no_descriptors_left(), pytest.raises(OSError):
        for _ in range(10_000):
            received.channel.send({"filling": "x" * 10_000}, [far.fileno()])
    assert not received.ends
    received.channel.close()


async def test_descriptors_that_there_is_no_room_for() -> None:
    near, far = pair()
    received = Received(near)
    with far:
        messages.send(far, {"number": 1}, [far.fileno()])
        messages.send(far, {"number": 2})
        with no_descriptors_left():
            received.channel.read()
        assert (received.messages, received.fds) == ([{"number": 1}, {"number": 2}], [])
        assert not received.ends
        received.channel.close()


async def test_closing_drops_what_was_not_sent() -> None:
    near, far = pair()
    channel = Received(near).channel
    reader, writer = os.pipe()
    for _ in range(200):
        channel.send({"filling": "x" * 10_000}, [writer])
    os.close(writer)
    channel.close()
    far.close()
    assert os.read(reader, 1) == b""
    os.close(reader)
