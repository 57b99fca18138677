"""Ways round the gate from a box that is a container, judged at the origins.

The attacks are those of ``test_isolation.py``. The gate holds listeners that were made in the container's
network namespace; it dials from its own host, the lab's. So what is allowed arrives at the lab's origins, to
which the engine itself has no route.
"""

import asyncio
from collections.abc import AsyncIterator

import docker
import pytest
import pytest_asyncio

from box_policy.sandbox.docker import DockerLauncher, listeners
from box_policy.sandbox.docker.box import DockerBox
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Attack
from tests.adversary.kernel_attacks import attacks, python
from tests.adversary.test_isolation import ATTACKS
from tests.adversary.test_taken_init import served
from tests.containers.engine import IMAGE, engine_address
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[DockerLauncher]:
    """A launcher of Docker boxes."""
    launcher = DockerLauncher(IMAGE, engine_address())
    yield launcher
    await launcher.close()


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


@pytest.mark.parametrize("by_helper", [False, True], ids=["from within", "by a container"])
async def test_what_is_allowed_arrives_and_nothing_else(
    lab: Lab, launcher: DockerLauncher, monkeypatch: pytest.MonkeyPatch, by_helper: bool
) -> None:
    async def refused(namespace: int) -> None:
        raise PermissionError

    if by_helper:
        monkeypatch.setattr(listeners, "from_within", refused)
    arena = await Arena.open(lab, launcher)
    try:
        inmate = await arena.inmate()
        arena.begin(inmate)
        assert await served(arena, inmate)
        assert lab.packets(plan.CIDR4)
        denied = Attack(
            name="evil",
            act=attacks("datagrams()\npackets()\nresult = together(says(to) for to in (EVIL, EVIL6))"),
            sees="alert 49",
        )
        await arena.contains(denied)
        assert lab.packets(plan.EVIL4) == []
    finally:
        await arena.close()


async def test_without_its_rules_it_reaches_nothing(arena: Arena) -> None:
    # What no program of the box can do: everything that CAP_NET_ADMIN allows, in its network namespace.
    inmate = await arena.inmate(id="ruined")
    arena.begin(inmate)
    box = inmate.box
    assert isinstance(box, DockerBox)
    client = docker.DockerClient(engine_address())
    ruin = f"nft flush ruleset && ip route add {plan.EVIL4} dev lo && ip -6 route flush dev lo; ip link"
    await asyncio.to_thread(
        client.containers.run,
        IMAGE,
        ["sh", "-c", ruin],
        network_mode=f"container:{box.container}",
        cap_add=["NET_ADMIN"],
        remove=True,
    )
    attack = Attack(
        name="ruined",
        act=attacks(
            "datagrams()\npackets()\n"
            f"result = together(says(to, timeout=0.2) for to in (EVIL, EVIL6, GATE, GATE6, {plan.CIDR4!r}))"
        ),
    )
    seen = await attack.act(inmate.attacker)
    assert "alert" not in str(seen)
    for address in (plan.EVIL4, plan.EVIL6, plan.GATE4, plan.CIDR4):
        assert arena.lab.packets(address) == []
    assert arena.records == []


async def test_what_no_network_namespace_holds(arena: Arena) -> None:
    tried = """
result = [attempt(lambda: socket.socket(family, 1).close()) for family in (40, 31, 38, 44)]
result += [attempt(call, "io_uring_setup", 8, ctypes.create_string_buffer(120))]
for name in ("bpf", "mount", "umount2", "keyctl", "userfaultfd"):
    result.append(attempt(call, name, 0, 0, 0, 0, 0))
result += [attempt(call, "unshare", flag) for flag in (NEW_USER, NEW_NET, 0x20000)]
result += [attempt(flush_rules), attempt(socket.socket, 2, 3, 255)]
"""
    ends = await python(await arena.inmate(id="families"), tried)
    assert ends == ["EAFNOSUPPORT"] * 4 + ["ENOSYS"] + ["EPERM"] * 8 + ["EPROTONOSUPPORT", "EPERM"]


async def test_nothing_of_pid_1s_own_can_be_had(arena: Arena) -> None:
    # It is of the same user as the programs; what keeps them from it is that nobody may trace it.
    ends = await python(
        await arena.inmate(id="init"),
        """
buffer = struct.pack("=QQ", 0x1000, 8)
result = [
    attempt(call, "ptrace", 16, 1, 0, 0),
    attempt(lambda: call("pidfd_getfd", call("pidfd_open", 1, 0), 3, 0)),
    attempt(call, "process_vm_writev", 1, buffer, 1, buffer, 1, 0),
    *(attempt(os.open, "/proc/1/" + name, os.O_RDONLY) for name in ("mem", "environ", "ns/net", "root")),
    *(attempt(os.open, "/proc/1/fd/%d" % fd, os.O_RDONLY) for fd in range(3, 9)),
]
attempt(os.kill, 1, 9)
attempt(os.kill, 1, 19)
""",
    )
    assert isinstance(ends, list)
    assert set(ends) <= {"EPERM", "EACCES", "ENOENT"}
    inmate = await arena.inmate(id="init")
    assert await python(inmate, "result = open('/proc/1/comm').read()") == "box-init\n"
