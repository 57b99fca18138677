"""mitmproxy's own options, which also come from a file in its user's home, make the gate no weaker."""

import pytest
from mitmproxy.options import Options

from box_policy.policy.reasons import Reason
from tests.gate.conftest import GateUnderTest
from tests.gate.test_http import error_of, request
from tests.lab import Lab, plan

OPTIONS = [
    {"validate_inbound_headers": False},
    {"rawtcp": True, "websocket": False},
    {"http2": True},
    {"stream_large_bodies": "1"},
    {"store_streamed_bodies": True},
    {"upstream_cert": True},
    {"tcp_hosts": [".*"], "ignore_hosts": [".*"]},
]


@pytest.fixture(params=OPTIONS, ids=lambda options: ", ".join(options))
def weakened(gate: GateUnderTest, request: pytest.FixtureRequest) -> GateUnderTest:
    options: Options = gate.embedded._master.options
    assert set(request.param) <= set(options.keys())
    options.update(**request.param)
    return gate


async def test_what_means_two_things_is_refused(weakened: GateUnderTest, lab: Lab) -> None:
    for extra in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Host : hidden.othercdn.test\r\n",
    ):
        client = await weakened.claim(plan.SHARED4, 80)
        await client.send(request(line="POST / HTTP/1.1", extra=extra) + b"0\r\n\r\n")
        assert (await error_of(client, 400))["reason"] == Reason.HTTP_INVALID
    assert lab.packets() == []


async def test_so_is_what_is_not_allowed(weakened: GateUnderTest, lab: Lab) -> None:
    for host, port in (("evil.test", 80), ("hidden.othercdn.test", 80), ("evil.test:443", 443)):
        client = await weakened.claim(plan.EVIL4, port)
        await client.send(request(host))
        await error_of(client, 403)
    assert lab.packets() == []


async def test_an_answer_that_means_two_things_is_not_passed_on(weakened: GateUnderTest) -> None:
    answer = (
        "HTTP/1.1%20200%20OK%0D%0AContent-Length:2%0D%0ATransfer-Encoding:chunked%0D%0A%0D%0A0%0D%0A%0D%0A"
    )
    client = await weakened.claim(plan.ALLOWED4, 80)
    await client.send(request("allowed.test", line=f"GET /raw?{answer} HTTP/1.1"))
    await error_of(client, 502)


async def test_what_is_allowed_goes_through(weakened: GateUnderTest) -> None:
    client = await weakened.claim(plan.ALLOWED4, 80)
    await client.send(request("allowed.test"))
    assert (await client.read_response())[0] == 200
