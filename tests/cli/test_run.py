"""``box-policy run`` with real programs: what they see, and what the origin saw."""

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from box_policy.cli.terminal import Carriers
from tests.lab import Lab, plan

type Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = [sys.executable, "-m", "box_policy", "run"]


def needs(program: str) -> pytest.MarkDecorator:
    found = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin")
    return pytest.mark.skipif(found is None, reason=f"{program} isn't installed for all users")


@pytest.fixture
def options(lab: Lab, tmp_path: Path) -> list[str]:
    """The lab's name server, and its authority's certificate at /workspace/ca.pem."""
    shutil.copy(lab.ca_pem, tmp_path / "ca.pem")
    return ["--name-server", lab.nameserver, "--workdir", str(tmp_path), "--allow", "allowed.test"]


@pytest.fixture
def run(options: list[str]) -> Run:
    def run(*command: str, more: Sequence[str] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *options, *more, "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@needs("curl")
class TestCurl:
    def test_an_allowed_fetch(self, run: Run, lab: Lab) -> None:
        done = run("curl", "-sS", "--cacert", "ca.pem", "https://allowed.test/path")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["target"] == "/path"
        assert [request.tls for request in lab.requests()] == [True]

    def test_a_name_that_is_not_allowed(self, run: Run, lab: Lab) -> None:
        done = run("curl", "-sS", "https://evil.test/")
        assert done.returncode == 6
        assert "--allow evil.test" in done.stderr
        assert lab.packets() == []

    def test_a_denied_name_at_its_own_address(self, run: Run, lab: Lab) -> None:
        done = run("curl", "-sS", "--resolve", f"evil.test:443:{plan.EVIL4}", "https://evil.test/")
        assert done.returncode == 35
        assert "access denied" in done.stderr
        assert lab.packets() == []

    @pytest.mark.parametrize("address", [plan.EVIL4, f"[{plan.EVIL6}]"], ids=["IPv4", "IPv6"])
    def test_an_allowed_name_at_a_foreign_address(self, run: Run, lab: Lab, address: str) -> None:
        spoof = f"allowed.test:443:{address}:443"
        done = run("curl", "-sS", "--cacert", "ca.pem", "--connect-to", spoof, "https://allowed.test/")
        assert done.returncode == 0
        assert lab.packets(plan.EVIL4) == lab.packets(plan.EVIL6) == []
        assert {request.address for request in lab.requests()} <= {plan.ALLOWED4, plan.ALLOWED6}

    def test_plain_http(self, run: Run, lab: Lab) -> None:
        assert run("curl", "-sS", "-f", "http://allowed.test/").returncode == 0
        spoof = f"allowed.test:80:{plan.EVIL4}:80"
        done = run("curl", "-sS", "--connect-to", spoof, "-H", "Host: evil.test", "http://allowed.test/")
        assert json.loads(done.stdout)["error"]["reason"] == "name_not_allowed"
        assert lab.packets(plan.EVIL4) == []

    def test_http2_falls_back_on_plain_http(self, run: Run) -> None:
        assert run("curl", "-sS", "-f", "--http2", "http://allowed.test/").returncode == 0

    def test_an_address_is_opened_by_a_range(self, run: Run, lab: Lab) -> None:
        url = f"http://{plan.CIDR4}/"
        assert run("curl", "-sS", "-f", url, more=["--allow-cidr", plan.CIDR]).returncode == 0
        lab.reset()
        done = run("curl", "-sS", "-f", url)
        assert done.returncode == 22
        assert f"--allow-cidr {plan.CIDR4}/32" in done.stderr
        assert lab.packets() == []

    def test_a_private_address_needs_the_operator_as_well(self, run: Run, lab: Lab) -> None:
        url = f"http://{plan.PRIVATE4}/"
        cidr = f"{plan.PRIVATE4}/32"
        assert run("curl", "-sS", "-f", url, more=["--allow-cidr", cidr]).returncode != 0
        assert lab.packets() == []
        opened = run("curl", "-sS", "-f", url, more=["--allow-cidr", cidr, "--private-range", cidr])
        assert opened.returncode == 0

    def test_quic_is_refused_at_once(self, run: Run, lab: Lab) -> None:
        program = (
            "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
            f"s.connect(('{plan.ALLOWED4}', 443)); s.send(b'x'); s.settimeout(5)\n"
            "try: s.recv(1)\nexcept OSError as error: print(type(error).__name__)"
        )
        done = run("/usr/bin/python3", "-c", program)
        assert "timed" not in done.stdout.lower(), done
        assert lab.packets(protocol="udp") == []


class TestOtherPrograms:
    @needs("openssl")
    def test_openssl_sees_the_origins_certificate(self, run: Run, lab: Lab) -> None:
        done = run(
            "openssl", "s_client", "-connect", f"{plan.EVIL4}:443", "-servername", "allowed.test",
            "-verify_return_error", "-CAfile", "ca.pem", "-verify_hostname", "allowed.test", "-brief",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert lab.packets(plan.EVIL4) == []

    @needs("openssl")
    def test_openssl_sees_the_alert(self, run: Run, lab: Lab) -> None:
        done = run("openssl", "s_client", "-connect", f"{plan.EVIL4}:443", "-servername", "evil.test")
        assert "access denied" in done.stderr
        assert lab.packets() == []

    @needs("node")
    def test_node(self, run: Run, lab: Lab) -> None:
        program = "fetch(process.argv[1]).then(r => r.json()).then(j => console.log(j.target))"
        ca = ["--env", "NODE_EXTRA_CA_CERTS=/workspace/ca.pem"]
        assert run("node", "-e", program, "https://allowed.test/n", more=ca).stdout == "/n\n"
        lab.reset()
        assert run("node", "-e", program, "https://evil.test/n", more=ca).returncode == 1
        assert lab.packets() == []

    @needs("git")
    def test_git(self, run: Run, lab: Lab) -> None:
        ca = ["--env", "GIT_SSL_CAINFO=/workspace/ca.pem"]
        run("git", "ls-remote", "https://allowed.test/repo.git", more=ca)
        assert lab.requests()[0].target == "/repo.git/info/refs?service=git-upload-pack"
        lab.reset()
        denied = run("git", "ls-remote", "https://evil.test/repo.git", more=ca)
        assert denied.returncode == 128
        assert lab.packets() == []

    @pytest.mark.skipif(
        subprocess.run(["/usr/bin/python3", "-m", "pip", "--version"], capture_output=True).returncode != 0,
        reason="the system's Python has no pip",
    )
    def test_pip(self, run: Run, lab: Lab) -> None:
        pip = [
            "/usr/bin/python3",
            "-m",
            "pip",
            "--isolated",
            "download",
            "--retries",
            "0",
            "--cert",
            "ca.pem",
            "--no-deps",
        ]
        run(*pip, "--index-url", "https://allowed.test/simple", "six")
        assert [request.target for request in lab.requests()] == ["/simple/six/"]
        lab.reset()
        denied = run(*pip, "--index-url", "https://evil.test/simple", "six")
        assert denied.returncode == 1
        assert lab.packets() == []


class TestTheProgram:
    def test_its_exit_status(self, run: Run) -> None:
        assert run("sh", "-c", "exit 7").returncode == 7
        assert run("sh", "-c", "kill -9 $$").returncode == 128 + 9

    def test_its_pipes(self, run: Run) -> None:
        done = run("sh", "-c", "tr a-z A-Z; echo err >&2", stdin="hello")
        assert (done.stdout, done.stderr) == ("HELLO", "err\n")

    def test_its_working_directory(self, run: Run, tmp_path: Path) -> None:
        assert run("sh", "-c", "pwd; echo made > made; cat ca.pem | wc -l").returncode == 0
        assert (tmp_path / "made").read_text() == "made\n"
        assert (tmp_path / "made").stat().st_uid == os.geteuid()

    def test_its_environment_is_not_the_callers(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "x")
        assert "SECRET" not in run("env").stdout
        assert "SECRET=x" in run("env", more=["--env", "SECRET"]).stdout
        assert "A=b=c" in run("env", more=["--env", "A=b=c"]).stdout

    def test_its_options_are_its_own(self, run: Run) -> None:
        assert run("echo", "--deny-all", "--help").stdout == "--deny-all --help\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_reach_it(self, options: list[str], number: signal.Signals) -> None:
        script = f"trap 'echo caught; exit 9' {number}; echo ready; while :; do sleep 0.05; done"
        process = subprocess.Popen(
            [*COMMAND, *options, "--", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "caught\n"
        assert process.wait(timeout=20) == 9

    def test_one_that_ignores_interrupts_is_ended_by_the_third(self, options: list[str]) -> None:
        script = "trap '' INT; echo ready; while :; do sleep 0.05; done"
        process = subprocess.Popen(
            [*COMMAND, *options, "--", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            # Signals that are pending together count once.
            while str(process.pid) and _pending(process.pid):
                pass
        assert process.wait(timeout=20) == 128 + signal.SIGKILL

    def test_a_terminal(self, options: list[str]) -> None:
        script = "test -t 0 && test -t 1 && test -t 2 && stty size && tty && read x && echo got $x"
        pid, master = pty.fork()
        if pid == 0:
            os.execv(COMMAND[0], [*COMMAND, *options, "--", "sh", "-c", script])
        os.set_blocking(master, True)
        seen = b""
        try:
            while b"/dev/pts/" not in seen:
                seen += os.read(master, 4096)
            os.write(master, b"typed\n")
            while data := os.read(master, 4096):
                seen += data
        except OSError:
            pass  # EIO: the other side is closed
        _, status = os.waitpid(pid, 0)
        os.close(master)
        assert os.waitstatus_to_exitcode(status) == 0, seen
        assert b"got typed" in seen

    def test_ctrl_c_in_a_terminal(self, options: list[str]) -> None:
        pid, master = pty.fork()
        if pid == 0:
            os.execv(COMMAND[0], [*COMMAND, *options, "--", "sh", "-c", "echo ready; sleep 60"])
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"\x03")
        _, status = os.waitpid(pid, 0)
        os.close(master)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT


def _pending(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("ShdPnd"))
    return int(line.split()[1], 16) != 0


class TestStreams:
    """The box gets pipes and terminals of its own, whatever the caller's streams are."""

    def kinds(self, options: list[str], redirection: str) -> list[str]:
        """What the program's streams are, by what it says in a file."""
        names = " ".join(f"$(readlink /proc/$$/fd/{fd})" for fd in (0, 1, 2))
        script = f'kinds="{names}"; echo "$kinds" > kinds; exit 5'
        command = [*COMMAND, *options, "--", "sh", "-c", script]
        done = subprocess.run(["bash", "-c", f'exec "$@" {redirection}', "bash", *command], timeout=60)
        assert done.returncode == 5
        return (Path(options[options.index("--workdir") + 1]) / "kinds").read_text().split()

    @pytest.mark.parametrize(
        "redirection",
        [
            "<&-",
            ">&- </dev/null",
            "2>&- </dev/null",
            "<&- >&- 2>&-",
            "</etc/passwd >/dev/null 2>/dev/null",
        ],
    )
    def test_files_and_closed_streams(self, options: list[str], redirection: str) -> None:
        kinds = self.kinds(options, redirection)
        # Each is a pipe; what the test itself has inherited may be /dev/null or a pipe.
        assert len(kinds) == 3
        assert [kind for kind in kinds if not kind.startswith(("pipe:", "/dev/null"))] == []

    def test_a_socket(self, options: list[str]) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [*COMMAND, *options, "--", "sh", "-c", "readlink /proc/$$/fd/0; cat"]
        with near, far:
            process = subprocess.Popen(command, stdin=far.fileno(), stdout=far.fileno())
            far.close()
            near.sendall(b"through")
            near.shutdown(socket.SHUT_WR)
            received = b""
            while data := near.recv(4096):
                received += data
            assert process.wait(timeout=30) == 0
        assert received.startswith(b"pipe:")
        assert received.endswith(b"through")

    def test_a_file_can_not_be_written_through_its_descriptor(
        self, options: list[str], tmp_path: Path
    ) -> None:
        file = tmp_path.parent / f"{tmp_path.name}.txt"
        file.write_text("precious")
        script = "true > /proc/self/fd/1; echo appended; echo overwritten > /proc/self/fd/0"
        with file.open("rb") as stdin, file.open("ab") as stdout:
            subprocess.run(
                [*COMMAND, *options, "--", "sh", "-c", script], stdin=stdin, stdout=stdout, timeout=60
            )
        assert file.read_text() == "preciousappended\n"

    def test_what_the_caller_ignores_stays_ignored(self, options: list[str]) -> None:
        script = "echo ready; cat; exit 7"
        command = [*COMMAND, *options, "--", "sh", "-c", script]
        process = subprocess.Popen(
            ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write("still here\n")
        process.stdin.close()
        assert process.stdout.read() == "still here\n"
        assert process.wait(timeout=20) == 7

    def test_the_status_survives_a_stderr_that_nobody_reads(self, options: list[str]) -> None:
        command = [*COMMAND, *options, "--", "sh", "-c", "getent hosts evil.test; exit 5"]
        for unbuffered in ("", "1"):
            env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
            with open("/dev/full", "w") as full:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=full, env=env, timeout=60)
            assert done.returncode == 5

    def test_all_output_reaches_a_caller_that_reads_late(self) -> None:
        source, program = os.pipe()
        caller, sink = os.pipe()
        carriers = Carriers([(source, sink)])
        size = 1_000_000
        writing = threading.Thread(target=_write_and_close, args=(program, size))
        writing.start()
        finishing = threading.Thread(target=carriers.finish)
        finishing.start()
        received = 0
        while received < size:
            assert finishing.is_alive()
            received += len(os.read(caller, 65536))
        finishing.join(timeout=10)
        writing.join()
        assert not finishing.is_alive()

    def test_a_caller_whose_terminal_does_not_block(self) -> None:
        source, program = os.pipe()
        caller, sink = os.pipe()
        os.set_blocking(sink, False)
        carriers = Carriers([(source, sink)])
        threading.Thread(target=_write_and_close, args=(program, 500_000)).start()
        received = 0
        while received < 500_000:
            received += len(os.read(caller, 65536))
        carriers.finish()


def _write_and_close(fd: int, size: int) -> None:
    os.write(fd, bytes(size))
    os.close(fd)


class TestRecords:
    @needs("curl")
    def test_the_log_has_a_line_for_each_decision(
        self, run: Run, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        log = tmp_path_factory.mktemp("log") / "log.jsonl"
        run("curl", "-sS", "--cacert", "ca.pem", "https://allowed.test/", more=["--log", str(log)])
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert (records[0]["event"], records[0]["detail"]) == ("policy", "allowlist")
        tls = [record for record in records if record.get("protocol") == "tls"]
        assert [(record["event"], record["verdict"]) for record in tls] == [
            ("decision", "allow"),
            ("end", "allow"),
        ]
        assert tls[1]["bytes_down"] > 0

    @needs("curl")
    def test_denials_as_json(self, run: Run) -> None:
        done = run("curl", "-sS", "-o", "/dev/null", "-s", "https://evil.test/", more=["--json"])
        row = json.loads(done.stderr.splitlines()[-1])
        assert (row["target"], row["reason"], row["allowed_by"]) == (
            "evil.test",
            "name_not_allowed",
            "--allow evil.test",
        )

    @needs("curl")
    def test_quiet(self, run: Run) -> None:
        assert run("curl", "-s", "https://evil.test/", more=["--quiet"]).stderr == ""


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "status", "says"),
        [
            (["--nonsense", "--", "true"], 2, "No such option"),
            ([], 2, "Missing argument"),
            (["--allow", "https://x.test/", "--", "true"], 2, '"x.test"'),
            (["--allow-cidr", "10.0.0.1/8", "--", "true"], 2, '"10.0.0.0/8"'),
            (["--private-range", "nonsense", "--", "true"], 2, "--private-range"),
            (["--policy", "/nonexistent.yaml", "--", "true"], 2, "/nonexistent.yaml: No such file"),
            (["--allow", "x.test", "--deny-all", "--", "true"], 2, "give one of"),
            (["--log", "/nonexistent/log", "--", "true"], 2, "--log"),
            (["--workdir", "/nonexistent", "--", "true"], 1, "/nonexistent"),
            (["--workdir", "", "--", "true"], 2, "unset variable"),
            (["--workdir", "/", "--", "true"], 2, "--workdir /"),
            (["--workdir", "/tmp", "--log", "/tmp/x", "--", "true"], 2, "the box could change it"),
            (["--workdir", "/tmp", "--watch", "/tmp/p.yaml", "--", "true"], 2, "the box could change it"),
            (["--workdir", "/tmp", "--control", "unix:/tmp/x", "--", "true"], 2, "the box could change it"),
            (["--watch", "", "--", "true"], 2, "unset variable"),
            (["--watch", "/nonexistent.yaml", "--", "true"], 2, "/nonexistent.yaml: No such file"),
            (["--watch", "p.yaml", "--allow", "x.test", "--", "true"], 2, "--watch takes the place of"),
            (["--control", "nonsense", "--", "true"], 2, "--control:"),
            (["--control", "127.0.0.1:0", "--", "true"], 2, "token"),
            (["--control", "/tmp/x", "--token-file", "/nonexistent", "--", "true"], 2, "/nonexistent"),
            (["--log", "/dev/full", "--", "true"], 2, "not a regular file"),
            (["--name-server", "nonsense", "--", "true"], 2, "--name-server"),
            (["--limit", "connections=0", "--", "true"], 2, "--limit: connections=0"),
            (["--env", "=x", "--", "true"], 2, "--env"),
            (["--", "no-such-program"], 1, "no-such-program"),
            (["--", "/etc/passwd"], 1, "/etc/passwd"),
        ],
    )
    def test_one_line_says_what_is_wrong(
        self, arguments: list[str], status: int, says: str, require_lab: None
    ) -> None:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""

    def test_a_bad_policy_file_with_its_line(self, tmp_path: Path, require_lab: None) -> None:
        file = tmp_path / "policy.yaml"
        file.write_text("mode: custom\nallowed_domains:\n  - good.test\n  - bad_one:443\n")
        done = subprocess.run(
            [*COMMAND, "--policy", str(file), "--", "true"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert f"{file}:4:5: allowed_domains[1]" in done.stderr

    def test_a_policy_file(self, run: Run, tmp_path: Path, lab: Lab) -> None:
        file = tmp_path / "policy.yaml"
        file.write_text("mode: custom\nallowed_domains: [allowed.test]\n")
        command = [
            *COMMAND,
            "--policy",
            str(file),
            "--name-server",
            lab.nameserver,
            "--",
            "curl",
            "-sf",
            "http://allowed.test",
        ]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
