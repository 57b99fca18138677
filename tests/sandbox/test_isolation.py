"""What a program in a box, as its root, must not be able to do."""

import os
from pathlib import Path

import pytest

from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import python, shell
from tests.sandbox.conftest import DOCKER

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = """
import ctypes, errno, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
def call(number, *arguments):
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
def attempt():
    {code}
try:
    attempt()
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""

NEW_NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mount": 0x00020000,
    "network": 0x40000000,
    "pid": 0x20000000,
    "time": 0x00000080,
    "user": 0x10000000,
    "uts": 0x04000000,
}


async def attempt(box: ServedBox, code: str) -> str:
    """The name of the error that Python code ends with, or "done"."""
    return (await python(box, CALL.format(code=code))).output.strip()


@pytest.mark.parametrize(
    ("family", "number"),
    [
        ("AF_VSOCK", 40),
        ("AF_PACKET", 17),
        ("AF_BLUETOOTH", 31),
        ("AF_ALG", 38),
        ("AF_XDP", 44),
        ("AF_SMC", 43),
        ("AF_TIPC", 30),
        ("AF_CAN", 29),
        ("AF_KEY", 15),
        ("AF_QIPCRTR", 42),
    ],
)
async def test_socket_families_outside_the_namespace(box: ServedBox, family: str, number: int) -> None:
    for kind in (1, 2, 3, 5):
        assert await attempt(box, f"call(41 if x86 else 198, {number}, {kind}, 0)") == "EAFNOSUPPORT"
        assert await attempt(box, f"call(53 if x86 else 199, {number}, {kind}, 0, (ctypes.c_int * 2)())") == (
            "EAFNOSUPPORT"
        )


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
async def test_raw_and_ping_sockets(box: ServedBox, family: str) -> None:
    assert await attempt(box, f"socket.socket(socket.{family}, socket.SOCK_RAW, 1)") == "EPERM"
    protocol = "IPPROTO_ICMP" if family == "AF_INET" else "IPPROTO_ICMPV6"
    ping = f"socket.socket(socket.{family}, socket.SOCK_DGRAM, socket.{protocol})"
    assert await attempt(box, ping) in {"EACCES", "EPERM"}


@pytest.mark.parametrize(("call", "number"), [("setup", 425), ("enter", 426), ("register", 427)])
async def test_io_uring(box: ServedBox, call: str, number: int) -> None:
    assert await attempt(box, f"call({number}, 8, ctypes.create_string_buffer(120))") == "ENOSYS"


@pytest.mark.parametrize("kind", NEW_NAMESPACES)
async def test_new_namespaces(box: ServedBox, kind: str) -> None:
    flag = NEW_NAMESPACES[kind]
    assert await attempt(box, f"call(272 if x86 else 97, {flag})") == "EPERM"
    if kind != "time":  # has no flag of clone()'s
        assert await attempt(box, f"call(56 if x86 else 220, {flag} | 17, 0, 0, 0, 0)") == "EPERM"
    assert await attempt(
        box, f"call(435, ctypes.create_string_buffer(({flag}).to_bytes(88, 'little')), 88)"
    ) == ("ENOSYS")


async def test_entering_namespaces(box: ServedBox) -> None:
    assert (
        await attempt(box, "call(308 if x86 else 268, os.open('/proc/self/ns/net', os.O_RDONLY), 0)")
        == "EPERM"
    )


@pytest.mark.parametrize(
    "code",
    [
        "call(165 if x86 else 40, b'none', b'/tmp', b'tmpfs', 0, 0)",
        "call(165 if x86 else 40, b'none', b'/usr', 0, 0x1020, 0)",
        "call(165 if x86 else 40, b'/tmp', b'/usr', 0, 0x1000, 0)",
        "call(166 if x86 else 39, b'/proc/sys', 2)",
        "call(155 if x86 else 41, b'/tmp', b'/tmp')",
        "call(428, -100, b'/', 1)",
        "call(429, -100, b'/', -100, b'/tmp', 0)",
        "call(430, b'tmpfs', 0)",
        "call(442, -100, b'/usr', 0, ctypes.create_string_buffer(32), 32)",
        "os.chroot('/tmp')",
        "os.mknod('/tmp/device', 0o20666, os.makedev(1, 1))",
    ],
)
async def test_mounts_and_roots(box: ServedBox, code: str) -> None:
    assert await attempt(box, code) == "EPERM"


@pytest.mark.parametrize(
    ("name", "x86", "arm"),
    [
        ("add_key", 248, 217),
        ("bpf", 321, 280),
        ("finit_module", 313, 273),
        ("keyctl", 250, 219),
        ("kexec_load", 246, 104),
        ("name_to_handle_at", 303, 264),
        ("open_by_handle_at", 304, 265),
        ("perf_event_open", 298, 241),
        ("userfaultfd", 323, 282),
    ],
)
async def test_kernel_interfaces(box: ServedBox, name: str, x86: int, arm: int) -> None:
    assert await attempt(box, f"call({x86} if x86 else {arm}, 0, 0, 0, 0, 0)") == "EPERM"


@pytest.mark.parametrize(
    "path", ["environ", "maps", "mem", "root", "cwd", "exe", "fd", "fdinfo", "ns/net", "ns/user", "ns/mnt"]
)
async def test_the_first_process_shows_nothing(user: str, box: ServedBox, path: str) -> None:
    if user == DOCKER and path == "fd":
        path = "fd/0"  # the names are shown to the owner, and root is that here; what they are is not
    look = (
        f"(os.readlink if os.path.islink('/proc/1/{path}') else os.listdir if os.path.isdir('/proc/1/{path}')"
    )
    look += f" else open)('/proc/1/{path}')"
    assert await attempt(box, look) in {"EACCES", "EPERM"}


async def test_the_first_process_names_no_place_of_the_host(box: ServedBox) -> None:
    assert (await shell(box, "tr -d '\\0' < /proc/1/cmdline; cat /proc/1/comm")).output == "boxbox-init\n"


async def test_the_first_process_cannot_be_traced(box: ServedBox) -> None:
    for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
        assert await attempt(box, f"call(101 if x86 else 117, {request}, 1, 0, 0)") == "EPERM"
    buffer = "ctypes.byref((ctypes.c_void_p * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8))"
    assert await attempt(box, f"call(310 if x86 else 270, 1, {buffer}, 1, {buffer}, 1, 0)") == "EPERM"


async def test_its_descriptors_cannot_be_taken(box: ServedBox) -> None:
    assert await attempt(box, "call(438, os.pidfd_open(1), 3, 0)") == "EPERM"


@pytest.mark.parametrize("number", ["KILL", "STOP", "INT", "TERM", "HUP", "CHLD", "SEGV"])
async def test_the_first_process_survives_signals(box: ServedBox, number: str) -> None:
    await shell(box, f"kill -{number} 1")
    assert (await shell(box, "echo alive")).output == "alive\n"


async def test_debuggers_work_inside(box: ServedBox) -> None:
    trace = """
    child = os.fork()
    if not child:
        import time; time.sleep(60)
    try:
        call(101 if x86 else 117, 16, child, 0, 0)
        os.waitpid(child, 0)
    finally:
        os.kill(child, 9)
    """
    assert await attempt(box, trace.strip()) == "done"


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sysrq-trigger",
    ],
)
async def test_kernel_settings_cannot_be_written(box: ServedBox, path: str) -> None:
    assert await attempt(box, f"open('{path}', 'w')") in {"EROFS", "EACCES", "EPERM", "ENOENT"}


@pytest.mark.parametrize("path", ["bus", "fs", "irq", "sys", "sysrq-trigger"])
async def test_settings_are_mounted_read_only(box: ServedBox, path: str) -> None:
    # Not left to the files' modes: those of the network belong to the namespace's own root.
    if Path(f"/proc/{path}").exists():
        options = (await shell(box, f"grep ' /proc/{path} ' /proc/self/mounts")).output.split()[3]
        assert "ro" in options.split(",")


@pytest.mark.parametrize("path", ["kallsyms", "kcore", "keys", "sched_debug", "timer_list"])
async def test_what_the_kernel_tells_about_the_machine_is_covered(
    user: str, box: ServedBox, path: str
) -> None:
    if user == DOCKER and path == "kallsyms":
        pytest.skip("Docker leaves it to the kernel, which shows no addresses there")
    if Path(f"/proc/{path}").exists():
        assert await attempt(box, f"assert open('/proc/{path}').read() == ''") == "done"


async def test_capabilities_are_those_over_the_box(box: ServedBox) -> None:
    status = (await shell(box, "grep Cap /proc/self/status; grep NoNewPrivs /proc/self/status")).output
    fields = dict(line.split(":\t") for line in status.splitlines())
    # CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {"00000000000000eb"}
    assert {fields[name] for name in ("CapInh", "CapAmb")} == {"0000000000000000"}
    assert fields["NoNewPrivs"] == "1"


async def test_file_capabilities_cannot_be_set(box: ServedBox) -> None:
    # On an id-mapped directory of root's they would be real ones, outside.
    code = "open('/workspace/f', 'w').close(); os.setxattr('/workspace/f', 'security.capability', "
    code += "(0x02000001).to_bytes(4, 'little') + (0x3000).to_bytes(4, 'little') + bytes(12))"
    assert await attempt(box, code) == "EPERM"


async def test_characters_cannot_be_typed_into_a_terminal(box: ServedBox) -> None:
    type_into = "import fcntl, termios; fcntl.ioctl(os.openpty()[1], termios.TIOCSTI, b'x')"
    assert await attempt(box, type_into) == "EPERM"
    # The kernel compares 32 bits; so must the filter.
    assert await attempt(box, "call(16 if x86 else 29, os.openpty()[1], 0x100005412, b'x')") == "EPERM"


async def test_a_32_bit_call_ends_the_program(user: str, box: ServedBox) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 has such calls")
    # mov eax, 20 (getpid on i386); int 0x80; ret
    run = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    outcome = await python(box, run)
    assert (outcome.status, outcome.output) == (-31, "")
    x32 = await attempt(box, "call(0x40000000 + 41, 1, 1, 0)")
    assert x32 == ("" if user == DOCKER else "ENOSYS")  # the container's own filter ends the program


async def test_the_box_sees_its_own_processes_alone(box: ServedBox) -> None:
    pids = (await shell(box, "ls /proc | grep '^[0-9]'")).output.split()
    assert "1" in pids
    assert len(pids) < 10


@pytest.mark.of_namespaces
async def test_no_user_is_the_hosts_root(box: ServedBox) -> None:
    outer = (await shell(box, "cat /proc/self/uid_map /proc/self/gid_map")).output
    assert all(int(line.split()[2]) <= 65_536 for line in outer.splitlines())
    # A file of the host's root belongs to nobody here.
    if Path("/usr").stat().st_uid == 0:
        assert (await shell(box, "stat -c %u /usr")).output == "65534\n"


async def test_programs_leave_no_core(box: ServedBox) -> None:
    assert (await shell(box, "ulimit -c; ulimit -Hc")).output == "0\n0\n"


async def test_a_box_ends_before_the_host_runs_out_of_memory(box: ServedBox) -> None:
    assert int((await shell(box, "cat /proc/self/oom_score_adj")).output) >= 500
