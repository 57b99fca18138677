"""Policy files when something goes wrong inside: it is shown, logged once, and survived."""

import time
from pathlib import Path

import pytest

from box_policy.audit.records import Entry
from box_policy.policy.model import NetworkPolicy
from tests.control.gate_with_files import (
    BAD,
    OPEN,
    Files,
    no_events,
    only,
    replace,
    rounds,
    until,
    watching,
)


async def test_a_gate_that_fails_is_tried_again(
    files: Files, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.gate.broken = True
    replace(folder / "web.yaml", OPEN)
    await until(lambda: files.status("web.yaml").state == "refused")
    await rounds(files)
    error = f"{folder}/web.yaml: it can't be put in force: RuntimeError: the gate is broken"
    assert files.status("web.yaml").error == error
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    files.gate.broken = False
    await until(lambda: files.status("web.yaml").state == "ok")
    assert files.policy() == "allow-all"


async def test_a_sink_that_fails_ends_nothing(folder: Path) -> None:
    class Full(Files):
        def _record(self, record: Entry) -> None:
            raise OSError("the disk is full")

    async with watching(Full(folder, poll=0.02, awatch=no_events)) as files:
        (folder / "web.yaml").write_text(BAD)
        await until(lambda: files.status("web.yaml").state == "refused")
        (folder / "web.yaml").write_text(OPEN)
        await until(lambda: files.policy() == "allow-all")


async def test_whatever_else_fails_is_shown_logged_once_and_survived(
    files: Files, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no threads left")

    with monkeypatch.context() as patch:
        patch.setattr("box_policy.control.file_source.list_files", fail)
        await until(lambda: folder.name in files.states())
        assert files.status(folder.name).error == f"{folder}: RuntimeError: no threads left"
        since = time.monotonic()
        await until(lambda: time.monotonic() - since > 0.1)
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    await until(lambda: folder.name not in files.states())
    replace(folder / "web.yaml", OPEN)
    await until(lambda: files.policy() == "allow-all")


async def test_a_file_is_parsed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = NetworkPolicy.parse

    def parse(text: bytes, *, name: str) -> NetworkPolicy:
        parsed.append(text.decode())
        if b"some" in text:
            return real("nonsense")
        return real("deny-all")

    monkeypatch.setattr("box_policy.control.policy_file.parse_document", parse)
    path = folder / "web.yaml"
    async with watching(Files(path, poll=0.01, awatch=no_events)) as files:
        await rounds(files, 5)
        replace(path, BAD)
        await until(lambda: files.status("web.yaml").state == "refused")
        await rounds(files, 5)
        replace(path, only("web.test"))
        await until(lambda: files.status("web.yaml").state == "ok")
        await rounds(files, 5)
    assert parsed == [only("web.test"), BAD]
