"""What must not be in the directory that a box may write to, by whatever way it is reached."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from box_policy.cli.work_directory import control_socket, work_directory
from tests.control.reading import USER_NAMESPACE, in_child

type Checked = Callable[[str | Path], str]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    return work


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    safe = tmp_path / "safe"
    safe.mkdir()
    (safe / "policy.yaml").write_text("mode: deny-all")
    return safe


@pytest.fixture
def checked(work: Path, capsys: pytest.CaptureFixture[str]) -> Checked:
    """What is said of a path; nothing if it may be used."""

    def checked(path: str | Path) -> str:
        try:
            assert work_directory(str(work), {"--watch": Path(path), "--log": None}) == work.resolve()
        except typer.Exit as end:
            assert end.exit_code == 2
        return capsys.readouterr().err

    return checked


REFUSED = "in the work directory the box could change it, or put its own there"


def test_what_is_elsewhere_may_be_used(checked: Checked, safe: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("safe")
    for path in ("policy.yaml", "none.yaml", "none/none.yaml", "../safe/policy.yaml"):
        assert checked(safe / path) == ""
        assert checked(link / path) == ""


@pytest.mark.parametrize(
    "path", ["policy.yaml", "sub/policy.yaml", "none/policy.yaml", "../work/sub/p", "sub/../p"]
)
def test_what_is_in_it_may_not(checked: Checked, work: Path, path: str) -> None:
    assert f"--watch {work / path}: {REFUSED}" in checked(work / path)


def test_nor_what_a_name_in_it_leads_to(checked: Checked, work: Path, safe: Path, tmp_path: Path) -> None:
    """The box can put another link, or directory, in its place."""
    (work / "file").symlink_to("../safe/policy.yaml")
    (work / "directory").symlink_to("../safe")
    (work / "absolute").symlink_to(safe)
    (tmp_path / "outside").symlink_to("work/directory/policy.yaml")
    (tmp_path / "twice").symlink_to("outside")
    for path in (
        work / "file",
        work / "directory" / "policy.yaml",
        work / "absolute" / "policy.yaml",
        work / "sub" / ".." / ".." / "safe" / "policy.yaml",
        tmp_path / "outside",
        tmp_path / "twice",
    ):
        assert REFUSED in checked(path), path


def test_from_the_directory_itself_the_one_above_is_reached(
    checked: Checked, work: Path, safe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    assert checked("../safe/policy.yaml") == ""
    assert REFUSED in checked("policy.yaml")
    monkeypatch.chdir(work / "sub")
    assert REFUSED in checked("../../safe/policy.yaml"), "the box can replace sub"


def test_a_second_name_may_be_in_it(checked: Checked, work: Path, safe: Path) -> None:
    os.link(safe / "policy.yaml", work / "policy.yaml")
    assert "a hard link" in checked(safe / "policy.yaml")


def test_links_that_never_end_are_refused(checked: Checked, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "too many symbolic links" in checked(tmp_path / "loop" / "policy.yaml")


BIND_MOUNTS = (
    USER_NAMESPACE
    + """
from box_policy.cli.work_directory import _problem
os.chdir(sys.argv[1])
source, target, workdir, path = sys.argv[2:]
for directory in (source, target):
    Path(directory).mkdir(parents=True, exist_ok=True) if "." not in directory else Path(directory).touch()
before = _problem(Path(path).absolute(), Path(workdir).resolve())
subprocess.run(["mount", "--bind", source, target], check=True)
print(before, "|", _problem(Path(path).absolute(), Path(workdir).resolve()))
"""
)


@pytest.mark.parametrize(
    ("source", "target", "workdir", "path", "shown"),
    [
        ("safe", "work/m", "work", "safe/policy.yaml", True),
        ("safe", "work/sub/m m", "work", "safe/policy.yaml", True),
        ("safe", "work/m", "work", "safe/none.yaml", True),
        ("safe/policy.yaml", "work/file.yaml", "work", "safe/policy.yaml", True),
        (".", "work/m", "work", "safe/policy.yaml", True),
        ("safe", "other", "other", "safe/policy.yaml", True),
        ("work/sub", "other", "work", "other/policy.yaml", True),
        ("work/sub", "safe/m", "work", "safe/m/policy.yaml", True),
        ("safe/deeper", "work/m", "work", "safe/policy.yaml", False),
        ("other", "work/m", "work", "safe/policy.yaml", False),
        ("work", "other", "work", "safe/policy.yaml", False),
    ],
)
def test_bind_mounts_are_seen_through(
    work: Path, safe: Path, tmp_path: Path, source: str, target: str, workdir: str, path: str, shown: bool
) -> None:
    before, after = in_child(BIND_MOUNTS, tmp_path, source, target, workdir, path).strip().split(" | ")
    assert before == "None"
    assert (after == REFUSED) == shown, after


@pytest.mark.parametrize(
    ("address", "path"),
    [(None, None), ("127.0.0.1:9090", None), ("/run/x", Path("/run/x")), ("unix:/run/x", Path("/run/x"))],
)
def test_the_file_of_a_control_address(address: str | None, path: Path | None) -> None:
    assert control_socket(address) == path


@pytest.mark.parametrize("option", ["--watch", "--log", "--control"])
def test_the_command_refuses_each(work: Path, safe: Path, option: str) -> None:
    (work / "config").symlink_to("../safe")
    options = ["--workdir", str(work), option, str(work / "config" / "policy.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "box_policy", "run", *options, "--", "true"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert REFUSED in done.stderr
