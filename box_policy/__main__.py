"""The ``box-policy`` command, also as ``python -m box_policy``."""

import os
import signal
import sys


def main() -> None:
    """Set the process up, then run the command. What takes time to import is imported only after that."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command has something to tidy up, Ctrl-C just ends it: no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    from box_policy.cli.main import app

    app(prog_name="box-policy")


def _open_standard_streams() -> None:
    """Open /dev/null for every standard stream that is closed.

    The next descriptors to be opened, those of the event loop, would get their numbers and be handed to a
    box in their place.
    """
    for fd, stream in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(fd, True)
            setattr(sys, stream, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))


if __name__ == "__main__":
    main()
