"""Files that a box has made to hurt, and answers that lie: nothing blocks, nothing leaks, all is told."""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import files
from box_policy.sandbox.namespaces.files import BoxFiles
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import PATIENCE, new_box, python, shell
from tests.sandbox.conftest import AnyLauncher

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("path", ["/tmp/odd/pipe", "/tmp/odd/socket", "/dev/zero", "/dev/tty", "/dev/ptmx"])
async def test_what_is_no_file_is_neither_read_nor_written(box: ServedBox, path: str) -> None:
    await python(
        box,
        "import os, socket; os.makedirs('/tmp/odd', exist_ok=True); os.chdir('/tmp/odd');"
        "os.path.exists('pipe') or os.mkfifo('pipe');"
        "os.path.exists('socket') or socket.socket(socket.AF_UNIX).bind('socket')",
    )
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OSError) as caught:
            await box.files.read(path, limit=10)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError) as caught:
            await box.files.write(path, b"x")
        assert caught.value.errno == errno.EINVAL


DEEP = """
import os
os.mkdir('/tmp/deep'); os.chdir('/tmp/deep')
for _ in range(3000):
    os.mkdir('x' * 100); open('file', 'w').close(); os.chdir('x' * 100)
"""


async def test_a_tree_deeper_than_a_path_can_say(box: ServedBox) -> None:
    await python(box, DEEP)
    await box.files.remove("/tmp/deep", recursive=True)
    with pytest.raises(FileNotFoundError):
        await box.files.stat("/tmp/deep")


async def test_removing_follows_no_link(box: ServedBox) -> None:
    await shell(box, "mkdir -p /tmp/keep/a /tmp/go; touch /tmp/keep/a/f; ln -s /tmp/keep /tmp/go/link")
    await box.files.remove("/tmp/go", recursive=True)
    assert (await shell(box, "ls /tmp/keep/a; ls -d /tmp/go")).output.startswith("f\n")
    await shell(box, "ln -s /tmp/keep /tmp/link")
    await box.files.remove("/tmp/link", recursive=True)
    assert (await shell(box, "ls /tmp/keep/a")).output == "f\n"


async def test_a_worker_that_is_killed(launcher: AnyLauncher) -> None:
    # A program of the box may kill or stop it, as any other.
    async with new_box(launcher) as box:
        await shell(box, "truncate -s 1T /tmp/sparse")
        with pytest.raises(SandboxError, match="ended early, with"):
            async with box.files.open("/tmp/sparse") as stream:
                await anext(stream)
                kill = "import os\nfor p in os.listdir('/proc'):\n if p.isdigit() and 'box-files' in open("
                await python(box, kill + "f'/proc/{p}/comm').read(): os.kill(int(p), 9)")
                async for _ in stream:
                    pass


async def test_a_worker_that_is_stopped(launcher: AnyLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    async with new_box(launcher) as box:
        await shell(box, "truncate -s 1T /tmp/sparse")
        with pytest.raises(SandboxError, match="not answered"):
            async with box.files.open("/tmp/sparse") as stream:
                await anext(stream)
                stop = "import os\nfor p in os.listdir('/proc'):\n if p.isdigit() and 'box-files' in open("
                await python(box, stop + "f'/proc/{p}/comm').read(): os.kill(int(p), 19)")
                async for _ in stream:
                    pass
        # It was ended, though it could not see that nobody reads any more.
        count = "until ! grep -qx box-files /proc/[0-9]*/comm; do :; done 2>/dev/null"
        assert (await shell(box, count)).status == 0


class LyingProgram:
    """A worker that has ended."""

    terminal = None
    pid = 2

    async def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        """It has ended."""


class LyingBox:
    """A box whose workers answer what they like."""

    is_paused = False

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def start_file_worker(
        self, operation: dict[str, Any], stdin: int | None, stdout: int
    ) -> LyingProgram:
        os.write(stdout, self._answer)
        return LyingProgram()


LIES = [
    b"",
    b"\n",
    b"no json\n",
    b"[]\n",
    b"{}\n",
    b'{"errno": 0, "path": ""}\n',
    b'{"errno": 100000, "path": ""}\n',
    b'{"errno": true, "path": ""}\n',
    b'{"errno": 2, "path": 7}\n',
    b'{"errno": 2, "path": "\\ud800"}\n',
    b'{"errno": 2',
    b"[" * 50_000 + b"\n",
    b"9" * 50_000 + b"\n",
    b'{"ok": ["file", 1, 2]}\n',
    b'{"ok": ["secret", 1, 2, 3]}\n',
    b'{"ok": [["file"], 1, 2, 3]}\n',
    b'{"ok": ["file", -1, 2, 3]}\n',
    b'{"ok": ["file", 1.5, 2, 3]}\n',
    b'{"ok": ["file", 1, NaN, 3]}\n',
    b'{"ok": ["file", 1, Infinity, 3]}\n',
    b'{"ok": ["file", 1, "2", 3]}\n',
    b'{"ok": ["file", true, 2, 3]}\n',
]


@pytest.mark.parametrize("answer", LIES)
async def test_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(SandboxError):
        await BoxFiles(LyingBox(answer)).stat("/x")


async def test_an_answer_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_ANSWER", 1000)
    with pytest.raises(SandboxError, match="malformed"):
        await BoxFiles(LyingBox(b"x" * 2000)).stat("/x")


FACTS = ["file", 1, 2.0, 3]


@pytest.mark.parametrize(
    "entries",
    [
        [["..", *FACTS]],
        [["a/b", *FACTS]],
        [["", *FACTS]],
        [["nul\0", *FACTS]],
        [["\ud800", *FACTS]],
        [[7, *FACTS]],
        [["a", *FACTS, 4]],
        [{}],
        [["a", *FACTS], ["b", *FACTS]],
        [],
        [["a" * 5000, *FACTS]],
    ],
)
async def test_a_directory_that_is_none(entries: list[object]) -> None:
    # One entry is promised.
    lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    with pytest.raises(SandboxError, match="malformed"):
        await BoxFiles(LyingBox(b'{"ok": 1}\n' + lines)).list("/x", limit=5)


@pytest.mark.parametrize("count", [b"6", b"-1", b"true", b'"1"', b"null"])
async def test_a_directory_of_another_size(count: bytes) -> None:
    with pytest.raises(SandboxError, match="malformed"):
        await BoxFiles(LyingBox(b'{"ok": ' + count + b"}\n")).list("/x", limit=5)


async def test_more_than_was_asked_for() -> None:
    with pytest.raises(OSError, match="large"):
        await BoxFiles(LyingBox(b'{"ok": null}\n' + b"x" * 11)).read("/x", limit=10)


async def test_a_path_that_the_box_names() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await BoxFiles(LyingBox(b'{"errno": 2, "path": "/y"}\n')).stat("/x")
    assert caught.value.filename == "/y"


async def test_a_host_directory_is_no_way_out(launcher: AnyLauncher, owned_directory: Path) -> None:
    async with new_box(launcher, BoxSpec("host", workdir=owned_directory)) as box:
        secret = owned_directory.parent / "secret"
        secret.write_text("host")
        await shell(box, f"ln -s {secret} /workspace/link; ln -s ../../../../../../{secret} /workspace/up")
        for name in ("link", "up"):
            with pytest.raises(FileNotFoundError):
                await box.files.read(f"/workspace/{name}", limit=100)
        outside = owned_directory.parent / "outside"
        await shell(box, f"ln -s {outside} /workspace/out")
        await box.files.write("/workspace/out", b"x")
        assert not outside.exists()
        await box.files.write("/workspace/plain", b"shared")
        assert (owned_directory / "plain").read_text() == "shared"
