"""What of the file worker can be tried without a box: content in frames, and files written whole."""

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from box_policy.sandbox.namespaces import file_archive, processes
from box_policy.sandbox.namespaces.file_archive import Archiver
from box_policy.sandbox.namespaces.file_trees import Output
from box_policy.sandbox.namespaces.file_worker import Content, replace


def frames(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def content(pipe: tuple[int, int], data: bytes) -> Content:
    reader, writer = pipe
    os.write(writer, data)
    os.close(writer)
    return Content(reader)


@pytest.mark.parametrize("parts", [[], [b"a"], [b"ab", b"c" * 1000, b"\0\0\0\0"]])
def test_frames_are_joined(pipe: tuple[int, int], parts: list[bytes]) -> None:
    assert b"".join(content(pipe, frames(*parts, b"")).pieces()) == b"".join(parts)


def test_a_read_takes_what_it_asks_for(pipe: tuple[int, int]) -> None:
    stream = content(pipe, frames(b"abc", b"de", b"f", b""))
    assert [stream.read(size) for size in (2, 3, 9, 1)] == [b"ab", b"cde", b"f", b""]


@pytest.mark.parametrize(
    "cut", [b"", b"\0", b"\0\0\0", frames(b"abc"), frames(b"abc")[:-1], b"\xff" * 4 + b"x"]
)
def test_an_end_without_the_last_frame(pipe: tuple[int, int], cut: bytes) -> None:
    with pytest.raises(BrokenPipeError):
        list(content(pipe, cut).pieces())


@pytest.fixture(params=["nameless", "named"])
def kind_of_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to write a file: of a file system that has files without a name, and of one that hasn't."""
    real = os.open

    def without(path: str, flags: int, *arguments: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *arguments)

    if request.param == "named":
        monkeypatch.setattr(os, "open", without)


@pytest.mark.usefixtures("kind_of_file")
def test_a_file_is_replaced(pipe: tuple[int, int], tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    target.chmod(0o751)
    replace(str(tmp_path), str(target), target.stat(), content(pipe, frames(b"new", b"")))
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o7777 == 0o751
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("kind_of_file")
def test_a_file_whose_content_breaks_off_is_not(pipe: tuple[int, int], tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(BrokenPipeError):
        replace(str(tmp_path), str(target), target.stat(), content(pipe, frames(b"new")))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_has_shrunk_is_padded(
    pipe: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"short")
    real = os.fstat

    def longer(fd: int) -> os.stat_result:
        fields = list(real(fd))
        fields[6] += 1000
        return os.stat_result(fields)

    reader, writer = pipe
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", longer)
        patch.setattr(file_archive, "_pieces", lambda fd, size: [(0, size)])  # it was all data, then
        Archiver(Output(writer)).archive([str(tmp_path)])
    os.close(writer)
    with open(reader, "rb", closefd=False) as file, tarfile.open(fileobj=io.BytesIO(file.read())) as tar:
        member = tar.extractfile(tar.getmembers()[1])
        assert member is not None
        assert member.read() == b"short" + bytes(1000)


@pytest.mark.parametrize(
    "text", [b"", b"1", b"1 (x)", b"1 (x) R", b"x (x) R " + b"1 " * 40, b"1 (x) R x " + b"1 " * 40]
)
def test_text_of_no_process(text: bytes) -> None:
    assert processes.parse(text) is None


def test_a_process_with_an_odd_name() -> None:
    text = b"12 (a) R 1 (b) T 7 " + b"0 " * 17 + b"99 0 0"
    assert processes.parse(text) == processes.Process(12, "T", 7, 99)
    own = {process.pid: process for process in processes.everyone()}[os.getpid()]
    assert (own.parent, own.is_at_rest) == (os.getppid(), False)
    assert {thread.pid for thread in processes.threads(os.getpid())} >= {os.getpid()}
