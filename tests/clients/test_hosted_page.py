"""The examples of the hosted product's page on network policies, in their order, as they stand there.

They are run with the hosted product's client and with the package's own; the import is the whole difference.
The names in them exist in the lab alone; one of them, a package registry's, is an example's here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from box_policy.sdk import embedded
from tests.lab import Lab, plan
from tests.service.conftest import Server

OFFICIAL = "from upstash_box import Box"
OURS = "from box_policy import Box"

REGISTRY = "registry.example"
"""Stands for the package registry that the page names."""

NAMES = {
    "api.github.com": "51.81.20.1",
    "github.com": "51.81.20.2",
    REGISTRY: "51.81.20.3",
    "raw.githubusercontent.com": "51.81.20.4",
    "githubusercontent.com": "51.81.20.5",
    "gist.github.com": "51.81.20.6",
    "elsewhere.test": "51.81.20.7",
}
IN_RANGE = "104.16.1.1"
IN_DENIED_RANGE = "104.16.120.7"
OUT_OF_RANGE = plan.EVIL4

DEFAULT = """\
{"mode": "allow-all"}
"""

TYPES = """\
from typing import Literal, TypedDict, Union
from typing_extensions import NotRequired

class AllowDenyNetworkPolicy(TypedDict):
    mode: Literal["allow-all", "deny-all"]

class CustomNetworkPolicy(TypedDict):
    mode: Literal["custom"]
    allowed_domains: NotRequired[list[str]]
    allowed_cidrs: NotRequired[list[str]]
    denied_cidrs: NotRequired[list[str]]

NetworkPolicy = Union[AllowDenyNetworkPolicy, CustomNetworkPolicy]
"""

CREATE = """\
from upstash_box import Box

box = Box.create(
    runtime="node",
    network_policy={
        "mode": "custom",
        "allowed_domains": ["api.github.com", "registry.example"],
    },
)
"""

CREATE_WITH_RANGES = """\
box = Box.create(
    runtime="node",
    network_policy={
        "mode": "custom",
        "allowed_domains": ["api.github.com", "*.githubusercontent.com"],
        "allowed_cidrs": ["104.16.0.0/12"],
    },
)
"""

READ = """\
print(box.network_policy)  # {"mode": "allow-all"}
"""

DENY_ALL = """\
box.update_network_policy({"mode": "deny-all"})
"""

ALLOW_ALL = """\
box.update_network_policy({"mode": "allow-all"})
"""

ONLY_GITHUB_AND_NPM = """\
box.update_network_policy({
    "mode": "custom",
    "allowed_domains": ["github.com", "*.github.com", "registry.example"],
})
"""

BLOCK_ALL = """\
box.update_network_policy({"mode": "deny-all"})
"""

ALLOW_RANGE = """\
box.update_network_policy({
    "mode": "custom",
    "allowed_cidrs": ["104.16.0.0/12"],
})
"""

DENY_RANGE = """\
box.update_network_policy({
    "mode": "custom",
    "denied_cidrs": ["104.16.120.0/24"],
})
"""


class Page:
    """The page's reader, who types in one block after the other, and looks at what gets through."""

    def __init__(self, lab: Lab, statement: str) -> None:
        self._lab = lab
        self._import = statement
        self._names: dict[str, Any] = {}

    def run(self, block: str) -> None:
        exec(block.replace(OFFICIAL, self._import), self._names)

    def reaches(self, *targets: str) -> None:
        """Each of these names and addresses is reached, the names by HTTPS too."""
        found = self._fetch(url for target in targets for url in _urls(target))
        assert set(found.values()) == {0}, found
        expected = {
            (NAMES.get(target, target), tls) for target in targets for tls in {target in NAMES, False}
        }
        assert {(request.address, request.tls) for request in self._lab.requests()} == expected

    def never_reaches(self, *targets: str) -> None:
        """None of them hears anything, nor does the name server."""
        urls = [url for target in targets for url in _urls(target)]
        # By its own address a name is no better off.
        pinned = [
            f"--resolve {name}:{port}:{NAMES[name]}"
            for name in targets
            if name in NAMES
            for port in (80, 443)
        ]
        for options in ([], pinned) if pinned else ([],):
            found = self._fetch(urls, *options)
            assert found.keys() == set(urls)
            assert 0 not in found.values(), found
            assert self._lab.packets() == []

    def sends_nothing_at_all(self) -> None:
        self.never_reaches(*NAMES, IN_RANGE, OUT_OF_RANGE, plan.PRIVATE4, plan.METADATA4, plan.NAMESERVER4)

    def never_reaches_what_is_private(self) -> None:
        self.never_reaches(
            plan.PRIVATE4, plan.METADATA4, "127.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1"
        )

    def _fetch(self, urls: Iterable[str], *options: str) -> dict[str, int]:
        """What curl's exit status is for each, in the box."""
        self._lab.reset()
        for name, address in NAMES.items():
            self._lab.dns.set(name, A=[address])
        box = self._names["box"]
        box.files.write(path="ca.pem", content=self._lab.ca_pem.read_text())
        command = ["curl -s --fail --max-time 10 --cacert ca.pem -w '%{url} %{exitcode}\\n'", *options]
        run = box.exec.command(" ".join([*command, *(f"-o /dev/null {url}" for url in urls)]))
        return {url: int(status) for url, status in map(str.split, run.stdout.splitlines())}


def _urls(target: str) -> list[str]:
    # An address has no certificate of its own.
    return [f"https://{target}/", f"http://{target}/"] if target in NAMES else [f"http://{target}/"]


@pytest.fixture(params=[OFFICIAL, OURS], ids=["upstash_box", "box_policy"])
def page(
    service: Server, lab: Lab, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    """Each client; the package's own without any service, as it brings one along."""
    if request.param == OURS:
        monkeypatch.delenv("UPSTASH_BOX_BASE_URL")
        monkeypatch.delenv("UPSTASH_BOX_API_KEY")
        monkeypatch.setenv("BOX_POLICY_NAME_SERVERS", lab.nameserver)
        _end_embedded_service()
        yield Page(lab, request.param)
        _end_embedded_service()
    else:
        yield Page(lab, request.param)


def _end_embedded_service() -> None:
    """It has the name server of the environment that it was started in, which is this test's alone."""
    service = embedded.current()
    embedded.end()
    assert service.has_ended(wait=20)


def test_every_block(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    page.run(DEFAULT)
    page.run(TYPES)

    page.run(CREATE)
    page.reaches("api.github.com", REGISTRY)
    page.never_reaches("github.com", "gist.github.com", "elsewhere.test", IN_RANGE)
    page.never_reaches_what_is_private()

    page.run(CREATE_WITH_RANGES)
    page.reaches("api.github.com", "raw.githubusercontent.com", IN_RANGE, IN_DENIED_RANGE)
    page.never_reaches("githubusercontent.com", REGISTRY, "elsewhere.test", OUT_OF_RANGE)
    page.never_reaches_what_is_private()

    page.run(READ)
    printed = eval(capsys.readouterr().out)
    assert printed["mode"] == "custom"
    assert printed["allowed_domains"] == ["api.github.com", "*.githubusercontent.com"]
    assert printed["allowed_cidrs"] == ["104.16.0.0/12"]

    page.run(DENY_ALL)
    page.sends_nothing_at_all()

    page.run(ALLOW_ALL)
    page.reaches(*NAMES, IN_RANGE, OUT_OF_RANGE)
    page.never_reaches_what_is_private()
    page.run(READ)
    assert capsys.readouterr().out == "{'mode': 'allow-all'}\n"

    page.run(ONLY_GITHUB_AND_NPM)
    page.reaches("github.com", "api.github.com", "gist.github.com", REGISTRY)
    page.never_reaches("raw.githubusercontent.com", "elsewhere.test", IN_RANGE)

    page.run(BLOCK_ALL)
    page.sends_nothing_at_all()

    page.run(ALLOW_RANGE)
    page.reaches(IN_RANGE, IN_DENIED_RANGE)
    page.never_reaches("api.github.com", OUT_OF_RANGE)
    page.never_reaches_what_is_private()

    page.run(DENY_RANGE)
    page.reaches("api.github.com", "elsewhere.test", IN_RANGE, OUT_OF_RANGE)
    page.never_reaches(IN_DENIED_RANGE)
    page.never_reaches_what_is_private()


def test_a_default_box_prints_what_the_page_says(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    page.run(f"{OFFICIAL}\nbox = Box.create()\n{READ}")
    assert capsys.readouterr().out == "{'mode': 'allow-all'}\n"
