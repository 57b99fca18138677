"""The gate's own addresses, as the kernel's routes have them."""

import socket
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute

from box_policy.gate.own_addresses import OwnAddresses
from tests.lab import Lab, plan

_LOCAL_TABLE = 255


@pytest.mark.parametrize(
    "address", [plan.GATE4, plan.GATE6, "127.0.0.1", "127.200.0.1", "::1", "0.0.0.0", "::"]
)
def test_own(lab: Lab, address: str) -> None:
    assert ip_address(address) in OwnAddresses()


@pytest.mark.parametrize("address", [plan.ALLOWED4, plan.ALLOWED6, plan.ORIGIN4, "10.66.0.1", "240.0.0.1"])
def test_not_own(lab: Lab, address: str) -> None:
    assert ip_address(address) not in OwnAddresses()


@pytest.mark.parametrize(
    ("network", "address"), [("51.82.0.0/16", "51.82.3.4"), ("2a0f:5200::/64", "2a0f:5200::1")]
)
def test_own_by_a_route_alone(lab: Lab, network: str, address: str) -> None:
    own = OwnAddresses()
    assert ip_address(address) not in own
    family = socket.AF_INET6 if ":" in network else socket.AF_INET
    with IPRoute() as routes:
        lo = routes.link_lookup(ifname="lo")[0]
        route = {"family": family, "dst": network, "oif": lo, "type": "local", "table": _LOCAL_TABLE}
        if family == socket.AF_INET:
            route["scope"] = "host"
        routes.route("add", **route)
        try:
            assert ip_address(address) in own
        finally:
            routes.route("del", **route)
    assert ip_address(address) not in own


def test_an_open_question_is_answered_with_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    own = OwnAddresses()
    monkeypatch.setattr(socket, "socket", none_left)
    assert ip_address(plan.ALLOWED4) in own
    assert "a name" in own
