"""Reading a policy file: whom it is taken from, and what it says."""

import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from box_policy.audit.records import MAX_DETAIL
from box_policy.control.files.trusted_file import Known, Missing, Whole, look
from box_policy.control.files.trusted_path import Trail
from box_policy.control.files.watched_file import Bad, BeingWritten, Gone, Good, Same
from box_policy.control.policy_file import PolicyFileError, examine, read_policy, shortened, shown
from box_policy.policy.model import NetworkPolicy
from tests.control.reading import look_at, refusal, whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "policy.yaml"
    path.write_text("mode: deny-all\n")
    path.chmod(0o644)
    return path


# One-shot reads


def test_a_policy_is_read(path: Path) -> None:
    assert read_policy(path) == NetworkPolicy.parse("deny-all")


def test_an_error_names_the_file_and_the_line(path: Path) -> None:
    path.write_text("mode: custom\nallowed_domains: ['*']\n")
    with pytest.raises(PolicyFileError, match=rf"^{path}:2:"):
        read_policy(path)
    with pytest.raises(PolicyFileError, match="No such file"):
        read_policy(path.with_name("none.yaml"))


# What is no file, or no sane one


def test_the_content_and_its_digest_are_read(path: Path) -> None:
    found = whole(path)
    assert found.data == b"mode: deny-all\n"
    assert look_at(path, known=[found.digest]) == Known(found.digest)


def test_a_fifo_is_refused_at_once(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)
    assert "a FIFO, not a regular file" in refusal(path)


def test_a_directory_is_refused(path: Path) -> None:
    assert "a directory, not a regular file" in refusal(path.parent)


def test_a_device_is_refused(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "a device, not a regular file" in refusal(path)


def test_more_than_a_policy_may_have_is_not_read(path: Path) -> None:
    os.truncate(path, 1 << 30)
    began = time.monotonic()
    assert "larger than 8 MiB" in refusal(path)
    assert time.monotonic() - began < 0.5


def test_a_link_to_itself_is_refused(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)
    assert "Too many levels" in refusal(path)


@pytest.mark.parametrize("name", ["none.yaml", "none/policy.yaml", "policy.yaml/x.yaml"])
def test_what_is_not_there_is_missing(path: Path, name: str) -> None:
    assert look_at(path.parent / name) == Missing()


def test_a_link_to_nowhere_is_missing(path: Path) -> None:
    link = path.with_name("link.yaml")
    link.symlink_to("none.yaml")
    assert look_at(link) == Missing()


def test_a_file_that_must_not_be_read_is_refused(path: Path) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK, effective_ids=True):
        pytest.skip("whoever has root's capabilities reads everything")
    assert refusal(path) == "Permission denied"


def test_a_null_character_in_the_path_is_refused() -> None:
    assert "null" in refusal(Path("/tmp/\0.yaml"))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(path: Path) -> None:
    link = path.with_name("link.yaml")
    link.symlink_to(f"../{path.parent.name}/./policy.yaml")
    before = open_descriptors()
    whole(link)
    look_at(path / "x")
    refusal(path.parent)
    path.chmod(0o666)
    refusal(path)
    path.parent.chmod(0o777)
    refusal(link)
    assert open_descriptors() == before


def test_the_trail_is_what_a_configmaps_file_depends_on(path: Path) -> None:
    top = path.parent
    (top / "..2026").mkdir(mode=0o755)
    path.rename(top / "..2026" / "policy.yaml")
    (top / "..data").symlink_to("..2026")
    path.symlink_to("..data/policy.yaml")
    trail = Trail()
    found = look(path, max_bytes=100, trail=trail)
    assert isinstance(found, Whole)
    at = str(top)
    assert trail.entries == {(at, "policy.yaml"), (at, "..data"), (f"{at}/..2026", "policy.yaml")}
    assert trail.directories.keys() == {at, f"{at}/..2026"}
    assert trail.directories[at] == (top.stat().st_dev, top.stat().st_ino)


# What it says


def finding(path: Path, known: Collection[bytes] = ()) -> object:
    return examine(path, known=known, sample=None, trail=Trail())


def test_what_a_file_is_found_to_hold(path: Path) -> None:
    good = finding(path)
    assert isinstance(good, Good)
    assert good.policy == NetworkPolicy.parse("deny-all")
    assert finding(path, [good.digest]) == Same(good.digest)
    with path.open("a") as stream:
        assert finding(path) == BeingWritten(None)
        stream.write("x: 1\n")
    bad = finding(path)
    assert isinstance(bad, Bad)
    assert bad.error.startswith(f"{path}:2:")
    assert bad.digest is not None
    path.chmod(0o666)
    assert finding(path) == Bad(f"{path}: others can write to it: chmod go-w {path}")
    path.unlink()
    assert finding(path) == Gone()


def test_of_many_errors_the_first_are_said_and_how_many_more_there_are(path: Path) -> None:
    path.write_text("mode: custom\nallowed_domains:\n" + "- a b\n" * 60)
    bad = finding(path)
    assert isinstance(bad, Bad)
    *lines, last = bad.error.split("\n")
    assert [line.startswith(f"{path}:{number}:") for number, line in enumerate(lines, 3)] == [True] * 20
    assert last == "... and 40 more"
    path.write_text("mode: custom\nallowed_domains:\n" + f"- '{'x' * 300} y'\n" * 60)
    bad = finding(path)
    assert isinstance(bad, Bad)
    assert len(bad.error) < MAX_DETAIL
    with pytest.raises(PolicyFileError) as error:
        read_policy(path)
    assert len(str(error.value).split("\n")) == 60, "who checks a file wants to see all"


@pytest.mark.parametrize(
    ("errors", "shown"),
    [("a\nb", "a\nb"), ("x" * 5000 + "\ny", "x" * 5000 + "\n... and 1 more"), ("\n".join("a" * 20),) * 2],
)
def test_errors_are_shortened_by_lines(errors: str, shown: str) -> None:
    assert shortened(errors) == shown


def test_why_a_file_is_refused_is_shown_so_that_no_terminal_obeys_it(path: Path) -> None:
    folder = path.parent / "\x1b[31m"
    folder.mkdir()
    path = path.rename(folder / "policy.yaml")
    folder.chmod(0o777)
    bad = finding(path)
    assert isinstance(bad, Bad)
    assert bad.error.isprintable()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"mode: deny-all\nmode: allow-all", b"[" * 100_000])
def test_what_is_no_policy_is_bad(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert isinstance(finding(path), Bad)


def test_a_parser_that_fails_is_a_bad_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr("box_policy.control.policy_file.parse_document", fail)
    bad = finding(path)
    assert isinstance(bad, Bad)
    assert "RecursionError" in bad.error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/a/policy.yaml", "/a/policy.yaml"),
        ("/a/é", "/a/é"),
        ("/a/\x1b[31m\n", r"/a/\x1b[31m\n"),
        (os.fsdecode(b"/a/\xff"), r"/a/\xff"),
    ],
)
def test_a_path_is_shown_so_that_no_terminal_obeys_it(name: str, text: str) -> None:
    assert shown(Path(name)) == text
