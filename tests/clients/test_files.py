"""Files of boxes, through the hosted product's Python clients."""

import base64
from pathlib import Path

import pytest
from upstash_box import BoxError

from tests.clients.conftest import Client, Make


async def test_text(client: Client, make: Make) -> None:
    box = await make()
    await client(box.files.write(path="notes/of/today.txt", content="héllo\n"))
    assert await client(box.files.read("notes/of/today.txt")) == "héllo\n"
    assert (await client(box.exec.command("cat notes/of/today.txt"))).result == "héllo\n"


async def test_bytes_as_base64(client: Client, make: Make) -> None:
    box = await make()
    content = bytes(range(256)) * 4000
    text = base64.b64encode(content).decode()
    await client(box.files.write(path="bytes", content=text, encoding="base64"))
    assert await client(box.files.read("bytes", encoding="base64")) == text
    with pytest.raises(BoxError, match="encoding=base64") as refused:
        await client(box.files.read("bytes"))
    assert refused.value.status_code == 422


async def test_a_part_of_a_file(client: Client, make: Make) -> None:
    box = await make()
    await client(box.files.write(path="digits", content="0123456789"))
    assert await client(box.files.read("digits", offset=3, length=4)) == "3456"
    assert await client(box.files.read("digits", offset=8, length=100)) == "89"
    assert await client(box.files.read("digits", length=0)) == ""


async def test_a_directory(client: Client, make: Make) -> None:
    box = await make()
    await client(box.files.mkdir("a/b", parents=True))
    await client(box.files.write(path="a/file", content="12345"))
    entries = {entry.name: entry for entry in await client(box.files.list("a"))}
    assert entries.keys() == {"b", "file"}
    assert (entries["b"].is_dir, entries["file"].is_dir) == (True, False)
    assert (entries["file"].path, entries["file"].size) == ("/workspace/home/a/file", 5)
    assert entries["file"].mod_time.endswith("Z")


async def test_what_is_known_of_a_file(client: Client, make: Make) -> None:
    box = await make()
    await client(box.files.write(path="file", content="12345"))
    await client(box.exec.command("ln -s file link"))
    file = await client(box.files.stat("file"))
    assert (file.type, file.size) == ("file", 5)
    assert (await client(box.files.stat("link"))).type == "symlink"
    assert (await client(box.files.stat("link", follow=True))).inode == file.inode
    await client(box.files.write(path="file", content="123456"))
    assert (await client(box.files.stat("file"))).version != file.version


async def test_moving_and_removing(client: Client, make: Make) -> None:
    box = await make()
    await client(box.files.write(path="old", content="x"))
    await client(box.files.rename("old", "new"))
    assert await client(box.files.read("new")) == "x"
    await client(box.files.remove("new"))
    await client(box.files.mkdir("full"))
    await client(box.files.write(path="full/file", content="x"))
    with pytest.raises(BoxError) as refused:
        await client(box.files.remove("full"))
    assert refused.value.status_code == 409
    await client(box.files.remove("full", recursive=True))
    assert [entry.name for entry in await client(box.files.list())] == ["ca.pem"]


async def test_several_to_and_fro(
    client: Client, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await make()
    monkeypatch.chdir(tmp_path)
    contents = {"one": b"1", "two.bin": bytes(range(256)) * 8000, "emptý": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    await client(
        box.files.upload([{"path": str(tmp_path / name), "destination": f"sent/{name}"} for name in contents])
    )
    await client(box.files.download(folder="sent"))
    assert {one.name: one.read_bytes() for one in (tmp_path / "sent").iterdir()} == contents


@pytest.mark.parametrize("path", ["missing", "/etc/shadow-of-nothing"])
async def test_a_file_that_is_not_there(client: Client, make: Make, path: str) -> None:
    box = await make()
    with pytest.raises(BoxError, match="No such file") as missing:
        await client(box.files.read(path))
    assert missing.value.status_code == 404


async def test_what_the_host_shows_stays_as_it_is(client: Client, make: Make) -> None:
    box = await make()
    with pytest.raises(BoxError, match="Read-only file system") as refused:
        await client(box.files.write(path="/usr/bin/mine", content="x"))
    assert refused.value.status_code == 403


async def test_a_link_leads_nowhere_outside(client: Client, make: Make, tmp_path: Path) -> None:
    box = await make()
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    await client(box.exec.command(f"ln -s {secret} link; ln -s / root"))
    for path in ("link", f"root{secret}", f"../../../../../../..{secret}"):
        with pytest.raises(BoxError, match="No such file"):
            await client(box.files.read(path))
