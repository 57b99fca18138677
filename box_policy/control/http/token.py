"""The control endpoint's token, as both sides are given it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from box_policy.control.http.address import ControlError

VARIABLE: Final = "BOX_POLICY_CONTROL_TOKEN"
_MAX_SIZE: Final = 4096


def read_token(
    file: str | Path | None, environment: Mapping[str, str], *, variable: str = VARIABLE, word: str = "token"
) -> str | None:
    """The token in a file, or else in the environment, without the line's end; None if there is neither.

    Not from the command line, which everybody on the machine can read.

    Args:
        variable: its name in the environment.
        word: what people know it as.

    Raises:
        ControlError: the file can't be read, or what it holds is no token.
    """
    if not file:
        return environment.get(variable) or None
    try:
        with Path(file).expanduser().open("rb") as stream:
            content = stream.read(_MAX_SIZE + 1)
    except OSError as error:
        raise ControlError(f"{word} file {file}: {error.strerror}") from None
    token = content.decode("latin-1").strip()
    if not token or len(content) > _MAX_SIZE:
        raise ControlError(f"{word} file {file}: holds no {word}")
    return token
