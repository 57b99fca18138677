"""Boxes through the SDK: how long the first takes, the next, and a hundred at once; and what one costs.

    python -m benchmarks.service

Everything is real: the SDK starts the service, and each box runs a program. Needs no network.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from box_policy import Box

NEXT = 50
AT_ONCE = 100
CREATORS = 16
"""Threads that make boxes at once."""

FIRST_TARGET = 1.5
NEXT_TARGET = 0.030
AT_ONCE_TARGET = 5.0
"""Seconds."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def create() -> Box:
    return Box.create(network_policy="deny-all")


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
    return found


def memory() -> int:
    """KiB that the service and its boxes hold, shared pages counted once (PSS, proc_pid_smaps(5))."""
    total = 0
    for pid in descendants(int(Path("/proc/self").resolve().name)):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def milliseconds(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):6.1f} ms  (worst {1e3 * max(seconds):.1f})"


def main() -> None:
    """Measure, print, and say by the exit status whether the targets are met."""
    begin = time.perf_counter()
    first = create()
    first_box = time.perf_counter() - begin
    first.exec.command("true")
    first_program = time.perf_counter() - begin
    created, started, deleted = [], [], []
    for _ in range(NEXT):
        begin = time.perf_counter()
        box = create()
        created.append(time.perf_counter() - begin)
        started.append(timed(lambda box=box: box.exec.command("true")))  # type: ignore[misc]
        deleted.append(timed(box.delete))
    before = memory()
    begin = time.perf_counter()
    with ThreadPoolExecutor(CREATORS) as pool:
        boxes = list(pool.map(lambda _: create(), range(AT_ONCE)))
    at_once = time.perf_counter() - begin
    a_box = (memory() - before) / AT_ONCE
    all_deleted = timed(lambda: Box.delete_boxes(box_ids=[box.id for box in boxes]))
    print(f"first box, with the start of the service  {first_box:.3f} s")
    print(f"  its first program has run at            {first_program:.3f} s")
    print(f"{NEXT} more, each                             {milliseconds(created)}")
    print(f"  its first program                       {milliseconds(started)}")
    print(f"  its end                                 {milliseconds(deleted)}")
    print(f"{AT_ONCE} at once, from {CREATORS} threads               {at_once:.3f} s")
    print(f"  all deleted                             {all_deleted:.3f} s")
    print(f"memory: an idle box {a_box / 1024:.2f} MiB; the service, and one box, {before / 1024:.0f} MiB")
    first.delete()
    if first_box > FIRST_TARGET or statistics.median(created) > NEXT_TARGET or at_once > AT_ONCE_TARGET:
        sys.exit("slower than it should be")


if __name__ == "__main__":
    main()
