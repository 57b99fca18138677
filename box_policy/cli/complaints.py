"""What goes wrong in a process that serves, for whoever reads its stderr."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def complaining() -> Iterator[None]:
    """Show on stderr what goes wrong. mitmproxy takes the log for itself, and shows it to nobody."""
    complaints = logging.StreamHandler()
    complaints.setFormatter(logging.Formatter("box-policy: %(message)s"))
    complaints.setLevel(logging.WARNING)
    log = logging.getLogger("box_policy")
    log.addHandler(complaints)
    try:
        yield
    finally:
        log.removeHandler(complaints)
