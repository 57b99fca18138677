"""The file that decisions are appended to: whose it is, and what it may be."""

import json
import os
import stat
from pathlib import Path

import pytest

from box_policy.audit.sinks import JsonLines
from tests.audit.test_records import record


def test_others_can_not_read_it(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        JsonLines(tmp_path / "log").close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["a directory", "a FIFO", "a device", "a link to nothing"])
def test_it_is_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    match kind:
        case "a directory":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path = Path("/dev/null")
        case "a link to nothing":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"\[Errno"):
        JsonLines(path)
    assert not (tmp_path / "elsewhere").exists()


def test_what_takes_its_place_is_not_written_to(tmp_path: Path) -> None:
    path, precious = tmp_path / "log", tmp_path / "precious"
    precious.write_text("mine")
    log = JsonLines(path)
    path.rename(tmp_path / "log.1")
    path.symlink_to(precious)
    log(record())
    log.close()
    assert precious.read_text() == "mine"
    assert json.loads((tmp_path / "log.1").read_text())["event"] == "decision"
