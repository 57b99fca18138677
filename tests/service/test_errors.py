"""Errors: what the page for users says of them is so."""

import errno
import re
from pathlib import Path

import pytest

from box_policy.control.http.answers import ERRORS
from box_policy.service import errors

PAGE = Path(__file__).parents[2] / "docs/service.md"
OF_THE_CONTROL_API_ALONE = {
    "generation_stale",
    "precondition_invalid",
    "query_invalid",
    "too_many_streams",
}


def documented() -> dict[str, set[int]]:
    """The codes in the page's table of errors, with the statuses of their rows."""
    table = PAGE.read_text().partition("### Errors")[2]
    found: dict[str, set[int]] = {}
    for statuses, text in re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", table, re.MULTILINE):
        for code in re.findall(r"`([a-z_]+)`", text):
            found.setdefault(code, set()).update(map(int, statuses.split(",")))
    return found


def test_every_code_is_on_the_page_with_its_status() -> None:
    expected = dict(errors.STATUSES)
    expected |= {code: status for code, (status, _) in ERRORS.items() if code not in OF_THE_CONTROL_API_ALONE}
    for number in (errno.ENOENT, errno.EACCES, errno.EFBIG, errno.ENOSPC, errno.EISDIR):
        refused = errors.file_error(OSError(number, "no", "/x"))
        expected[refused.code] = refused.status
    found = documented()
    assert set(found) == set(expected)
    assert {code for code, status in expected.items() if status not in found[code]} == set()


@pytest.mark.parametrize("error", [OSError(), OSError("text"), OSError(errno.EIO, "text")])
def test_an_error_that_says_little(error: OSError) -> None:
    assert errors.file_error(error).status == 409
