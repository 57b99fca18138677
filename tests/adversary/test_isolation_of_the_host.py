"""What lies outside a box is out of reach: the host's files, settings, sockets and processes, other boxes.

Each is tried as root of the box. What the system calls answer is held in ``tests/sandbox``; here a file of
the host's is looked for and not found, a server of the host's is never connected to, pid 1 goes on.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from box_policy.policy.reasons import Reason
from box_policy.sandbox.launcher import ProgramSpec
from tests.adversary.arena import Arena, Inmate
from tests.adversary.attack import CUSTOM
from tests.adversary.kernel_attacks import python
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestSockets:
    ALLOWED: Final = (
        {
            # The box's own programs talk to each other; a path or an abstract name leads to nobody else.
            (socket.AF_UNIX, kind, protocol)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
            for protocol in (0, 1)
        }
        | {
            # TCP is redirected to the gate, MPTCP is TCP on the wire; UDP is DNS, or refused.
            (family, kind, protocol)
            for family in (socket.AF_INET, socket.AF_INET6)
            for kind, protocols in ((socket.SOCK_STREAM, (0, 6, 262)), (socket.SOCK_DGRAM, (0, 17)))
            for protocol in protocols
        }
        | {
            # Interfaces and addresses, for libraries, and sockets, for ss(8): of the box's network alone.
            (socket.AF_NETLINK, kind, protocol)
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW)
            for protocol in (0, 4)
        }
    )

    async def test_no_other_opens(self, arena: Arena) -> None:
        opened = await python(
            await arena.inmate(),
            """
result = []
for family in range(64):
    for kind in range(12):
        for protocol in range(272):
            fd = LIBC.syscall(NUMBERS["socket"][0 if X86 else 1], family, kind, protocol)
            if fd >= 0:
                os.close(fd)
                result.append((family, kind, protocol))
""",
        )
        assert isinstance(opened, list)
        assert {tuple(one) for one in opened} <= self.ALLOWED
        assert (socket.AF_INET, socket.SOCK_STREAM, 6) in {tuple(one) for one in opened}

    async def test_nothing_else_makes_one(self, arena: Arena) -> None:
        ends = await python(
            await arena.inmate(),
            """
pair = (ctypes.c_int * 2)()
number = ctypes.c_long(53 if X86 else 199)
result = [family for family in range(64) for kind in (1, 2, 3, 5)
          if LIBC.syscall(number, family, kind, 0, pair) == 0]
result += [attempt(call, "io_uring_setup", 8, ctypes.create_string_buffer(120))]
# The numbers of another convention: those of x32, and of a high half that the kernel cuts off.
result += [attempt(lambda: LIBC.syscall(ctypes.c_long(0x40000000 + 41), 40, 1, 0) < 0 or os._exit(3))]
result += [attempt(call, "socket", 1 << 32 | 40, 1, 0)]
""",
        )
        assert ends == [1, 1, 1, 1, "ENOSYS", "done", "EAFNOSUPPORT"]


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file of the host's, where nothing of it is shown to a box."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory) / "secret"
        path.write_text("the host's secret")
        for shown in (path.parent, path):
            shown.chmod(0o755)
        yield path


async def test_the_hosts_files(arena: Arena, secret: Path) -> None:
    found = await python(
        await arena.inmate(),
        f"SECRET = {str(secret)!r}"
        + """
import glob
found, roots = [], [os.open("/", os.O_RDONLY)]
def look(root):
    for up in ("", "/.." * 20):
        attempt(lambda: found.append(open(root + up + SECRET).read()))
def inside(act):
    attempt(act)
    look(".")
for root in ["", "/proc/1/cwd", "/proc/self/root", "/dev/fd"] + glob.glob("/proc/[0-9]*/root"):
    look(root)
os.makedirs("/tmp/jail", exist_ok=True)
os.chdir("/tmp")
for act in (
    lambda: os.chroot("/tmp/jail"),
    lambda: call("pivot_root", b".", b"."),
    lambda: call("mount", b"/", b"/tmp/jail", 0, 0x5000, 0),
    lambda: call("mount", b"proc", b"/tmp/jail", b"proc", 0, 0),
    lambda: call("mount", b"none", b"/", 0, 0x1020, 0),
    lambda: call("umount2", b"/proc/sys", 2),
    lambda: call("open_tree", -100, b"/", 0x8001),
    lambda: call("fsopen", b"proc", 0),
    lambda: call("move_mount", roots[0], b"", -100, b"/tmp/jail", 4),
    lambda: call("setns", os.open("/proc/1/ns/mnt", 0), 0x20000),
):
    inside(act)
# By its number: the root directory of most file systems is inode 2, or 128.
HANDLES = ((1, struct.pack("=II", 2, 0)), (1, struct.pack("=II", 128, 0)), (129, struct.pack("=Q", 2)))
for fd in [roots[0], os.open("/usr", 0), os.open("/etc", 0), os.open("/workspace", 0)]:
    for kind, inode in HANDLES:
        handle = struct.pack("=Ii", len(inode), kind) + inode
        def open_it():
            os.chdir("/proc/self/fd/%d" % call("open_by_handle_at", fd, handle, os.O_RDONLY))
        inside(open_it)
result = found
""",
    )
    assert found == []


async def test_kernel_settings(arena: Arena) -> None:
    # Opened for writing and closed again: nothing is written.
    writable = await python(
        await arena.inmate(),
        """
result = []
for top in ("/sys", "/proc"):
    for folder, folders, names in os.walk(top):
        if folder == "/proc":
            folders[:] = [name for name in folders if not name.isdigit() and "self" not in name]
        for name in names:
            path = folder + "/" + name
            if not os.path.islink(path) and attempt(lambda: os.close(os.open(path, os.O_WRONLY))) == "done":
                result.append(path)
""",
    )
    # /dev/null lies over what tells of the machine, and pressure takes an order to be told of it.
    harmless = {f"/proc/{name}" for name in ("kallsyms", "kcore", "key-users", "keys", "timer_list")}
    harmless |= {f"/proc/pressure/{name}" for name in ("cpu", "io", "irq", "memory")}
    assert isinstance(writable, list)
    assert set(writable) <= harmless


async def test_what_is_open_in_the_box(arena: Arena) -> None:
    opened = await python(
        await arena.inmate(id="fresh"),
        """
import glob
result = []
for path in glob.glob("/proc/[0-9]*/fd/*"):
    attempt(lambda: result.append((path.split("/")[2], os.readlink(path))))
""",
    )
    assert isinstance(opened, list)
    kinds = {name.partition("[")[0] for _, name in opened if "/fd" not in name}
    assert {pid for pid, _ in opened} != {"1"}
    assert kinds <= {"pipe:", "/dev/null"}


async def test_other_processes(arena: Arena) -> None:
    # What is taken is looked at and let go: whose it is, nobody knows before this test has passed.
    taken = await python(
        await arena.inmate(id="fresh"),
        """
import glob
COOKIE = 71  # SO_NETNS_COOKIE
def network(sock):
    return struct.unpack("=Q", sock.getsockopt(1, COOKIE, 8))[0]
own, found = network(socket.socket()), []
def look(pid, fd):
    if os.fstat(fd).st_mode >> 12 == 12 and network(socket.socket(fileno=os.dup(fd))) != own:
        found.append("a socket of %d's" % pid)
def enter(pid, path):
    call("setns", os.open(path, os.O_RDONLY), 0)
    found.append(path)
for pid in {int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*")} - {os.getpid()}:
    for number in range(64):
        attempt(lambda: look(pid, call("pidfd_getfd", call("pidfd_open", pid, 0), number, 0)))
    for path in glob.glob("/proc/%d/ns/*" % pid) + glob.glob("/proc/%d/task/*/ns/*" % pid):
        attempt(enter, pid, path)
    attempt(enter, pid, "/proc/%d/ns/net" % pid)
result = found
""",
    )
    assert taken == []


class TestTheFirstProcess:
    @pytest_asyncio.fixture(autouse=True, loop_scope="module")
    async def it_is_the_boxs(self, arena: Arena) -> None:
        """Nothing here is tried on anybody else's."""
        first = "result = open('/proc/1/comm').read()"
        assert await (await arena.inmate()).attacker.python(first) == "box-init\n"

    async def test_no_signal_and_no_limit_ends_it(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        ends = await python(
            inmate,
            """
import signal
for number in range(1, 65):
    attempt(os.kill, 1, number)
for number in range(16):
    attempt(call, "prlimit64", 1, number, struct.pack("=QQ", 0, 0), 0)
result = "tried"
""",
        )
        assert ends == "tried"
        assert await _still_starts_programs(inmate)

    async def test_a_program_that_makes_it_its_tracer(self, arena: Arena) -> None:
        # A direct child of pid 1's, which is told of each of the child's stops from here on.
        inmate = await arena.inmate()
        source = "import ctypes, os; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 10)"
        stopped = await inmate.box.start(ProgramSpec(("/usr/bin/env", "python3", "-c", source)))
        assert await _still_starts_programs(inmate)
        while "T" not in await _state(inmate, stopped.pid) and "t" not in await _state(inmate, stopped.pid):
            pass
        assert await _still_starts_programs(inmate)
        stopped.send_signal(9)
        assert await stopped.wait() == -9


async def _still_starts_programs(inmate: Inmate) -> bool:
    return await (await inmate.box.start(ProgramSpec(("/bin/true",)))).wait() == 0


async def _state(inmate: Inmate, pid: int) -> str:
    status = f"result = open('/proc/{pid}/stat').read().rpartition(')')[2].split()[0]"
    return str(await inmate.attacker.python(status))


class TestSocketsOfTheHost:
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
    @pytest.mark.parametrize("place", ["abstract", "path", "read-only directory"])
    async def test_are_out_of_reach(
        self, arena: Arena, secret: Path, kind: socket.SocketKind, place: str
    ) -> None:
        address = "\0the-hosts" if place == "abstract" else str(secret.with_name("socket"))
        read_only = [secret.parent] if place == "read-only directory" else []
        inmate = await arena.inmate(id=f"beside-{bool(read_only)}", read_only=read_only)
        with socket.socket(socket.AF_UNIX, kind) as server:
            server.bind(address)
            if place != "abstract":
                Path(address).chmod(0o777)
            if kind != socket.SOCK_DGRAM:
                server.listen()
            source = f"result = socket.socket(1, {int(kind)}).connect_ex({address!r})"
            assert await python(inmate, source) in {2, 13, 30, 111}
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1) if kind == socket.SOCK_DGRAM else server.accept()

    async def test_lie_nowhere_in_the_box(self, arena: Arena) -> None:
        # Of docker, containerd, nscd, D-Bus, systemd, an ssh agent, or of anybody else.
        found = await python(
            await arena.inmate(),
            """
result = []
for folder, folders, names in os.walk("/"):
    if folder == "/":  # what is shown read-only has no socket that can be connected to
        folders[:] = ["dev", "etc", "home", "run", "tmp", "var", "workspace"]
    result += [name for name in names if os.lstat(folder + "/" + name).st_mode >> 12 == 12]
result += [name for name in os.environ if "SOCK" in name or "BUS" in name]
""",
        )
        assert found == []


async def test_cores(arena: Arena) -> None:
    # A handler would be started on the host, as its root: see workload.limit_cores.
    inmate = await arena.inmate()
    ends = await python(
        inmate,
        """
import resource
attempt(resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
attempt(call, "prlimit64", 0, resource.RLIMIT_CORE, struct.pack("=QQ", 0, 0), 0)
os.chdir("/tmp")
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), 11)
status = os.waitpid(pid, 0)[1]
result = [resource.getrlimit(resource.RLIMIT_CORE), status & 0x7F, status & 0x80, os.path.exists("/tmp/core")]
""",
    )
    assert ends == [[1, 1], 11, 0, False]


class TestTerminals:
    async def test_there_is_none_but_the_boxs(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        program = await inmate.box.start(ProgramSpec(("/bin/cat",), terminal=(24, 80)))
        assert program.terminal is not None
        try:
            seen = await python(
                inmate,
                """
import fcntl, glob, termios
result = [sorted(os.listdir("/dev/pts")), attempt(os.open, "/dev/tty", os.O_RDWR)]
for path in glob.glob("/dev/pts/[0-9]*"):
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    result += [attempt(fcntl.ioctl, fd, request, b"x") for request in (termios.TIOCSTI, 0x541C)]
    result += [attempt(fcntl.ioctl, fd, termios.TIOCSETD, struct.pack("=i", 21))]
    result += [attempt(fcntl.ioctl, fd, termios.TIOCCONS)]
for name in ("console", "tty0", "tty1", "ttyS0", "kmsg", "mem", "kvm", "vsock", "net/tun", "vda"):
    attempt(os.mknod, "/dev/" + name, 0o20666, os.makedev(1, 11))
    result += [attempt(os.open, "/dev/" + name, os.O_RDWR)]
""",
            )
            assert isinstance(seen, list)
            assert seen[0] == ["0", "ptmx"]
            assert set(seen[1:]) <= {"ENXIO", "EPERM", "ENOENT", "EACCES", "EROFS"}
        finally:
            os.close(program.terminal)
            program.send_signal(9)


class TestTwoBoxes:
    async def test_cannot_see_each_other(self, arena: Arena) -> None:
        one, other = [await arena.inmate(id=name) for name in ("one", "other")]
        served = await python(
            one,
            """
held = []
for address in ("127.0.0.1", "10.0.2.15", "::1", "fd00:2::15"):
    for kind in (1, 2):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        sock.bind((address, 7777))
        if kind == 1:
            sock.listen()
        held.append(sock)
for address in ("\\0between", "/tmp/between", "/workspace/between", "/dev/shm/between"):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    sock.listen()
    held.append(sock)
os.mkdir("/tmp/of-one")
fd = os.open("/dev/shm/of-one", os.O_CREAT | os.O_RDWR)
segment = LIBC.shmget(0x7777, 4096, 0o1666)
agent.held_by_one = held
result = len(held)
""",
        )
        assert served == 12
        seen = await python(
            other,
            """
result = []
for address in ("127.0.0.1", "10.0.2.15", "::1", "fd00:2::15"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    result.append(attempt(socket.socket(family).connect, (address, 7777)))
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((address, 7777))
    sock.send(b"x")
    result.append(attempt(sock.send, b"x"))
for address in ("\\0between", "/tmp/between", "/workspace/between", "/dev/shm/between"):
    result.append(attempt(socket.socket(socket.AF_UNIX).connect, address))
result += [str(name) for name in os.listdir("/tmp") + os.listdir("/dev/shm")]
result += ["a segment"] if LIBC.shmget(0x7777, 4096, 0) >= 0 else []
""",
        )
        assert seen == ["ECONNREFUSED"] * 9 + ["ENOENT"] * 3

    async def test_a_policy_is_one_boxs(self, arena: Arena) -> None:
        allowed = await arena.inmate("allow-all", id="allowed")
        denied = await arena.inmate(CUSTOM, id="denied")
        arena.begin(allowed)
        source = f"result = socket.create_connection(({plan.EVIL4!r}, 443), 2).send(b'x')"
        assert await python(allowed, source) == 1
        await arena.lab.expect_async(lambda: arena.lab.connections(plan.EVIL4))
        await arena.rest(allowed)
        arena.begin(denied)
        assert await python(denied, source) == 1
        await denied.attacker.do("release")
        await arena.recorded(Reason.PROTOCOL_UNKNOWN)
        assert arena.lab.packets() == []
        assert {record.box for record in arena.records} == {"denied"}
