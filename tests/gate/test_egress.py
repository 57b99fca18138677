"""The mark on the gate's own sockets: without it nothing may go out."""

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from box_policy.gate import egress
from box_policy.gate.egress import Egress
from box_policy.policy.reasons import Reason
from tests.gate.conftest import MakeGate
from tests.gate.redirect import MARK
from tests.lab import Lab, plan

_META_OIFNAME = 7
_META_MARK = 3


@pytest.fixture
def only_marked(lab: Lab) -> Iterator[None]:
    """A firewall that lets nothing without the mark out of the gate's host."""

    def value(data: bytes) -> dict[str, Any]:
        return {"attrs": [("NFTA_DATA_VALUE", data)]}

    interface = plan.GATE_INTERFACE.encode().ljust(16, b"\0")
    rule = [
        genex("meta", {"dreg": 1, "key": _META_OIFNAME}),
        genex("cmp", {"sreg": 1, "op": 0, "data": value(interface)}),
        genex("meta", {"dreg": 1, "key": _META_MARK}),
        genex("cmp", {"sreg": 1, "op": 1, "data": value(MARK.to_bytes(4, "little"))}),
        *verdict(0),
    ]
    with NFTables(nfgen_family=1) as nft:
        nft.table("add", name="test")
        nft.chain("add", table="test", name="out", hook="output", type="filter", priority=0, policy=1)
        nft.rule("add", table="test", chain="out", expressions=(rule,))
        yield
        nft.table("del", name="test")


async def test_every_socket_that_goes_out_has_it(make_gate: MakeGate, lab: Lab, only_marked: None) -> None:
    gate = make_gate(mark=MARK)
    # A question over TCP as well, and what the lane and mitmproxy's layer dial, by both families.
    lab.dns.set("x.wild.test", A=[plan.WILDCARD4], truncate=True)
    for address, name in ((plan.WILDCARD4, "x.wild.test"), (plan.ALLOWED6, "allowed.test")):
        await gate.handshake(address, 443, name)
    client = await gate.claim(plan.ALLOWED4, 80)
    await client.send(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
    assert (await client.read_response())[0] == 200
    assert {question.transport for question in lab.dns.questions} == {"udp", "tcp"}


@pytest.fixture
def unmarkable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    class Unmarkable(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            if args[1] == socket.SO_MARK:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().setsockopt(*args)

    class Sockets:
        SOL_SOCKET, SO_MARK, SOCK_NONBLOCK = socket.SOL_SOCKET, socket.SO_MARK, socket.SOCK_NONBLOCK
        socket = Unmarkable

    return lambda: monkeypatch.setattr(egress, "socket", Sockets)


async def test_without_it_the_lane_dials_nothing(
    make_gate: MakeGate, lab: Lab, unmarkable: Callable[[], None]
) -> None:
    unmarkable()
    gate = make_gate(mark=MARK)
    client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)
    assert await client.is_reset()
    end = await gate.record(lambda record: record.reason is Reason.UPSTREAM_FAILED)
    assert "not permitted" in end.detail
    assert lab.packets() == []


async def test_without_it_http_is_dialled_to_nobody(
    make_gate: MakeGate, lab: Lab, unmarkable: Callable[[], None]
) -> None:
    gate = make_gate(mark=MARK)
    await gate.embedded.gate.resolver.addresses("allowed.test")
    unmarkable()
    client = await gate.claim(plan.ALLOWED4, 80)
    await client.send(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
    assert (await client.read_response())[0] == 502
    assert lab.packets(plan.ALLOWED4) == []


async def test_without_it_nobody_is_asked(
    make_gate: MakeGate, lab: Lab, unmarkable: Callable[[], None]
) -> None:
    unmarkable()
    resolution = await make_gate(mark=MARK).embedded.gate.resolver.addresses("allowed.test")
    assert resolution.error and not resolution.addresses
    assert lab.packets() == []


def test_a_socket_that_gets_no_mark_is_closed(require_lab: None) -> None:
    """The kernel's own refusal, to a thread without capabilities."""
    from tests.sandbox.sidecars import drop_capabilities

    raised: list[BaseException] = []

    def run() -> None:
        drop_capabilities()
        try:
            Egress(MARK).socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [PermissionError]
