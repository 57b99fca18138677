"""What ``box-policy doctor`` finds of bounds, gates and the machine; trials, and remedies."""

import errno
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from box_policy.sandbox.doctor import basics, bounds, gates
from box_policy.sandbox.doctor.host import Host, read_host
from box_policy.sandbox.doctor.remedies import install, load_modules, sysctl
from box_policy.sandbox.doctor.trial import Failure, Outcome, Trial, attempt
from box_policy.sandbox.namespaces import syscalls
from tests.cli.examined import HOST, commands, elsewhere, own_user_namespace


class TestBounds:
    def test_groups_are_left_as_they_were(self) -> None:
        before = [sorted(Path(place).iterdir()) for place in group_directories()]
        found = bounds.check_limits(HOST)
        assert (found.name, found.state in ("ok", "limited")) == ("limits of boxes", True)
        assert [sorted(Path(place).iterdir()) for place in group_directories()] == before

    @pytest.mark.parametrize(
        ("host", "versions", "remedy"),
        [
            (HOST, [1], "version 1"),
            (replace(HOST, container="Docker"), [2], "/sys/fs/cgroup"),
        ],
    )
    def test_what_cannot_be_held(self, host: Host, versions: list[int], remedy: str) -> None:
        found = bounds.judge_limits(host, Outcome({"versions": versions, "held": {"memory": 2}}))
        assert (found.state, found.found) == (
            "limited",
            "held: memory (cgroup v2), processes (rlimit); not held: processors",
        )
        assert remedy in found.remedies[0].text

    def test_few_descriptors(self) -> None:
        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))

        (found,) = elsewhere(prepare, lambda: bounds.check_descriptors(HOST))
        assert (found.state, found.found) == (
            "limited",
            "1024 (now 256; gates raise it): about 341 connections at a time",
        )

    @pytest.mark.parametrize(
        ("most", "used", "state"), [(262144, 3, "ok"), (1000, 3, "limited"), (65536, 65000, "limited")]
    )
    def test_connection_tracking(
        self, most: int, used: int, state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            bounds, "number", {f"{bounds._CONNTRACK}max": most, f"{bounds._CONNTRACK}count": used}.get
        )
        assert bounds.check_connection_tracking(HOST).state == state


def group_directories() -> list[str]:
    from box_policy.sandbox.namespaces.cgroups import find_places

    texts = (Path(f"/proc/self/{name}").read_text() for name in ("cgroup", "mountinfo"))
    return [place.directory for place in find_places(*texts)]


class TestGates:
    def test_name_servers_without_a_route(self, tmp_path: Path) -> None:
        """Nothing is asked: the tests' network namespace has a way to none of these."""
        file = tmp_path / "resolv.conf"
        file.write_text("nameserver 127.0.0.53\nnameserver 2001:db8::53\n")

        def prepare() -> None:
            own_user_namespace()
            os.unshare(os.CLONE_NEWNS | os.CLONE_NEWNET)
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount(str(file), str(Path("/etc/resolv.conf").resolve()), None, syscalls.MS_BIND)

        (found,) = elsewhere(prepare, lambda: gates.check_name_servers(HOST))
        assert found.state == "limited"
        assert (
            found.found
            == "127.0.0.53 (Network is unreachable), 2001:db8::53 (Cannot assign requested address)"
        )

    def test_no_name_servers(self) -> None:
        assert gates.judge_name_servers(Outcome({"servers": [], "unreachable": {}})).state == "limited"

    def test_a_network_namespace_of_its_own(self) -> None:
        """The caller has power over it, or not any more."""

        def prepare() -> None:
            own_user_namespace()
            os.unshare(os.CLONE_NEWNET)

        def drop() -> None:
            prepare()
            syscalls.cut_capabilities(frozenset())

        (found,) = elsewhere(prepare, lambda: gates.check_sidecar(HOST))
        assert found.state == "ok"
        (found,) = elsewhere(drop, lambda: gates.check_sidecar(HOST))
        assert (found.state, "--cap-add NET_ADMIN" in commands(found)) == ("missing", True)

    def test_the_machines_own_is_not_for_a_sidecar(self) -> None:
        found = gates.judge_sidecar(Outcome({"host's": True}))
        assert (found.state, found.found[:17]) == ("missing", "the machine's own")

    def test_a_filter_that_does_not_filter(self) -> None:
        assert basics.judge_seccomp(Outcome({"refuses": False})).state == "missing"
        assert basics.judge_seccomp(Outcome({"refuses": True})).state == "ok"

    def test_another_system(self) -> None:
        found = basics.check_system(replace(HOST, system="Darwin"))
        assert (found.state, "virtual machine" in found.remedies[0].text) == ("missing", True)
        assert basics.check_system(replace(HOST, machine="riscv64")).state == "missing"
        assert basics.check_system(replace(HOST, wsl=True, release="4.4.0-Microsoft")).state == "limited"

    def test_an_old_kernel(self) -> None:
        for step, state in (("mount_setattr", "missing"), ("SO_NETNS_COOKIE", "limited")):
            outcome = Outcome({}, Failure(step, os.strerror(errno.ENOSYS), errno.ENOSYS))
            assert basics.judge_kernel(HOST, outcome).state == state


class TestTrials:
    def test_what_hangs_is_ended_with_all_that_it_started(self, tmp_path: Path) -> None:
        def work(trial: Trial) -> None:
            trial.step("sleep")
            child = os.fork()
            if child:
                trial.tell("pid", child)
            signal.pause()

        outcome = attempt(work, 0.3)
        assert outcome.failure == Failure("sleep", "not done within 0.3 seconds")
        try:
            pidfd = os.pidfd_open(outcome.facts["pid"])
        except ProcessLookupError:
            return
        ended, _, _ = select.select([pidfd], [], [], 5)
        os.close(pidfd)
        assert ended

    @pytest.mark.parametrize(
        ("work", "failure"),
        [
            (
                lambda trial: os.chdir("/nonexistent"),
                Failure("start", os.strerror(errno.ENOENT), errno.ENOENT),
            ),
            (lambda trial: os.kill(os.getpid(), signal.SIGKILL), Failure("start", "killed by SIGKILL")),
            (lambda trial: sys.exit("no more"), Failure("start", "no more")),
            (
                lambda trial: [trial.tell("x", "x" * 999) for _ in range(999)],
                Failure("start", "not done within 9 seconds"),
            ),
        ],
        ids=["an error", "a signal", "an exit", "too much"],
    )
    def test_how_a_trial_fails(self, work: Callable[[Trial], None], failure: Failure) -> None:
        assert attempt(work, 9).failure == failure

    def test_what_it_complains_of(self) -> None:
        def work(trial: Trial) -> None:
            os.write(2, b"first\nlast\n")

        assert attempt(work, 9).complaint == "last"

    def test_nothing_of_the_caller_is_changed(self) -> None:
        before = own_state()
        attempt(lambda trial: own_user_namespace(), 9)
        assert own_state() == before


def own_state() -> tuple[str, list[str]]:
    """The user namespace, and the descriptors."""
    return str(Path("/proc/self/ns/user").readlink()), sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


class TestRemedies:
    def test_packages_are_those_of_the_distribution(self) -> None:
        packages: Mapping[Any, str] = {"debian": "a", "fedora": "b", "alpine": "c"}
        assert install(HOST, packages) == ("sudo apt install a",)
        assert install(replace(HOST, family="fedora", is_root=True), packages) == ("dnf install b",)
        assert install(replace(HOST, family="alpine"), packages) == ("doas apk add c",)
        assert len(install(replace(HOST, family=None), packages)) == 3

    def test_a_setting_lasts(self) -> None:
        now, later = sysctl(HOST, "user.max_user_namespaces", "9")
        assert now == "sudo sysctl -w user.max_user_namespaces=9"
        assert later.endswith("| sudo tee -a /etc/sysctl.d/60-box-policy.conf")

    def test_a_module_that_the_kernel_has_no_file_of(self) -> None:
        wsl = load_modules(replace(HOST, wsl=True), ("nft_redir",), installed=False)
        assert wsl.commands[0] == "wsl --update"
        assert load_modules(HOST, ("nft_redir",), installed=True).commands[0] == "sudo modprobe -a nft_redir"

    def test_this_machine_is_read(self) -> None:
        host = read_host({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
        assert (host.system, host.is_root) == (os.uname().sysname, os.geteuid() == 0)
