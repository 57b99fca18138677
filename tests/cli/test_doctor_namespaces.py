"""What ``box-policy doctor`` finds of namespaces and networks, where they lack something in truth."""

import errno
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from box_policy.sandbox.doctor import bounds, network, user_namespaces, whole_box
from box_policy.sandbox.doctor.findings import Finding
from box_policy.sandbox.doctor.host import Host
from box_policy.sandbox.doctor.trial import Failure, Outcome, Trial, attempt
from box_policy.sandbox.namespaces import network_messages, seccomp, syscalls
from box_policy.sandbox.namespaces.seccomp import Rule
from tests.cli.examined import HOST, commands, elsewhere, own_user_namespace

NUMBER = struct.Struct("!I")


class TestNamespaces:
    @pytest.mark.parametrize(
        ("kind", "name"),
        [("user", "user namespaces"), ("net", "namespaces"), ("pid", "namespaces")],
    )
    def test_a_limit_of_none(self, kind: str, name: str) -> None:
        def prepare() -> None:
            own_user_namespace()
            Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")

        found = elsewhere(prepare, lambda: user_namespaces.check_user_namespaces(HOST))[-1]
        assert (found.name, found.state) == (name, "missing")
        assert found.found.endswith(f"No space left on device; user.max_{kind}_namespaces is 0")
        assert commands(found).startswith(f"sudo sysctl -w user.max_{kind}_namespaces=15000\n")

    def test_a_limit_of_none_for_a_box(self) -> None:
        def prepare() -> None:
            own_user_namespace()
            Path("/proc/sys/user/max_user_namespaces").write_text("0")

        box, work = elsewhere(prepare, lambda: whole_box.check_box(HOST))
        assert (box.name, box.state, work.state) == ("box", "missing", "missing")
        assert box.remedies

    @pytest.mark.parametrize(
        ("host", "reason", "remedy"),
        [
            (HOST, "a system call filter is in force", "RestrictNamespaces="),
            (replace(HOST, container="Docker"), "this container doesn't allow them", "Start the container"),
            (replace(HOST, container="Kubernetes"), "this container doesn't allow them", "hostUsers: false"),
        ],
    )
    def test_a_filter(self, host: Host, reason: str, remedy: str) -> None:
        """As containers have it."""

        def prepare() -> None:
            architecture = seccomp.native_architecture()
            assert architecture is not None
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            rules = [Rule("unshare", errno.EPERM)]
            syscalls.install_seccomp_filter(seccomp.assemble(rules, architecture))

        (found,) = elsewhere(prepare, lambda: user_namespaces.check_user_namespaces(host))
        assert found.state == "missing"
        assert found.found == f"user namespace: Operation not permitted; {reason}"
        assert remedy in found.remedies[0].text

    @pytest.mark.parametrize(
        ("path", "value", "remedy"),
        [
            (user_namespaces._CLONE, "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
            (user_namespaces._APPARMOR, "1", "apparmor_parser -r /etc/apparmor.d/box-policy"),
        ],
    )
    def test_a_switch_of_a_distribution(
        self, path: str, value: str, remedy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(user_namespaces, "read", {path: value}.get)
        failure = Failure("user namespace", os.strerror(errno.EPERM), errno.EPERM)
        found = user_namespaces._refused("user namespaces", HOST, failure)
        assert remedy in commands(found)
        # Root is not restricted by either, so something else is the reason.
        found = user_namespaces._refused("user namespaces", replace(HOST, is_root=True), failure)
        assert remedy not in commands(found)

    def test_a_covered_proc(self) -> None:
        def prepare() -> None:
            own_user_namespace()
            os.unshare(os.CLONE_NEWNS)
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount("none", "/proc/sys", "tmpfs", 0)

        def check() -> list[Finding]:
            return [
                *user_namespaces.check_user_namespaces(HOST),
                *network.check_network(HOST),
                bounds.check_connection_tracking(HOST),
            ]

        found = {finding.name: finding for finding in elsewhere(prepare, check)}
        assert found["namespaces"].found.startswith("mount of /proc: Operation not permitted")
        assert found["nf_tables"].found.startswith("settings of the network namespace: No such file")
        assert found["connection tracking"].state == "limited"
        assert "Mount /proc" in found["nf_tables"].remedies[0].text

    def test_only_root_of_the_host_to_choose_as_an_id(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(Path, "read_text", lambda path: "0 0 1\n")
        found = user_namespaces.check_ids(HOST)
        assert (found.state, found.found[:15]) == ("missing", "no safe user id")

    def test_root_of_a_container_that_may_not_map_ids(self) -> None:
        host = replace(HOST, is_root=True, container="Docker")
        refused = Outcome({}, Failure("a box", "can't be (uid_map: Operation not permitted); do"))
        assert "--user 1000:1000" in commands(whole_box.judge_box(host, refused)[0])


class TestNetwork:
    @pytest.mark.parametrize(
        ("before", "number", "after", "modules"),
        [
            (b"\x08\0\x01\0", 3, b"\x08\0\x02\0\xff\xff\xff\x9c", ["nft_chain_nat", "nf_nat"]),
            (b"redir\0\0\0\x0c\0\x02\0\x08\0\x01\0", 1, b"", ["nft_redir"]),
            (b"\x08\0\x02\0", 3, b"\x08\0\x03\0", ["nft_fib_inet"]),
            (b"\x08\0\x01\0", 2, b"\x05\0\x02\0", ["nft_reject_inet"]),
        ],
        ids=["hook of the nat chain", "register of redir", "result of fib", "type of reject"],
    )
    def test_the_part_that_the_kernel_refuses_is_named(
        self, before: bytes, number: int, after: bytes, modules: list[str], require_lab: None
    ) -> None:
        """The kernel has all of them here, so a number in one of them becomes one that it doesn't know."""
        rules = network_messages.encode().rules
        sound = before + NUMBER.pack(number) + after
        assert sound in rules
        refused = rules.replace(sound, before + NUMBER.pack(99) + after)

        def work(trial: Trial) -> None:
            own_user_namespace()
            os.unshare(os.CLONE_NEWNET)
            trial.tell("modules", network.missing_modules(refused))

        assert attempt(work, 20) == Outcome({"modules": modules})

    def test_what_is_missing_is_loaded_or_installed(self) -> None:
        failed = Failure("nf_tables", os.strerror(errno.ENOENT), errno.ENOENT)
        outcome = Outcome({"namespace": True, "ipv6": False, "modules": ["nft_redir"]}, failed)
        rules, destination, ipv6 = network.judge_network(replace(HOST, release="0.0-none"), outcome)
        assert rules.found == "nf_tables: No such file or directory; without nft_redir"
        assert "linux-image-" in commands(rules)
        assert (destination.state, ipv6.state) == ("missing", "limited")
        assert "modprobe -a nft_redir" in commands(
            network.judge_network(replace(HOST, container="LXC"), outcome)[0]
        )

    def test_a_working_network(self) -> None:
        found = {
            finding.name: finding for finding in elsewhere(lambda: None, lambda: network.check_network(HOST))
        }
        assert set(found) == {"nf_tables", "original destination", "IPv6"}
        assert found["nf_tables"].state == found["original destination"].state == "ok"

    def test_without_namespaces_nothing_is_claimed(self) -> None:
        outcome = Outcome({}, Failure("user namespace", os.strerror(errno.EPERM), errno.EPERM))
        found = network.judge_network(HOST, outcome)
        assert {finding.state for finding in found} == {"missing"}
