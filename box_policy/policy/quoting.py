"""How a stranger's text is shown in a message: quoted, bounded, with nothing a terminal would obey."""

_SHOWN = 80


def quoted(text: str) -> str:
    """``text`` in double quotes, at most 80 characters of it, escaped unless all are printable."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return f'"{shown}"'
