"""The whole suite, in two processes at a time: ``python -m tests [OPTIONS OF PYTEST]``.

Much of it waits for something, so on two processors it takes little more than half as long. Not with
pytest-xdist: its workers have a second thread from the start, and a process that has several can't move into
the test network's namespace.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

_TESTS: Final = Path(__file__).parent
_FIRST: Final = ("adversary", "cli", "fuzz", "gate", "lab")
"""Directories that take about as long as all the others together."""


def _start(parts: list[Path], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], *map(str, parts)]
    return subprocess.Popen(command, cwd=_TESTS.parent, stdout=output, stderr=output)


def main() -> int:
    """Show the first half as it goes, and then the other. The exit status is that of the worse."""
    first = [_TESTS / name for name in _FIRST]
    parts = [path for path in sorted(_TESTS.iterdir()) if path.is_dir() or path.name.startswith("test_")]
    others = [path for path in parts if path not in first and not path.name.startswith(("_", "."))]
    with tempfile.TemporaryFile() as output:
        both = _start(first, None), _start(others, output)
        try:
            status = [process.wait() for process in both]
        except KeyboardInterrupt:  # the terminal has told them, too
            status = [process.wait() for process in both]
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return max(map(abs, status))


if __name__ == "__main__":
    sys.exit(main())
