"""Whom the resolver asks, what it keeps, and what it makes of answers."""

import asyncio
import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from box_policy.gate import hosts_file, resolver
from box_policy.gate.hosts_file import HostsFile
from box_policy.gate.resolution import Resolution
from box_policy.gate.resolver import AAAA, A, NameServers, Resolver
from tests.lab import Lab, plan


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at on every use, rather than once in a while."""
    monkeypatch.setattr(hosts_file, "_CHECK_INTERVAL", 0)
    monkeypatch.setattr(resolver, "_RESOLV_CONF_CHECK", 0)


def make(lab: Lab, *servers: str, hosts: Path | None = None) -> Resolver:
    return Resolver(NameServers(servers or (lab.nameserver,)), hosts_file=hosts)


class TestNameServers:
    def test_those_that_were_there_first(self, tmp_path: Path) -> None:
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("nameserver 192.0.2.1\n")
        servers = NameServers(resolv_conf=resolv_conf, follow=False)
        resolv_conf.write_text("nameserver 51.81.66.66\n")
        assert list(servers.current()) == ["192.0.2.1"]

    def test_none_that_are_refused(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("nameserver 127.0.0.11\nnameserver 192.0.2.1\n")
        refused = {ip_address("127.0.0.11")}
        assert list(NameServers(resolv_conf=resolv_conf, follow=False, refused=refused).current()) == [
            "192.0.2.1"
        ]
        assert "127.0.0.11" in caplog.text

    def test_none_that_come_later(self, tmp_path: Path) -> None:
        servers = NameServers(resolv_conf=tmp_path / "resolv.conf", follow=False)
        (tmp_path / "resolv.conf").write_text("nameserver 51.81.66.66\n")
        assert not servers.current()

    def test_those_of_resolv_conf_also_after_a_change(self, tmp_path: Path) -> None:
        file = tmp_path / "resolv.conf"
        servers = NameServers(resolv_conf=file)
        assert not servers.current()
        file.write_text("search x.test\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n")
        assert tuple(servers.current()) == ("192.0.2.1", "2001:db8::1")
        away = tmp_path / "away"
        file.rename(away)
        assert not servers.current()
        away.rename(file)
        assert tuple(servers.current()) == ("192.0.2.1", "2001:db8::1")

    def test_given_ones_before_all(self, tmp_path: Path) -> None:
        assert NameServers(["192.0.2.9"], resolv_conf=tmp_path).current() == ("192.0.2.9",)


class TestHostsFile:
    def test_names_in_any_case_and_several_addresses(self, tmp_path: Path) -> None:
        file = tmp_path / "hosts"
        file.write_text(
            "# comment\n192.0.2.1 One.test alias.test # x\n2001:db8::1 one.test\nnonsense one.test\n"
        )
        hosts = HostsFile(file)
        assert hosts.addresses("one.test") == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
        assert hosts.addresses("alias.test") == (ip_address("192.0.2.1"),)
        assert hosts.addresses("other.test") == ()

    def test_a_change_is_noticed_also_one_that_keeps_the_time(self, tmp_path: Path) -> None:
        file = tmp_path / "hosts"
        file.write_text("192.0.2.1 one.test\n")
        hosts = HostsFile(file)
        assert hosts.addresses("one.test")
        before = file.stat()
        other = tmp_path / "other"
        other.write_text("192.0.2.2 one.test\n")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.rename(file)
        assert hosts.addresses("one.test") == (ip_address("192.0.2.2"),)
        file.unlink()
        assert hosts.addresses("one.test") == ()


class TestResolver:
    async def test_both_families(self, lab: Lab) -> None:
        expected = Resolution((ip_address(plan.ALLOWED4), ip_address(plan.ALLOWED6)))
        assert await make(lab).addresses("allowed.test") == expected

    async def test_a_cached_name_is_answered_at_once(self, lab: Lab) -> None:
        names = make(lab)
        await names.addresses("allowed.test")
        answers: list[Resolution] = []
        names.resolve("allowed.test", answers.append)
        assert len(answers) == 1
        assert len(lab.dns.questions) == 2

    async def test_the_hosts_file_comes_first(self, lab: Lab, tmp_path: Path) -> None:
        file = tmp_path / "hosts"
        file.write_text("51.81.10.77 allowed.test\n")
        found = await make(lab, hosts=file).addresses("allowed.test")
        assert found.addresses == (ip_address("51.81.10.77"),)
        assert lab.dns.questions == []

    async def test_a_silent_server_is_followed_by_the_next(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resolver, "_ATTEMPT_TIMEOUT", 0.2)
        found = await make(lab, plan.SILENT4, lab.nameserver).addresses("allowed.test")
        assert ip_address(plan.ALLOWED4) in found.addresses

    async def test_silence_is_a_failure_in_the_end(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resolver, "_TOTAL_TIMEOUT", 0.3)
        found = await make(lab, plan.SILENT4).addresses("allowed.test")
        assert found == Resolution(error="no name server answered in time")

    async def test_a_loop_of_aliases_is_a_failure(self, lab: Lab) -> None:
        lab.dns.set("loop.wild.test", CNAME="loop.wild.test")
        assert (await make(lab).addresses("loop.wild.test")).addresses == ()

    async def test_an_answer_that_is_not_one(self, lab: Lab) -> None:
        lab.dns.set("junk.wild.test", raw=b"\xff" * 40)
        assert (await make(lab).addresses("junk.wild.test")).addresses == ()

    async def test_failures_are_not_kept(self, lab: Lab) -> None:
        names = make(lab)
        lab.dns.set("late.wild.test", rcode="SERVFAIL")
        assert (await names.ask("late.wild.test", A)).error
        lab.dns.set("late.wild.test", A=[plan.WILDCARD4])
        assert (await names.ask("late.wild.test", A)).addresses() == (ip_address(plan.WILDCARD4),)

    async def test_large_answers_are_not_kept(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resolver, "_MAX_CACHED_SIZE", 3)
        names = make(lab)
        for _ in range(2):
            await names.ask("allowed.test", A)
        assert len(lab.dns.questions) == 2

    async def test_the_cache_is_bounded(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resolver, "_MAX_CACHED", 5)
        names = make(lab)
        for number in range(10):
            await names.ask(f"n{number}.wild.test", A)
        assert len(names._cache) == 5

    async def test_one_who_stops_waiting_does_not_take_the_answer_from_others(self, lab: Lab) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.2)
        names = make(lab)
        first = asyncio.create_task(names.ask("slow.wild.test", A))
        second = asyncio.create_task(names.ask("slow.wild.test", A))
        await lab.expect_async(lambda: lab.dns.questions)
        first.cancel()
        assert (await second).addresses() == (ip_address(plan.WILDCARD4),)

    async def test_no_family_for_a_name_is_not_an_error(self, lab: Lab) -> None:
        answer = await make(lab).ask("a.wild.test", AAAA)
        assert (answer.error, answer.records) == ("", ())
