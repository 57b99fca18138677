"""Which service is spoken to, and how."""

from pathlib import Path

import pytest

from box_policy import BoxAuthError, BoxError
from box_policy.sdk.connection import Target, segment, target
from tests.sdk.conftest import Client
from tests.sdk.stub import KEY, Stub


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BOX_POLICY", "own"), ("UPSTASH_BOX", "theirs")):
        monkeypatch.setenv(f"{name}_BASE_URL", f"http://{value}.test")
        monkeypatch.setenv(f"{name}_API_KEY", f"{value}-key")
    assert target({}) == Target("http://own.test", "own-key")
    assert target({"base_url": "https://given.test/", "api_key": "given"}) == Target(
        "https://given.test", "given"
    )
    monkeypatch.delenv("BOX_POLICY_BASE_URL")
    monkeypatch.delenv("BOX_POLICY_API_KEY")
    assert target({}) == Target("http://theirs.test", "theirs-key")


@pytest.mark.parametrize(
    ("base_url", "url", "uds"),
    [
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", None),
        ("http://[::1]:8080", "http://[::1]:8080", None),
        ("http://localhost", "http://localhost", None),
        ("unix:///run/box.sock", "http://localhost", "/run/box.sock"),
        ("unix:/run/box.sock", "http://localhost", "/run/box.sock"),
    ],
)
def test_on_this_machine_no_proxy_lies_between(base_url: str, url: str, uds: str | None) -> None:
    assert target({"base_url": base_url, "api_key": "k"}) == Target(url, "k", uds, is_local=True)


def test_elsewhere_one_may() -> None:
    assert not target({"base_url": "https://boxes.test/prefix", "api_key": "k"}).is_local


@pytest.mark.parametrize(
    "base_url",
    [
        "127.0.0.1:8080",
        "ftp://a.test",
        "http://",
        "http://a.test:99999",
        "http://a.test:0",
        "http://[::1",
        "unix://relative",
        "unix:///a\0b",
        "http://user:secret@a.test",
        "http://a.test/?query",
        "\0",
    ],
)
def test_an_address_that_can_t_be_used_is_refused(base_url: str) -> None:
    with pytest.raises(BoxError, match="base_url") as raised:
        target({"base_url": base_url, "api_key": "k"})
    assert "secret" not in str(raised.value)


def test_a_base_url_needs_a_key() -> None:
    with pytest.raises(BoxError, match="BOX_POLICY_API_KEY"):
        target({"base_url": "http://a.test"})


@pytest.mark.parametrize("key", [None, "with space"])
def test_the_address_is_complained_of_before_the_key(key: str | None) -> None:
    with pytest.raises(BoxError, match='base_url "localhost:8080" can\'t be used; write http://host:port'):
        target({"base_url": "localhost:8080", "api_key": key})


@pytest.mark.parametrize("key", ["with space", "line\r\nX-Other: 1", "schlüssel"])
def test_a_key_that_is_no_header_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(BoxError) as raised:
        target({"base_url": "http://a.test", "api_key": key})
    assert key not in str(raised.value)


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(Target("http://a.test", KEY))


@pytest.mark.parametrize("value", ["", " ", ".", "..", "\ud800"])
def test_what_would_be_another_path_is_refused(value: str) -> None:
    with pytest.raises(BoxError, match="is no id"):
        segment(value, "id")


async def test_an_id_stays_one_segment(client: Client, stub: Stub) -> None:
    with pytest.raises(BoxError):
        await client(client.Box.get, "../settings/env?x#y")
    assert stub.asked[-1].path == "/v2/box/..%2Fsettings%2Fenv%3Fx%23y"


async def test_the_key_goes_with_each_request(client: Client, stub: Stub) -> None:
    with pytest.raises(BoxAuthError) as raised:
        await client(client.Box.create, api_key="another")
    assert (raised.value.status_code, raised.value.code) == (401, "unauthorized")
    box = await client(client.Box.create, apiKey=KEY, baseUrl=stub.url)
    await client(box.get_status)
    assert {asked.headers["x-box-api-key"] for asked in stub.asked[1:]} == {KEY}


async def test_a_proxy_of_the_environment_is_not_asked(
    client: Client, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await client(client.Box.create)).id == "box-1"


async def test_a_unix_socket_that_is_not_there(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BoxError, match="can't be reached"):
        await client(client.Box.create, base_url=f"unix://{tmp_path}/none.sock", api_key="k")
