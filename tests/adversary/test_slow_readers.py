"""Who has much sent and reads little of it: what may be kept for that is bounded, and the rest goes on."""

import asyncio
from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.gate.dial import Relayed
from box_policy.gate.socket_memory import SMALL
from box_policy.policy.reasons import Reason
from tests.adversary.attacker import PATIENCE, Attacker
from tests.adversary.conftest import OpenArena
from tests.adversary.test_exhaustion import MIB, Pair, holds, memory
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUSH: Final = f"""
import selectors, socket, time
# Sends all that is taken, and reads nothing of the echo.
ready, sent = selectors.DefaultSelector(), 0
for _ in range(COUNT):
    sock = socket.socket()
    agent.held.append(sock)
    sock.settimeout(6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
    sock.connect(({plan.CIDR4!r}, {plan.ECHO_PORT}))
    sock.setblocking(False)
    ready.register(sock, selectors.EVENT_WRITE)
data, end = bytes(1 << 20), time.monotonic() + SECONDS
while time.monotonic() < end and ready.get_map():
    for key, _ in ready.select(0.1):
        try:
            sent += key.fileobj.send(data)
        except BlockingIOError:
            pass
        except OSError:
            ready.unregister(key.fileobj)
result = sent
"""


async def push(box: Attacker, count: int, seconds: float, *, window: int = MIB) -> int:
    """Bytes that so many connections have taken whose echoes nobody reads: the window of them at most."""
    source = PUSH.replace("COUNT", str(count)).replace("SECONDS", str(seconds)).replace("WINDOW", str(window))
    return int(await box.python(source))


async def test_those_for_which_most_is_kept_are_cut(open_arena: OpenArena) -> None:
    pair = await Pair.open(open_arena, buffered=16 * MIB)
    before = memory()
    assert await push(pair.greedy.attacker, 40, 1.5) > 64 * MIB, "more than may be kept"
    await pair.other_goes_on()
    await asyncio.sleep(0.3)  # the gate looks four times a second
    assert sum(live.buffered() for live in pair.gated.live) <= 16 * MIB
    assert memory() - before < 16 * MIB
    ends = [record for record in pair.arena.records if record.event is Event.END]
    cut = [record for record in ends if record.box == pair.greedy.id]
    assert cut
    assert {record.reason for record in cut} == {Reason.LIMIT}
    await pair.recovers(b"", plan.CIDR4, plan.ECHO_PORT)


@pytest.mark.parametrize("window", [1, MIB], ids=["with tiny windows", "with large ones"])
async def test_those_of_a_crowd_have_small_buffers(open_arena: OpenArena, window: int) -> None:
    pair = await Pair.open(open_arena, roomy=3)
    await push(pair.greedy.attacker, 12, 0.7, window=window)
    small = [
        live for live in pair.gated.live if isinstance(live, Relayed) and live._pair and not live._pair.roomy
    ]
    assert (len(small), len(pair.gated.live)) == (9, 12)
    # Four queues, of which each may have twice its size and an excess, and two reads.
    assert max(live.buffered() for live in small) < 12 * SMALL
    await pair.other_goes_on()
    await pair.recovers(b"", plan.CIDR4, plan.ECHO_PORT)
    assert pair.gated.roomy == 0


async def test_those_of_a_crowd_that_speaks_http_have_small_buffers(open_arena: OpenArena) -> None:
    pair = await Pair.open(open_arena, roomy=2, buffered=64 * MIB)
    request = b"GET /bytes/100000000 HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
    await holds(pair.greedy.attacker, request, 6, plan.ALLOWED4, 80)
    async with asyncio.timeout(PATIENCE):
        while sum(live.buffered() > 4 * SMALL for live in pair.gated.live) < 6:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    # Four queues as above, and asyncio's own: two that are read into, and two that are written from.
    sizes = sorted(live.buffered() for live in pair.gated.live)
    assert sizes[3] < 16 * SMALL < sizes[4]
    await pair.other_goes_on()
    await pair.recovers(request, plan.ALLOWED4, 80)
    assert pair.gated.roomy == 0


async def test_those_that_have_small_buffers_lose_nothing(open_arena: OpenArena) -> None:
    pair = await Pair.open(open_arena, roomy=1)
    await holds(pair.greedy.attacker, b"", 1, plan.CIDR4, plan.ECHO_PORT)
    source = f"""
import os, socket, threading, time
data = os.urandom(4 << 20)
sock = socket.create_connection(({plan.CIDR4!r}, {plan.ECHO_PORT}), 6)
def send():
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
time.sleep(0.1)
received = b"".join(iter(lambda: sock.recv(65536), b""))
sock.close()
result = received == data
"""
    assert await pair.greedy.attacker.python(source) is True
    (end,) = [record for record in pair.arena.records if record.event is Event.END]
    assert (end.reason, end.bytes_up, end.bytes_down) == (Reason.CLOSED, 4 * MIB, 4 * MIB)
