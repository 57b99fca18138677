"""The hosted product's sandbox for LangChain's agents, unmodified."""

import json
from collections.abc import Callable, Iterator

import pytest
from langchain_upstash_box import (  # type: ignore[import-untyped]
    UpstashBoxApiError,
    UpstashBoxSandbox,
)

from tests.clients.conftest import CURL
from tests.lab import Lab
from tests.service.conftest import Server

CUSTOM = {"mode": "custom", "allowed_domains": ["allowed.test"]}


@pytest.fixture
def create(service: Server, lab: Lab) -> Iterator[Callable[..., UpstashBoxSandbox]]:
    """Makes sandboxes that trust the lab's authority, and deletes them."""
    made = []

    def create(policy: object) -> UpstashBoxSandbox:
        sandbox = UpstashBoxSandbox.create(extra_config={"network_policy": policy})
        made.append(sandbox)
        (sent,) = sandbox.upload_files([("/workspace/home/ca.pem", lab.ca_pem.read_bytes())])
        assert sent.error is None
        return sandbox

    yield create
    for sandbox in made:
        sandbox.delete()
    assert service.ask("GET", "").ok() == []


@pytest.fixture
def sandbox(create: Callable[..., UpstashBoxSandbox]) -> UpstashBoxSandbox:
    return create(CUSTOM)


def test_an_allowed_name(sandbox: UpstashBoxSandbox, lab: Lab) -> None:
    done = sandbox.execute(f"{CURL} https://allowed.test/path")
    assert done.exit_code == 0
    assert json.loads(done.output)["target"] == "/path"
    assert [request.target for request in lab.requests()] == ["/path"]


@pytest.mark.parametrize("policy", [CUSTOM, "deny-all", {"mode": "deny-all"}], ids=["custom", "word", "mode"])
def test_a_name_that_is_not_allowed(
    create: Callable[..., UpstashBoxSandbox], lab: Lab, policy: object
) -> None:
    done = create(policy).execute(f"{CURL} https://evil.test/")
    assert done.exit_code == 6
    assert "<stderr>curl: (6)" in done.output
    assert lab.packets() == []


def test_what_is_no_policy(service: Server) -> None:
    with pytest.raises(UpstashBoxApiError, match=r"a\.\*\.test") as refused:
        UpstashBoxSandbox.create(extra_config={"network_policy": {"allow": ["a.*.test"]}})
    assert refused.value.status_code == 422
    assert service.ask("GET", "").ok() == []


def test_a_time_limit(sandbox: UpstashBoxSandbox) -> None:
    assert sandbox.execute("sleep 1000", timeout=1).exit_code == 124


def test_files_to_and_fro(sandbox: UpstashBoxSandbox) -> None:
    content = bytes(range(256)) * 1000
    (sent,) = sandbox.upload_files([("/workspace/home/deep/below/bytes", content)])
    assert sent.error is None
    got, missing = sandbox.download_files(["/workspace/home/deep/below/bytes", "/no/such/file"])
    assert got.content == content
    assert missing.error == "file_not_found"


def test_the_tools_of_an_agent(sandbox: UpstashBoxSandbox) -> None:
    path = "/workspace/home/notes.txt"
    assert sandbox.write(path, "one\ntwo\nthree\n").error is None
    assert {entry["path"] for entry in sandbox.ls("/workspace/home").entries or []} == {
        "/workspace/home/ca.pem",
        path,
    }
    edited = sandbox.edit(path, "two", "zwei")
    assert (edited.error, edited.occurrences) == (None, 1)
    read = sandbox.read(path)
    assert read.file_data is not None
    assert read.file_data["content"].splitlines() == ["one", "zwei", "three"]
    (match,) = sandbox.grep("zwei", "/workspace/home").matches or []
    assert (match["path"], match["line"], match["text"]) == (path, 2, "zwei")
    assert [found["path"] for found in sandbox.glob("*.txt", "/workspace/home").matches or []] == [
        "notes.txt"
    ]
