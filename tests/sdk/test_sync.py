"""The synchronous client is the asynchronous one, written by a script."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_files_are_up_to_date() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "make_sync"), "--check"]
    made = subprocess.run(check, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert made.returncode == 0, made.stderr


def test_nothing_in_them_waits_by_await() -> None:
    for path in (ROOT / "box_policy" / "sdk" / "_sync").glob("*.py"):
        source = path.read_text()
        header, code = source.split("\n", 1)
        assert header.startswith("# Written by scripts/make_sync")
        for word in ("async ", "await ", "asyncio", "Async"):
            assert word not in code.replace("``AsyncBox``", ""), f"{path.name}: {word}"
