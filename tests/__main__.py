"""The whole suite, three directories at a time: ``python -m tests [OPTIONS OF PYTEST]``.

Much of it waits for something, so on two processors it takes less than half as long. Not with
pytest-xdist: its workers have a second thread from the start, and a process that has several can't move into
the test network's namespace.
"""

import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_TESTS: Final = Path(__file__).parent
_LONGEST_FIRST: Final = ("containers", "adversary", "sandbox", "gate", "cli", "service", "control", "sdk")
_AT_ONCE: Final = 3
_COUNTED: Final = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)\b")
_NO_TESTS: Final = 5
"""pytest's exit status."""


def _run(part: Path) -> tuple[Path, int, str]:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], str(part)]
    done = subprocess.run(
        command, cwd=_TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return part, done.returncode, done.stdout.decode(errors="replace")


def _parts() -> list[Path]:
    found = [path for path in sorted(_TESTS.iterdir()) if any(path.glob("test_*.py"))]
    order = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    found.sort(key=lambda path: order.get(path.name, len(order)))
    return [*found, *_TESTS.glob("test_*.py")]


def main() -> int:
    """Show what each part has put out, and all in one line. The exit status is 1 if any failed."""
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failed = []
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        for part, status, output in workers.map(_run, _parts()):
            print(output, flush=True)
            lines = output.strip().splitlines()
            counts.update({kind: int(count) for count, kind in _COUNTED.findall(lines[-1] if lines else "")})
            if status not in (0, _NO_TESTS):
                failed.append(part.name)
    taken = time.monotonic() - started
    print(f"{', '.join(f'{count} {kind}' for kind, count in counts.items())} in {taken:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
