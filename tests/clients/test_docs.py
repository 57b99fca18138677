"""The Python examples of the documentation run as they stand, and print what they say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from box_policy import Box
from box_policy.sdk import embedded
from tests.clients.test_hosted_page import NAMES
from tests.lab import Lab

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/service.md",
    "docs/coming-from-upstash-box.md",
    "docs/coming-from-vercel-sandbox.md",
]

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SAID = re.compile(r"^ *(?:print\(box\.network_policy\)  )?# (\{.*\})$", re.MULTILINE)


@pytest.fixture
def embedded_service(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the environment names a service; the one that is started knows the examples' names."""
    for variable in ("BOX_POLICY_BASE_URL", "UPSTASH_BOX_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("BOX_POLICY_NAME_SERVERS", lab.nameserver)
    for name, address in NAMES.items():
        lab.dns.set(name, A=[address])
    service = embedded.current()
    yield
    embedded.end()
    assert service.has_ended(wait=20)


def test_every_example(embedded_service: None, capsys: pytest.CaptureFixture[str]) -> None:
    for page in PAGES:
        blocks = BLOCK.findall((ROOT / page).read_text())
        assert blocks, page
        for block in blocks:
            exec(block, {})
            printed = capsys.readouterr().out
            for said in SAID.findall(block):
                assert said in printed, page
        assert Box.list() == [], page
