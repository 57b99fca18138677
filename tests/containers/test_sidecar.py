"""A gate beside a program that shares its network: what gets out, and what doesn't.

Whether something got out is told by what the origin's side of the engine's only way out has seen.
"""

import contextlib
import http.client
from collections.abc import Iterator
from typing import Final

import pytest
from docker.models.containers import Container

from tests.containers import attacks
from tests.containers.engine import Engine
from tests.containers.pod import (
    HARDENED,
    ROOT,
    Pod,
    PodMaker,
    curl,
    logs,
    python,
    run,
    wait_until,
    write_policy,
)
from tests.containers.world import inside
from tests.lab import Lab, plan

pytest_plugins = ["tests.containers.fixtures"]

ALLOWED: Final = {"mode": "custom", "allowed_domains": ["allowed.test"]}
DENY_ALL: Final = {"mode": "deny-all"}
ALLOW_ALL: Final = {"mode": "allow-all"}


RIGHTS: Final = ("SETUID", "SETGID", "DAC_OVERRIDE", "CHOWN", "NET_BIND_SERVICE")
"""What a container of Docker's has anyway, and more than a program needs."""

_AS_ANOTHER_USER: Final = (
    """
import ctypes
ctypes.CDLL(None).prctl(8, 1)  # PR_SET_KEEPCAPS
os.setresuid(1000, 1000, 1000)
class Header(ctypes.Structure):
    _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]
class Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ('effective', 'permitted', 'inheritable')]
both = (Data * 2)(Data(1 << 12, 1 << 12, 0))  # CAP_NET_ADMIN
print('capset', ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), both))
print('user', os.getuid())
"""
    + attacks.MARK
)


def attempted(container: Container, attack: str) -> str:
    """What a program that tries something has said."""
    done = python(container, attacks.program(attack))
    assert done.status == 0, done.output
    assert " met " in done.output or " came to " in done.output, done.output
    return done.output


def leaked(world: Lab) -> list[object]:
    """What got out of that which must not."""
    sent = [packet for address in (plan.EVIL4, plan.EVIL6) for packet in world.packets(address)]
    asked = [question for question in world.dns.questions if "secret" in question.name]
    return [*sent, *asked]


# What passes, and what doesn't


@pytest.fixture(scope="module")
def pod(make_pod: PodMaker) -> Pod:
    """A gate on a network of its own, with the engine's resolver in it."""
    pod = make_pod(network=make_pod.network(), dns=[plan.NAMESERVER4])
    pod.gate(ALLOWED)
    return pod


@pytest.fixture(scope="module")
def app(pod: Pod) -> Container:
    return pod.program(**HARDENED)


@pytest.fixture(scope="module")
def careless(pod: Pod) -> Container:
    """Root, and free to become anybody."""
    return pod.program(**{**ROOT, "cap_add": RIGHTS})


@pytest.fixture
def intact(pod: Pod, app: Container, world: Lab) -> Iterator[None]:
    """After the test nothing has leaked, and what is allowed is still served."""
    yield
    assert leaked(world) == []
    assert curl(app, "http://allowed.test/").output.endswith(" 200")


def test_an_allowed_name_is_served(app: Container, world: Lab) -> None:
    assert curl(app, "http://allowed.test/").output.endswith(" 200")
    assert curl(app, "https://allowed.test/", "--insecure").output.endswith(" 200")
    assert {request.header("host") for request in world.requests()} == {"allowed.test"}


def test_a_denied_name_is_not(app: Container, world: Lab) -> None:
    assert curl(app, "http://evil.test/").status != 0
    resolved = ["--resolve", f"evil.test:80:{plan.EVIL4}", "--resolve", f"evil.test:443:{plan.EVIL4}"]
    assert curl(app, "http://evil.test/", *resolved).output.endswith(" 403")
    assert curl(app, "https://evil.test/", "--insecure", *resolved).status == 35, "a TLS alert"
    assert world.packets() == []


ATTACKS: Final = {
    "direct": attacks.DIRECT,
    "mark": attacks.MARK,
    "device": attacks.DEVICE,
    "port-53": attacks.OWN_PORT_53,
    "gates-user": attacks.GATES_USER,
    "raw": attacks.RAW,
    "other-protocols": attacks.OTHER_PROTOCOLS,
    "dockers-resolver": attacks.DOCKERS_RESOLVER,
    "control-socket": attacks.CONTROL_SOCKET,
    "flush": attacks.FLUSH,
    "routes": attacks.ROUTES,
}


@pytest.mark.usefixtures("intact")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("who", ["app", "careless"])
def test_nothing_else_gets_out(who: str, attack: str, request: pytest.FixtureRequest) -> None:
    print(attempted(request.getfixturevalue(who), ATTACKS[attack]))


# The same attacks where what holds them is missing: else the tests above could not fail


@pytest.fixture(scope="module")
def open_pod(make_pod: PodMaker) -> Pod:
    """A network without a gate."""
    return make_pod(network=make_pod.network(), dns=[plan.NAMESERVER4])


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_gate_each_attack_gets_out(open_pod: Pod, world: Lab, attack: str) -> None:
    program = open_pod.program(**{**ROOT, "cap_add": [*RIGHTS, "NET_RAW", "NET_ADMIN"]})
    output = attempted(program, ATTACKS[attack])
    wait_until(lambda: leaked(world), output, patience=5)


@pytest.mark.parametrize(
    ("capability", "attack"),
    [("NET_RAW", attacks.RAW), ("NET_RAW", attacks.MARK), ("NET_ADMIN", attacks.MARK)],
    ids=["raw", "mark-by-net-raw", "mark-by-net-admin"],
)
def test_capabilities_for_the_network_are_ways_out(
    pod: Pod, world: Lab, capability: str, attack: str
) -> None:
    root = pod.program(**{**ROOT, "cap_add": [capability]})
    output = attempted(root, attack)
    wait_until(lambda: leaked(world), output, patience=5)


def test_of_these_the_mark_takes_the_gates_user_too(pod: Pod, world: Lab) -> None:
    somebody = pod.program(**{**ROOT, "cap_add": ["NET_ADMIN", "SETUID"]})
    output = attempted(somebody, _AS_ANOTHER_USER)
    assert "capset 0\nuser 1000" in output
    assert leaked(world) == []


# The containers of a network share /etc/hosts and /etc/resolv.conf


@pytest.fixture
def own_pod(make_pod: PodMaker) -> Pod:
    """On the engine's own network, which has IPv6."""
    return make_pod(dns=[plan.NAMESERVER4])


@pytest.fixture
def root(own_pod: Pod) -> Container:
    """A program that may write to them, beside a gate that was told no name servers."""
    own_pod.gate(
        {"mode": "custom", "allowed_domains": ["allowed.test", "*.wild.test"]},
        environment={"BOX_POLICY_NAME_SERVERS": ""},
    )
    return own_pod.program(**{**ROOT, "cap_add": ["DAC_OVERRIDE"]})


@pytest.mark.parametrize(
    "attack", [attacks.SHARED_HOSTS, attacks.SHARED_RESOLV_CONF], ids=["hosts", "resolv.conf"]
)
def test_the_gate_believes_no_names_that_a_program_has_written(
    root: Container, world: Lab, attack: str
) -> None:
    print(attempted(root, attack))
    assert leaked(world) == []


# How it lives, and what remains when it doesn't


def test_ipv6_is_held_to_the_policy_too(own_pod: Pod, world: Lab) -> None:
    own_pod.gate(ALLOWED)
    app = own_pod.program(**HARDENED)
    world.dns.set("allowed.test", AAAA=[plan.ALLOWED6])
    assert curl(app, "http://allowed.test/").output.endswith(" 200")
    assert curl(app, f"http://[{plan.EVIL6}]/").output.endswith(" 403")
    attempted(app, attacks.DIRECT)
    assert leaked(world) == []
    assert {request.address for request in world.requests()} == {plan.ALLOWED6}


def test_a_killed_gate_leaves_no_network_and_a_new_one_heals_it(own_pod: Pod, world: Lab) -> None:
    gate = own_pod.gate(ALLOW_ALL)
    app = own_pod.program(**HARDENED)
    assert curl(app, "http://evil.test/").output.endswith(" 200")
    gate.kill("SIGKILL")
    gate.wait(timeout=30)
    world.reset()
    assert curl(app, "http://allowed.test/").status != 0
    assert curl(app, f"http://{plan.ALLOWED4}/").status != 0
    attempted(app, attacks.DIRECT)
    assert world.packets() == []
    gate.start()
    wait_until(lambda: run(gate, "box-policy", "status", "--ready").status == 0, "the new gate is ready")
    wait_until(lambda: curl(app, "http://allowed.test/").output.endswith(" 200"), "the new gate serves")


def test_a_gate_that_was_told_to_end_leaves_no_network_either(own_pod: Pod, world: Lab) -> None:
    gate = own_pod.gate(ALLOW_ALL)
    app = own_pod.program(**HARDENED)
    gate.stop()
    attempted(app, attacks.DIRECT)
    assert world.packets() == []


def test_a_gate_that_can_not_start_leaves_no_network(own_pod: Pod, world: Lab) -> None:
    gate = own_pod.gate("mode: of my own\n", ready=False)
    assert gate.wait(timeout=30)["StatusCode"] != 0
    assert "policy.yaml" in logs(gate)
    app = own_pod.program(**HARDENED)
    attempted(app, attacks.DIRECT)
    assert world.packets() == []


def test_a_gate_without_the_capability_says_so(own_pod: Pod) -> None:
    gate = own_pod.gate(ALLOWED, ready=False, cap_add=[])
    assert gate.wait(timeout=30)["StatusCode"] != 0
    assert "NET_ADMIN" in logs(gate)


def test_a_file_that_is_replaced_is_in_force_at_once(own_pod: Pod, world: Lab) -> None:
    gate = own_pod.gate(ALLOWED)
    app = own_pod.program(**HARDENED)
    assert curl(app, "http://evil.test/").status != 0
    write_policy(own_pod.directory, {"mode": "custom", "allowed_domains": ["evil.test"]})
    wait_until(lambda: curl(app, "http://evil.test/").output.endswith(" 200"), "the new policy", 10)
    assert curl(app, "http://allowed.test/").status != 0
    write_policy(own_pod.directory, "mode: [")
    wait_until(lambda: "refused" in run(gate, "box-policy", "status").output, "the refusal", 10)
    assert curl(app, "http://evil.test/").output.endswith(" 200")
    assert world.connections(plan.ALLOWED4) == []


def test_rules_that_a_privileged_neighbour_flushes_are_put_back(own_pod: Pod, world: Lab) -> None:
    gate = own_pod.gate(ALLOWED)
    app = own_pod.program(**HARDENED)
    neighbour = own_pod.program(**{**ROOT, "cap_add": ["NET_ADMIN"]})
    assert run(neighbour, "nft", "flush", "ruleset").status == 0
    wait_until(lambda: "put back" in logs(gate), "the gate has noticed", 10)
    world.reset()
    attempted(app, attacks.DIRECT)
    assert leaked(world) == []
    # With nobody to put them back they stay away: this is what takes the capability.
    gate.kill("SIGKILL")
    gate.wait(timeout=30)
    assert run(neighbour, "nft", "flush", "ruleset").status == 0
    attempted(app, attacks.DIRECT)
    assert leaked(world)


def test_connections_from_outside_come_in_unless_the_gate_is_told_otherwise(
    own_pod: Pod, docker_engine: Engine, world: Lab
) -> None:
    gate = own_pod.gate(DENY_ALL)
    own_pod.program(**HARDENED, command=["python3", "-m", "http.server", "8000", "--directory", "/usr/share"])
    own_pod.holder.reload()
    address = own_pod.holder.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]

    def answered() -> bool:
        connection = http.client.HTTPConnection(address, 8000, timeout=3)
        with inside(docker_engine.netns), contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        return False

    wait_until(answered, "the program answers who comes from outside", 10)
    gate.kill("SIGKILL")
    gate.wait(timeout=30)
    own_pod.gate(environment={"BOX_POLICY_INBOUND": "deny"})
    assert not answered()
    assert world.packets() == []
