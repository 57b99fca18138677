"""The lab comes and goes without a trace, with privileges and without, or says why it can't."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

START = """
import json, os, signal, socket, sys
from tests.lab import Lab, enter
enter()
lab = Lab.start()
namespace = os.readlink(f"/proc/{lab.process_id}/ns/net")
print(json.dumps([lab.process_id, namespace, str(lab.ca_pem)]), flush=True)
"""

UNAVAILABLE = """
import os, sys
from pathlib import Path
uid, gid = os.geteuid(), os.getegid()
os.unshare(os.CLONE_NEWUSER)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
Path("/proc/sys/user/max_net_namespaces").write_text("0")
before = os.readlink("/proc/self/ns/net")
"""


class Script:
    """A Python program of its own, started as the lab's users start: with no threads."""

    def __init__(
        self, code: str, *arguments: str, prefix: tuple[str, ...] = (), pass_fds: tuple[int, ...] = ()
    ) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            pass_fds=pass_fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def finish(self) -> tuple[int, str]:
        """Close its standard input. Returns its status and what else it has printed."""
        output, _ = self._process.communicate(timeout=30)
        return self._process.returncode, output


def without_capabilities() -> tuple[str, ...]:
    """A prefix for a command line that makes an all but ordinary user's process of it."""
    if os.geteuid():
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv to drop capabilities with")
    # The kernel lets only a process with CAP_SETFCAP map user id 0, which is still this one's.
    return (setpriv, "--bounding-set", "-all,+setfcap")


def assert_gone(process: int, namespace: str, ca_file: str) -> None:
    """The origin ends, and with it what it had: its namespace and its files."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        pass
    else:
        ended, _, _ = select.select([descriptor], [], [], 10)
        os.close(descriptor)
        assert ended, "the origin has outlived the tests' process"
    assert namespace not in _namespaces()
    assert not Path(ca_file).parent.exists()


def _namespaces() -> set[str]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(link.readlink()))
        except OSError:
            pass  # ended meanwhile, or a kernel thread
    return found


@pytest.mark.parametrize(
    "end",
    [
        "sys.stdin.read(); lab.close(); lab.close(); assert len(socket.if_nameindex()) == 1",
        "sys.stdin.read()",
        "sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)",
        "sys.stdin.read(); os.kill(lab.process_id, signal.SIGKILL); lab.close()",
        "sys.stdin.read(); lab.close(); lab = Lab.start(); lab.packets(); lab.close()",
    ],
    ids=["closed", "forgotten", "killed", "origin killed", "started again"],
)
def test_nothing_is_left(require_lab: None, end: str) -> None:
    script = Script(START + end)
    process, namespace, ca_file = json.loads(script.line())
    assert namespace in _namespaces()
    assert namespace != str(Path("/proc/self/ns/net").readlink())
    assert Path(ca_file).exists()
    status, output = script.finish()
    assert (status, output) == (-signal.SIGKILL if "getpid" in end else 0, "")
    assert_gone(process, namespace, ca_file)


def test_a_child_that_holds_the_channel_keeps_nothing_alive(require_lab: None) -> None:
    read_end, write_end = os.pipe()
    script = Script(
        START
        + """
if os.fork() == 0:
    os.close(1)
    os.close(2)
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
""",
        str(read_end),
        pass_fds=(read_end,),
    )
    os.close(read_end)
    process, namespace, ca_file = json.loads(script.line())
    assert script.finish() == (-signal.SIGKILL, "")
    with os.fdopen(write_end, "w"):  # whose end is the child's
        assert_gone(process, namespace, ca_file)


def test_the_origin_ignores_an_interrupt_from_the_terminal(require_lab: None) -> None:
    script = Script(START + "print(os.getsid(lab.process_id) == lab.process_id, flush=True)")
    script.line()
    assert script.line() == "True\n"
    assert script.finish() == (0, "")


def test_no_privilege_is_needed(require_lab: None) -> None:
    script = Script(
        START
        + """
ids = os.getuid(), os.getgid()
socket.create_connection(("51.81.10.10", 80), 5).close()
print(bool(lab.packets("51.81.10.10", 80)), ids == (int(sys.argv[1]), int(sys.argv[2])), flush=True)
# What a box launcher does, in a program of its own: it has no capabilities to do it with.
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-c", '''
import os
from pathlib import Path
capabilities = [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1]
uid = os.getuid()
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
print(os.getuid(), int(capabilities, 16) == 0 or uid == 0)
'''])
os.wait()
lab.close()
""",
        str(os.getuid()),
        str(os.getgid()),
        prefix=without_capabilities(),
    )
    process, namespace, ca_file = json.loads(script.line())
    assert script.finish() == (0, "True True\n0 True\n")
    assert_gone(process, namespace, ca_file)


def test_a_process_with_threads_is_refused_and_stays_where_it_is(require_lab: None) -> None:
    script = Script("""
import os, threading
from tests.lab import LabUnavailable, enter
before = os.readlink("/proc/self/ns/net")
done = threading.Event()
threading.Thread(target=done.wait).start()
try:
    enter()
except LabUnavailable as error:
    print(error)
done.set()
assert before == os.readlink("/proc/self/ns/net")
""")
    assert script.finish() == (0, "the test process already has 2 threads\n")


def test_a_machine_that_allows_none_is_told_from_one_that_does(require_lab: None) -> None:
    script = Script(
        UNAVAILABLE
        + """
from tests.lab import LabUnavailable, enter
try:
    enter()
except LabUnavailable as error:
    print(error)
assert before == os.readlink("/proc/self/ns/net")
"""
    )
    status, output = script.finish()
    assert status == 0, output
    assert output.startswith("no network namespace with IPv4 and IPv6 here: ")


@pytest.mark.parametrize(
    ("option", "status", "outcome"), [("--color=no", 0, "2 skipped"), ("--require-lab", 1, "2 errors")]
)
def test_tests_without_a_lab_are_skipped_and_counted(
    require_lab: None, tmp_path: Path, option: str, status: int, outcome: str
) -> None:
    test = "tests/lab/test_lab.py::test_datagrams_are_seen"
    script = Script(
        UNAVAILABLE + "import pytest; sys.exit(pytest.main(sys.argv[1:]))",
        *("-p", "no:cacheprovider", "-q", option, test, "tests/lab/test_hellos.py"),
    )
    found, output = script.finish()
    assert found == status, output
    assert outcome in output
    assert "29 passed" in output
    assert "no test network: no network namespace" in output
