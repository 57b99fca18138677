"""Which gate a command speaks to, and how it ends if that can't be."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from box_policy.cli.errors import FAILURE, USAGE, fail
from box_policy.cli.shown import listed, printable
from box_policy.control.http.address import ControlError, parse_control_address
from box_policy.control.http.token import VARIABLE as TOKEN_VARIABLE
from box_policy.control.http.token import read_token

if TYPE_CHECKING:
    # httpx takes longer to import than most commands do.
    from box_policy.cli.client import Client

ADDRESS_VARIABLE: Final = "BOX_POLICY_CONTROL"
SERVICE_KEY_VARIABLE: Final = "BOX_POLICY_API_KEY"
"""What a service of boxes takes for its control API, too."""
DEFAULT_BOX: Final = "default"
READER_GONE: Final = 128 + signal.SIGPIPE
"""Exit status once nobody reads the output any more: what a shell shows of programs that SIGPIPE ended."""

ControlOption = Annotated[
    str | None,
    typer.Option(
        "--control",
        metavar="ADDRESS",
        envvar=ADDRESS_VARIABLE,
        help="The gate's control endpoint: unix:/path, /path, 127.0.0.1:port or [::1]:port.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"What holds the token; without it {TOKEN_VARIABLE}."),
]
BoxOption = Annotated[
    str | None,
    typer.Option("--box", "-b", metavar="BOX", help="Which box; without it the only one, or default."),
]


@contextlib.contextmanager
def gate(control: str | None, token_file: Path | None, *, quiet: bool = False) -> Iterator["Client"]:
    """A client of the gate that was named. Whatever goes wrong with it ends the command, with a message
    unless it is to be ``quiet``."""
    from box_policy.cli.client import Client, RemoteError

    try:
        address = parse_control_address(control or default_address())
        token = _token(token_file)
    except ControlError as error:
        fail(str(error), USAGE)
    try:
        with Client(address, token) as client:
            yield client
    except RemoteError as error:
        if quiet:
            raise typer.Exit(error.status) from None
        fail(str(error), error.status)
    except RecursionError:
        fail(f"what {address} answers is nested too deeply to be shown", FAILURE)
    except OSError as error:
        # What is left of the output would be written at exit, fail again, and change the status.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(READER_GONE) from None
        fail(f"standard output: {error.strerror or error}", FAILURE)


def default_address() -> str:
    """Where this user's gate listens unless it is told otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    mine = os.geteuid() != 0 and Path(runtime).is_absolute()
    return f"{runtime if mine else '/run'}/box-policy/control.sock"


def the_box(client: "Client", wanted: str | None) -> str:
    """The id of the box that is meant. Ends the command if there is none such."""
    known = [box["id"] for box in client.boxes()]
    if wanted is None:
        found = DEFAULT_BOX if DEFAULT_BOX in known else known[0] if len(known) == 1 else None
        reason = "which box? Name one with --box"
    else:
        found = wanted if wanted in known else None
        reason = f"there is no box {printable(wanted)}"
    if found is None:
        fail(f"{reason}: {the_boxes_are(known)}", USAGE)
    return found


def the_boxes_are(known: list[str]) -> str:
    """What somebody should know who has named none of them."""
    return f"the boxes are {listed(known)}" if known else "the gate has none"


def _token(file: Path | None) -> str | None:
    token = read_token(file, os.environ) or os.environ.get(SERVICE_KEY_VARIABLE) or None
    if token is not None and not all("!" <= c <= "~" for c in token):
        # It would be part of a header.
        raise ControlError(f"{file or TOKEN_VARIABLE}: a token has printable ASCII characters, and no spaces")
    return token
