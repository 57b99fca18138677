"""Records: fixed words, escaped names, bounded size."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.audit.records import MAX_NAME, Entry, Event, Protocol, Record, escape_name
from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.policy.reasons import Reason

DOCUMENT = Path(__file__).parents[2] / "docs" / "records.md"


def record(**fields: object) -> Record:
    defaults: dict[str, object] = {
        "event": Event.DECISION,
        "connection": 1,
        "box": "b",
        "generation": 1,
        "protocol": Protocol.TLS,
        "allowed": False,
        "reason": Reason.NAME_NOT_ALLOWED,
    }
    return Record(**(defaults | fields))  # type: ignore[arg-type]


def test_every_reason_is_documented() -> None:
    text = DOCUMENT.read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


@given(st.one_of(st.binary(max_size=400), st.text(max_size=400)))
def test_a_name_can_not_break_a_line_or_a_terminal(name: bytes | str) -> None:
    escaped = escape_name(name)
    assert len(escaped) <= MAX_NAME
    assert escaped.isascii()
    assert escaped.isprintable()
    assert " " not in escaped


@given(st.binary(max_size=400))
def test_a_record_is_one_line_of_ascii_json(name: bytes) -> None:
    line = record(name=escape_name(name), detail=escape_name(name)).as_json()
    assert line.isascii()
    assert "\n" not in line
    assert len(line) < 4096
    assert json.loads(line)["verdict"] == "deny"


def test_the_log_is_appended_to_and_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        log = JsonLines(path)
        log(record())
        log.close()
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == ["name_not_allowed"] * 2
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        JsonLines(link)


def test_a_sink_that_fails_is_not_ignored() -> None:
    def broken(_: Entry) -> None:
        raise RuntimeError("no sink")

    with pytest.raises(RuntimeError):
        Audit(broken)(record())


def test_the_console_says_who_wanted_what_and_why() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console(record(name="evil.test", claimed_address="51.81.66.66", claimed_port=443))
    console.close()
    assert stream.getvalue() == "deny  b tls evil.test:443 (name_not_allowed)\n"


def test_a_log_that_fails_for_a_while_goes_on_and_says_what_is_missing() -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    console = Console(disk)
    console(record(name="one.test"))
    while console.lost == 0:
        pass
    disk.full = False
    console(record(name="two.test"))
    console.close()
    assert "(1 decisions not shown)" in disk.getvalue()
    assert "two.test" in disk.getvalue()
