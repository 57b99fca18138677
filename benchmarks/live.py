"""What a change of policy costs while a box is at work: ``python -m benchmarks.live``.

Needs Linux and the right to make namespaces: root's, or anybody's where user namespaces are open. Takes
less than a minute and leaves nothing behind. The gate is a process of its own behind a redirect, with a
control endpoint on a unix socket and a policy file. Ends with 1 if something happened that must not.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.rig.assembly import Cpus
from benchmarks.rig.live import mixing, revocation, switching, windows
from benchmarks.rig.live.bench import Bench, Count, Figure, Timing
from benchmarks.rig.orders import LoadError
from benchmarks.rig.process import BenchmarkError, busy_seconds, cpu_seconds
from tests.lab.namespace import LabUnavailable, enter

type Measurement = Callable[[Bench], Iterable[Figure]]

MEASUREMENTS: Final[dict[str, Measurement]] = {
    "put": switching.by_put,
    "file": switching.by_file,
    "mixing": mixing.mixing,
    "windows": windows.windows,
    "revocation": revocation.revocation,
}


def measure(cpus: Cpus, chosen: Sequence[str], console: Console) -> tuple[list[Figure], float]:
    """All that was chosen, on one gate; and the share of the CPUs that other programs used meanwhile."""
    figures: list[Figure] = []
    usable = sorted(os.sched_getaffinity(0))
    with console.status("") as status, Bench.start(cpus) as bench:
        programs = (os.getpid(), bench.gate.pid, bench.rig.box.pid, bench.rig.origin.pid)

        def used_by_others() -> tuple[float, float]:
            own = sum(map(cpu_seconds, programs))
            return sum(map(busy_seconds, usable)) - own, time.monotonic() * len(usable)

        before, started = used_by_others()
        for name in chosen:
            status.update(name)
            figures += MEASUREMENTS[name](bench)
        after, ended = used_by_others()
    return figures, (after - before) / (ended - started)


def tables(figures: Sequence[Figure]) -> Iterator[Table]:
    """What took how long, and what happened how often."""
    timings = Table("milliseconds", title="From a change of policy to its effect")
    for title in ("times", "p50", "p99", "longest", "target"):
        timings.add_column(title, justify="right")
    counts = Table("", "count", "must be")
    counts.columns[1].justify = counts.columns[2].justify = "right"
    for figure in figures:
        style = "bold red" if figure.missed else ""
        match figure:
            case Timing(name, seconds, target):
                timings.add_row(
                    name,
                    f"{len(seconds):,}",
                    *(f"{figure.percentile(share) * 1000:.2f}" for share in (0.5, 0.99, 1)),
                    "" if target is None else f"{target * 1000:.0f}",
                    style=style,
                )
            case Count(name, value, must_be):
                wanted = "" if must_be is None else f"{must_be:,}"
                counts.add_row(name, f"{value:,.0f}", wanted, style=style)
    yield timings
    yield counts


def main() -> None:
    """Measure, print the tables, and write the figures if a file is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("measurement", nargs="*", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    arguments = parser.parse_args()
    chosen = arguments.measurement or list(MEASUREMENTS)
    if not MEASUREMENTS.keys() >= set(chosen):
        parser.error(f"there are {', '.join(MEASUREMENTS)}")
    console = Console()
    # So that whatever was started is ended and removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cpus = Cpus.usable()
    load, started = os.getloadavg()[0], time.monotonic()
    try:
        enter()
        figures, others = measure(cpus, chosen, console)
    except (LabUnavailable, BenchmarkError, LoadError) as error:
        sys.exit(f"nothing measured: {error}")
    elapsed = time.monotonic() - started
    for table in tables(figures):
        console.print(table)
    for figure in figures:
        if isinstance(figure, Count) and figure.missed:
            console.print(*figure.detail, sep="\n", markup=False)
    console.print(
        f"{elapsed:.0f} s. Other programs used {others:.0%} of the CPUs meanwhile; "
        f"the load before was {load:.2f}."
    )
    if arguments.json is not None:
        report: dict[str, Any] = {
            "machine": {
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "pinned": asdict(cpus),
                "python": platform.python_version(),
                "load_before": load,
                "others_busy": others,
            },
            "figures": [asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if any(isinstance(figure, Count) and figure.missed for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
