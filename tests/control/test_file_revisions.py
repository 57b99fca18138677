"""What a new revision of a policy file changes, and what is said of one that doesn't count."""

import os
from pathlib import Path

import pytest

from box_policy.audit.records import Outcome
from box_policy.control.files import policy_files
from box_policy.policy.model import NetworkPolicy
from tests.control.gate_with_files import (
    BAD,
    DENY,
    OPEN,
    Files,
    no_events,
    only,
    replace,
    rounds,
    until,
    watching,
)

REFUSED, MISSING = Outcome.REFUSED, Outcome.MISSING
POLICY = NetworkPolicy.parse({"mode": "custom", "allowed_domains": ["put.test"]})


def policies(files: Files) -> dict[str, str]:
    return {box.box: files.policy(box.box) for box in files.store}


# One box's file


async def test_a_good_revision_is_put_once(files: Files, folder: Path) -> None:
    replace(folder / "web.yaml", OPEN)
    await until(lambda: files.policy() == "allow-all")
    await rounds(files)
    assert files.generation() == 2
    assert [new.box for new in files.put[3:]] == ["web"]
    assert files.unhappy() == []


async def test_a_bad_one_changes_nothing_and_is_recorded_once(files: Files, folder: Path) -> None:
    (folder / "web.yaml").write_text(BAD)
    await until(lambda: files.status("web.yaml").state == "refused")
    status = files.status("web.yaml")
    await rounds(files)
    assert files.unhappy() == [("web", REFUSED, 1)]
    assert files.policy() == "web.test"
    assert files.status("web.yaml") == status
    record = files.records[-1]
    assert (record.source, record.detail) == (str(folder / "web.yaml"), status.error)
    assert record.detail.startswith(f"{folder}/web.yaml:1:")


async def test_each_bad_one_is_recorded(files: Files, folder: Path) -> None:
    for number in range(1, 4):
        replace(folder / "web.yaml", f"mode: bad-{number}")
        await until(lambda number=number: len(files.unhappy()) == number)  # type: ignore[misc]
    assert files.generation() == 1


async def test_mended_by_what_counts_already_nothing_is_put(files: Files, folder: Path) -> None:
    (folder / "web.yaml").write_text(BAD)
    await until(lambda: files.status("web.yaml").state == "refused")
    (folder / "web.yaml").write_text(only("web.test"))
    await until(lambda: files.status("web.yaml").state == "ok")
    assert files.status("web.yaml").error is None
    assert len(files.put) == 3
    (folder / "web.yaml").write_text(BAD)
    await until(lambda: files.unhappy() == [("web", REFUSED, 1)] * 2)


async def test_mended_by_another_that_is_put(files: Files, folder: Path) -> None:
    (folder / "web.yaml").write_text(BAD)
    await until(lambda: files.status("web.yaml").state == "refused")
    (folder / "web.yaml").write_text(OPEN)
    await until(lambda: files.status("web.yaml").state == "ok")
    assert (files.policy(), files.generation()) == ("allow-all", 2)


async def test_what_cannot_be_trusted_is_as_bad(files: Files, folder: Path) -> None:
    loose = folder / "loose"
    loose.write_text(OPEN)
    loose.chmod(0o666)
    loose.replace(folder / "web.yaml")
    await until(lambda: files.status("web.yaml").state == "refused")
    await rounds(files)
    assert files.unhappy() == [("web", REFUSED, 1)]
    assert files.policy() == "web.test"
    (folder / "web.yaml").chmod(0o644)
    await until(lambda: files.policy() == "allow-all")


@pytest.mark.parametrize("kind", ["fifo", "directory", "loop", "zero", "sparse"])
async def test_so_is_what_is_no_file(files: Files, folder: Path, kind: str) -> None:
    new, path = folder / "new", folder / "web.yaml"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(new, 0o600)
    elif kind == "directory":
        (folder / "sub").mkdir()
        new.symlink_to("sub")
    elif kind == "sparse":
        new.touch()
        os.truncate(new, 1 << 30)
    else:
        new.symlink_to("/dev/zero" if kind == "zero" else "web.yaml")
    new.rename(path)
    await until(lambda: files.status("web.yaml").state == "refused")
    assert files.policy() == "web.test"


async def test_a_file_that_goes_leaves_its_policy_behind(files: Files, folder: Path) -> None:
    """The box doesn't fall back to the default, which may allow more."""
    (folder / "web.yaml").unlink()
    await until(lambda: files.status("web.yaml").state == "missing")
    replace(folder / "default.yaml", OPEN)
    await until(lambda: files.policy("db") == "allow-all")
    await rounds(files)
    assert files.unhappy() == [("web", MISSING, 1)]
    assert files.policy() == "web.test"
    (folder / "web.yaml").write_text(only("web.test"))
    await until(lambda: files.status("web.yaml").state == "ok")
    assert files.generation() == 1


async def test_what_others_put_stays_until_the_file_changes(files: Files, folder: Path) -> None:
    await files.store.put("web", POLICY, source="control")
    await rounds(files)
    assert files.policy() == "put.test"
    replace(folder / "web.yaml", only("web.test") + " ")
    await until(lambda: files.policy() == "web.test")
    assert files.generation() == 3


async def test_it_stays_while_the_file_is_bad_or_goes_and_comes(files: Files, folder: Path) -> None:
    await files.store.put("web", POLICY, source="control")
    (folder / "web.yaml").write_text(BAD)
    await until(lambda: files.status("web.yaml").state == "refused")
    (folder / "web.yaml").unlink()
    await until(lambda: files.status("web.yaml").state == "missing")
    (folder / "web.yaml").write_text(only("web.test"))
    await until(lambda: files.status("web.yaml").state == "ok")
    await rounds(files)
    assert files.policy() == "put.test"
    assert files.unhappy() == [("web", REFUSED, 2), ("web", MISSING, 2)]


# Boxes and the default


async def test_the_default_is_that_of_every_box_without_a_file(files: Files, folder: Path) -> None:
    replace(folder / "default.yaml", DENY)
    await until(lambda: files.policy("mail") == "deny-all")
    assert policies(files) == {"db": "deny-all", "mail": "deny-all", "web": "web.test"}


async def test_a_bad_default_is_recorded_for_each_of_them(files: Files, folder: Path) -> None:
    replace(folder / "default.yaml", BAD)
    await until(lambda: files.status("default.yaml").state == "refused")
    (folder / "default.yaml").unlink()
    await until(lambda: files.status("default.yaml").state == "missing")
    assert files.unhappy() == [
        ("db", REFUSED, 1),
        ("mail", REFUSED, 1),
        ("db", MISSING, 1),
        ("mail", MISSING, 1),
    ]


async def test_a_box_gets_a_file_of_its_own(files: Files, folder: Path) -> None:
    (folder / "db.yaml").write_text(only("db.test"))
    await until(lambda: files.policy("db") == "db.test")
    replace(folder / "default.yaml", DENY)
    await until(lambda: files.policy("mail") == "deny-all")
    assert policies(files) == {"db": "db.test", "mail": "deny-all", "web": "web.test"}


async def test_but_goes_on_with_the_default_while_that_is_bad(files: Files, folder: Path) -> None:
    (folder / "db.yaml").write_text(BAD)
    await until(lambda: files.states().get("db.yaml") == "refused")
    replace(folder / "default.yaml", DENY)
    await until(lambda: files.policy("db") == "deny-all")
    assert files.unhappy() == [("db", REFUSED, 1)]


async def test_a_new_file_makes_a_new_box(files: Files, folder: Path) -> None:
    replace(folder / "new.json", only("new.test"))
    await until(lambda: "new" in files.store)
    assert (files.policy("new"), files.generation("new")) == ("new.test", 1)
    await until(lambda: files.status("new.json").box == "new")


async def test_a_new_file_that_is_bad_makes_none(files: Files, folder: Path) -> None:
    replace(folder / "new.json", BAD)
    await until(lambda: files.states().get("new.json") == "refused")
    assert files.unhappy() == [("new", REFUSED, 0)]
    assert "new" not in files.store
    (folder / "new.json").unlink()
    await until(lambda: "new.json" not in files.states())


async def test_boxes_of_others_are_let_be(files: Files, folder: Path) -> None:
    files.store.create("theirs", POLICY, source="control")
    replace(folder / "default.yaml", DENY)
    await until(lambda: files.policy("mail") == "deny-all")
    assert files.policy("theirs") == "put.test"


async def test_a_box_that_others_remove_does_not_come_back_by_the_default(files: Files, folder: Path) -> None:
    files.store.remove("db", source="test")
    replace(folder / "default.yaml", DENY)
    await until(lambda: files.policy("mail") == "deny-all")
    await rounds(files)
    assert "db" not in files.store


async def test_a_box_and_its_file_that_have_gone_are_forgotten(files: Files, folder: Path) -> None:
    files.store.remove("web", source="test")
    (folder / "web.yaml").unlink()
    await until(lambda: "web.yaml" not in files.states())


async def test_a_file_that_is_no_boxs_is_refused_once(files: Files, folder: Path) -> None:
    (folder / "no box.yaml").write_text(OPEN)
    await until(lambda: files.states().get("no box.yaml") == "refused")
    await rounds(files)
    assert files.unhappy() == [("", REFUSED, 0)]
    assert files.status("no box.yaml").state == "refused"
    assert len(files.store) == 3
    (folder / "no box.yaml").unlink()
    await until(lambda: "no box.yaml" not in files.states())


async def test_two_files_for_a_box_are_refused_until_one_goes(files: Files, folder: Path) -> None:
    (folder / "web.json").write_text(OPEN)
    await until(lambda: files.status("web.yaml").state == "refused")
    await rounds(files)
    assert files.unhappy() == [("web", REFUSED, 1)]
    assert files.status("web.yaml").error == f"{folder}/web.json: there is also web.yaml; keep one"
    assert files.policy() == "web.test"
    (folder / "web.yaml").unlink()
    await until(lambda: files.policy() == "allow-all")
    await until(lambda: files.states() == {"web.json": "ok", "default.yaml": "ok"})


async def test_past_the_bound_new_files_wait_and_known_ones_go_on(
    files: Files, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_files, "MAX_FILES", 2)
    (folder / "a.yaml").write_text(OPEN)
    await until(lambda: folder.name in files.states())
    assert files.status(folder.name).error == f"{folder}: more than 2 policy files"
    assert files.unhappy() == [("", REFUSED, 0)]
    (folder / "a.yaml").unlink()
    await until(lambda: folder.name not in files.states())
    assert "a" not in files.store


# One file


async def test_one_file_serves_each_box_and_is_recorded_for_each(folder: Path) -> None:
    path = folder / "web.yaml"
    async with watching(Files(path, ["one", "two"], poll=0.02, awatch=no_events)) as files:
        replace(path, DENY)
        await until(lambda: set(policies(files).values()) == {"deny-all"})
        replace(path, BAD)
        await until(lambda: len(files.unhappy()) == 2)
        assert files.unhappy() == [("one", REFUSED, 2), ("two", REFUSED, 2)]
        assert files.states() == {"web.yaml": "refused"}


async def test_an_empty_file_is_a_bad_one(files: Files, folder: Path) -> None:
    (folder / "web.yaml").write_text("")
    await until(lambda: files.status("web.yaml").state == "refused")
    assert "the document is empty" in (files.status("web.yaml").error or "")
