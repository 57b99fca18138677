"""Files: paths, uploads, and downloads that write only where they should."""

from pathlib import Path
from typing import Any

import pytest

from box_policy import BoxError, BoxFileError, BoxNotFoundError
from tests.sdk.conftest import Client
from tests.sdk.stub import Answer, Asked, Stub


def stat(kind: str) -> Answer:
    return Answer({"type": kind, "size": 1, "mod_time": "2026-01-01T00:00:00Z", "inode": 1, "version": "v"})


async def test_what_is_sent(client: Client, stub: Stub) -> None:
    stub.on("GET", ".*/files/.*", lambda _: Answer({"content": "text", "files": []}))
    stub.on("POST", ".*/files/.*", lambda _: Answer(content=b""))
    stub.on("GET", ".*/files/stat", lambda _: stat("file"))
    box = await client(client.Box.create)
    assert await client(box.files.read, "a b", encoding="base64") == "text"
    assert stub.asked[-1].query == {"path": "/workspace/home/a b", "encoding": "base64"}
    await client(box.files.read, "/x", length=0)
    assert stub.asked[-1].query == {"path": "/x", "offset": "0", "length": "0"}
    await client(box.files.write, path="x", content="c")
    assert stub.asked[-1].body == {"path": "/workspace/home/x", "content": "c"}
    await client(box.files.mkdir, "d", parents=True)
    assert stub.asked[-1].body == {"path": "/workspace/home/d", "parents": True}
    await client(box.files.rename, "a", "/b")
    assert stub.asked[-1].body == {"from": "/workspace/home/a", "to": "/b"}
    await client(box.files.remove, "d", recursive=True)
    assert stub.asked[-1].body == {"path": "/workspace/home/d", "recursive": True}
    assert (await client(box.files.stat, "x", follow=True)).version == "v"
    assert stub.asked[-1].query == {"path": "/workspace/home/x", "follow": "true"}
    assert await client(box.files.list) == []
    assert stub.asked[-1].query == {}
    with pytest.raises(BoxError, match="length"):
        await client(box.files.read, "x", offset=5)


async def test_the_directory_is_changed(client: Client, stub: Stub) -> None:
    stub.on("GET", ".*/files/stat", lambda _: stat("directory"))
    box = await client(client.Box.create)
    for path, cwd, folder in (
        ("src/./a//../b", "/workspace/home/src/b", "src/b"),
        ("..", "/workspace/home/src", "src"),
        ("/workspace/homely", "/workspace/homely", "/workspace/homely"),
        ("/", "/", "/"),
        ("../..", "/", "/"),
        ("/workspace/home/", "/workspace/home", None),
    ):
        await client(box.cd, path)
        assert box.cwd == cwd
        await client(box.exec.command, "true")
        assert stub.asked[-1].body.get("folder") == folder


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer({"error": "none", "code": "file_unknown"}, 404), "cd: x: No such file or directory"),
        (Answer({"error": "none"}, 404), "cd: x: No such file or directory"),
        (Answer({"error": "Permission denied", "code": "file_forbidden"}, 403), "Permission denied"),
        (stat("file"), "cd: x: Not a directory"),
    ],
)
async def test_it_stays_where_there_is_none(client: Client, stub: Stub, answer: Answer, message: str) -> None:
    stub.on("GET", ".*/files/stat", lambda _: answer)
    box = await client(client.Box.create)
    with pytest.raises(BoxFileError, match=message):
        await client(box.cd, "x")
    assert box.cwd == "/workspace/home"


async def test_a_box_that_is_gone_is_not_a_directory_that_is(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create)
    stub.boxes.clear()
    with pytest.raises(BoxNotFoundError, match="there is no box"):
        await client(box.cd, "x")


async def test_an_upload(client: Client, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"first\0")
    (tmp_path / "two").write_bytes(b"second")
    stub.on("POST", ".*/files/upload", lambda _: Answer({}))
    box = await client(client.Box.create)
    files = [
        {"path": str(tmp_path / "one"), "destination": "a.txt"},
        {"path": str(tmp_path / "two"), "destination": "/tmp/b.txt"},
    ]
    await client(box.files.upload, files)
    form = stub.asked[-1]
    assert form.headers["content-type"].startswith("multipart/form-data; boundary=")
    for part in (
        b'name="paths"\r\n\r\n/workspace/home/a.txt\r\n',
        b'name="paths"\r\n\r\n/tmp/b.txt\r\n',
        b'name="files"; filename="a.txt"',
        b'name="files"; filename="/tmp/b.txt"',
        b"first\0",
    ):
        assert form.content.count(part) == 1
    with pytest.raises(FileNotFoundError):
        await client(box.files.upload, [{"path": str(tmp_path / "none"), "destination": "x"}])


def entry(name: str, *, is_dir: bool = False) -> dict[str, Any]:
    return {"name": name, "path": f"/workspace/home/{name}", "size": 1, "is_dir": is_dir, "mod_time": "t"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def offer(stub: Stub, *entries: dict[str, Any]) -> None:
    stub.on("GET", ".*/files/list", lambda _: Answer({"files": list(entries)}))
    stub.on("GET", ".*/files/download", lambda asked: Answer(content=asked.query["folder"].encode()))


async def test_a_download(client: Client, stub: Stub, here: Path) -> None:
    offer(stub, entry("a.txt"), entry("sub", is_dir=True))
    box = await client(client.Box.create)
    await client(box.files.download)
    await client(box.files.download, folder="src/../out")
    assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == {
        "workspace/a.txt",
        "out/a.txt",
    }
    assert (here / "out/a.txt").read_text() == "/workspace/home/a.txt"
    assert (here / "out/a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
async def test_a_download_stays_in_its_directory(client: Client, stub: Stub, here: Path, name: str) -> None:
    offer(stub, entry(name))
    box = await client(client.Box.create)
    await client(box.files.download)
    assert [str(path.relative_to(here.parent)) for path in here.parent.rglob("evil")] == [
        "here/workspace/evil"
    ]


@pytest.mark.parametrize("name", ["", "..", ".", "a/", "a\0b", "a/.."])
async def test_a_name_that_is_none_is_refused(client: Client, stub: Stub, here: Path, name: str) -> None:
    offer(stub, entry(name))
    box = await client(client.Box.create)
    with pytest.raises(BoxError, match="unsafe"):
        await client(box.files.download)
    assert [path for path in here.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("folder", ["..", "/", "x/.."])
async def test_the_local_directory_is_below_this_one(
    client: Client, stub: Stub, here: Path, folder: str
) -> None:
    offer(stub, entry("f"))
    box = await client(client.Box.create)
    await client(box.files.download, folder=folder)
    assert [path.name for path in here.parent.iterdir()] == ["here"]
    assert len(list(here.glob("*/f"))) == 1


async def test_nothing_is_written_through_a_link(client: Client, stub: Stub, here: Path) -> None:
    target = here.parent / "target"
    target.write_text("mine")
    (here / "workspace").mkdir()
    (here / "workspace/f").symlink_to(target)
    offer(stub, entry("f"))
    box = await client(client.Box.create)
    await client(box.files.download)
    assert target.read_text() == "mine"
    assert not (here / "workspace/f").is_symlink()


async def test_half_a_file_is_none(client: Client, stub: Stub, here: Path) -> None:
    def half(_: Asked) -> Answer:
        return Answer(content=b"ha", headers={"Content-Length": "10", "Connection": "close"})

    offer(stub, entry("f"))
    (here / "workspace").mkdir()
    (here / "workspace/f").write_text("old")
    stub.on("GET", ".*/files/download", half)
    box = await client(client.Box.create)
    with pytest.raises(BoxError):
        await client(box.files.download)
    assert [path.name for path in (here / "workspace").iterdir()] == ["f"]
    assert (here / "workspace/f").read_text() == "old"
