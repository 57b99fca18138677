"""What a gate answered, fit to be shown.

Records are escaped where they are made. It is done here once more: a gate may be of another version, or
no gate at all, and nothing that a box thought up may move a terminal's cursor.
"""

import json
from datetime import datetime


def printable(value: object) -> str:
    """``value`` as printable ASCII; all else, line ends too, as backslash escapes."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)


def json_line(document: str, parsed: object) -> str:
    """A JSON document as it came, unless that isn't one line of printable ASCII; then written anew."""
    return document if document.isascii() and document.isprintable() else json.dumps(parsed)


def local_time(moment: object) -> str:
    """A moment in ISO 8601 as the time of day here, with the date unless that is today's."""
    try:
        local = datetime.fromisoformat(str(moment)).astimezone()
    except (ValueError, OverflowError, OSError):
        return printable(moment)
    today = local.date() == datetime.now(local.tzinfo).date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def listed(names: list[str]) -> str:
    """Names in a sentence; of many, the first."""
    shown = ", ".join(printable(name) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
