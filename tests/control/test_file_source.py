"""Policies from files at start: which box gets which, and what keeps the gate from starting."""

import threading
import time
from pathlib import Path

import pytest

from box_policy.control import policy_files
from box_policy.control.file_source import FileSource
from box_policy.control.policy_file import PolicyFileError
from box_policy.control.policy_files import name_of
from box_policy.control.trusted_file import SETTLE
from box_policy.gate import mode
from tests.control.gate_with_files import BAD, DENY, OPEN, Files, only


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o755)
    return folder


def errors(files: Files) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        files.source.load()
    assert len(files.store) == 0, "nothing of it is in force"
    return str(caught.value).splitlines()


async def test_one_file_is_every_boxs_policy(folder: Path) -> None:
    path = folder / "policy.yaml"
    path.write_text(DENY)
    files = Files(path, ["one", "two"])
    files.source.load()
    assert [(box.box, box.policy.kind, box.generation, box.source) for box in files.store] == [
        ("one", "deny-all", 1, str(path)),
        ("two", "deny-all", 1, str(path)),
    ]
    (status,) = files.source.status()
    assert (status.path, status.box, status.state, status.error) == (str(path), None, "ok", None)
    assert time.time() - status.since < 5


async def test_a_directory_has_a_file_a_box_and_a_default(folder: Path) -> None:
    (folder / "web.yaml").write_text(only("web.test"))
    (folder / "spare.json").write_text(only("spare.test"))
    (folder / "default.yml").write_text(DENY)
    files = Files(folder, ["web", "db"])
    files.source.load()
    assert {box.box: files.policy(box.box) for box in files.store} == {
        "web": "web.test",
        "spare": "spare.test",
        "db": "deny-all",
    }
    assert {status.box for status in files.source.status()} == {"web", "spare", None}


async def test_the_default_makes_no_box_but_serves_one_of_that_name(folder: Path) -> None:
    (folder / "default.yaml").write_text(DENY)
    none, one = Files(folder, []), Files(folder, ["default"])
    none.source.load()
    one.source.load()
    assert len(none.store) == 0
    assert one.policy("default") == "deny-all"


async def test_a_directory_may_be_called_policy_yaml(folder: Path) -> None:
    folder = folder.rename(folder.with_name("policy.yaml"))
    (folder / "web.yaml").write_text(DENY)
    files = Files(folder)
    files.source.load()
    assert files.policy() == "deny-all"


@pytest.mark.parametrize(
    "name",
    [".web.yaml", "..data", "web.yaml~", ".web.yaml.swp", "#web.yaml#", "web.yaml.new", "web.YAML", "web"],
)
async def test_what_is_no_policy_file_is_ignored(folder: Path, name: str) -> None:
    assert name_of(name) is None
    (folder / "default.yaml").write_text(DENY)
    (folder / name).write_text(OPEN)
    files = Files(folder)
    files.source.load()
    assert files.policy() == "deny-all"
    assert files.states() == {"default.yaml": "ok"}


async def test_subdirectories_are_ignored(folder: Path) -> None:
    (folder / "default.yaml").write_text(DENY)
    (folder / "web.yaml").mkdir()
    (folder / "web.yaml" / "web.yaml").write_text(OPEN)
    files = Files(folder)
    files.source.load()
    assert files.policy() == "deny-all"


async def test_every_problem_is_a_line(folder: Path) -> None:
    (folder / "good.yaml").write_text(DENY)
    (folder / "bad.yaml").write_text(BAD)
    (folder / "loose.yaml").write_text(OPEN)
    (folder / "loose.yaml").chmod(0o666)
    (folder / "two.yaml").write_text(DENY)
    (folder / "two.json").write_text(DENY)
    (folder / "no box.yaml").write_text(DENY)
    (folder / "gone.yaml").symlink_to("nowhere")
    (folder / "huge.yaml").touch()
    with (folder / "huge.yaml").open("r+") as stream:
        stream.truncate(1 << 30)
    bad, *others = errors(Files(folder, []))
    assert bad.startswith(f"{folder}/bad.yaml:1:")
    assert others == [
        f"{folder}/gone.yaml: No such file or directory",
        f"{folder}/huge.yaml: it is larger than 8 MiB",
        f"{folder}/loose.yaml: others can write to it: chmod go-w {folder}/loose.yaml",
        f"{folder}/no box.yaml: no box can have this name: "
        "it has letters, digits, '.', '_' and '-', 64 at most, and begins with a letter or a digit",
        f"{folder}/two.json: there is also two.yaml; keep one",
    ]


async def test_a_box_without_a_policy_is_one(folder: Path) -> None:
    (folder / "web.yaml").write_text(DENY)
    assert errors(Files(folder, ["web", "db", "x"])) == [
        f"{folder}: the box db has no policy: there is neither db.yaml nor default.yaml",
        f"{folder}: the box x has no policy: there is neither x.yaml nor default.yaml",
    ]


async def test_nothing_there_is_one(folder: Path) -> None:
    assert errors(Files(folder / "none.yaml")) == [f"{folder}/none.yaml: No such file or directory"]


async def test_a_box_that_the_store_has_already_is_one(folder: Path) -> None:
    path = folder / "web.yaml"
    path.write_text(DENY)
    files = Files(path)
    files.source.load()
    again = FileSource(path, files.store, lambda record: None, boxes=["web"])  # type: ignore[arg-type]
    with pytest.raises(PolicyFileError, match="there is a box web already"):
        again.load()


async def test_a_directory_without_policies_is_none_if_no_box_needs_one(folder: Path) -> None:
    files = Files(folder, [])
    files.source.load()
    assert files.source.status() == []


async def test_too_many_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_files, "MAX_FILES", 3)
    for index in range(4):
        (folder / f"box{index}.yaml").write_text(DENY)
    assert errors(Files(folder, [])) == [f"{folder}: more than 3 policy files"]


async def test_a_file_that_is_being_written_is_waited_for(folder: Path) -> None:
    path = folder / "policy.yaml"
    stream = path.open("w")
    stream.write(OPEN)
    stream.flush()

    def finish() -> None:
        stream.seek(0)
        stream.write(only("whole.test"))
        stream.close()

    writer = threading.Timer(0.1, finish)
    writer.start()
    files = Files(path)
    files.source.load()
    writer.join()
    assert files.policy() == "whole.test"


async def test_but_not_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("box_policy.control.file_source._START_WAIT", 0.1)
    path = folder / "policy.yaml"
    with path.open("w") as stream:
        stream.write(OPEN)
        stream.flush()
        assert errors(Files(path)) == [f"{path}: somebody is writing to it"]


async def test_without_leases_many_files_wait_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("box_policy.control.trusted_file._LEASED", frozenset())
    for index in range(100):
        (folder / f"box{index}.yaml").write_text(DENY)
    files = Files(folder, [])
    began = time.monotonic()
    files.source.load()
    assert SETTLE <= time.monotonic() - began < 10 * SETTLE
    assert len(files.store) == 100


async def test_names_of_files_are_ids_of_boxes() -> None:
    """As the gate itself has them."""
    assert policy_files._BOX_ID.pattern == mode._BOX_ID.pattern
