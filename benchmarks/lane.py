"""What a connection through the lane costs, beside nginx on the same rig: ``python -m benchmarks.lane``.

Needs Linux and the right to make namespaces: root's, or anybody's where user namespaces are open. Takes
about a minute and a half and leaves nothing behind. Every proxy has one worker, on a CPU of its own, and is
started anew in each round; within a round they take turns.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.rig import plan, proxies
from benchmarks.rig.assembly import Cpus, Phase, Rig
from benchmarks.rig.process import BenchmarkError, memory
from tests.lab.namespace import LabUnavailable, enter

ROUNDS: Final = 5
PARALLEL: Final = 32
"""New connections under way at a time."""
CONNECTING: Final = 1.2
"""Seconds a round."""
STREAMING: Final = 0.7
"""Seconds a round of one stream down. Up goes as much as has come down."""
WARM_UP: Final = 0.2
IDLE: Final = 1000
FILLING: Final = 500
"""Idle connections besides, from before the memory is looked at."""
FULL: Final = 0.9
"""The share of its CPU from which on a program counts as the bottleneck."""

type Figures = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    name: str
    start: Callable[[Path, int | None], AbstractContextManager[int | None]]
    target: str = plan.ALLOWED
    only_connections: bool = False
    """Its streams and its memory are those of the line above."""


LANE: Final = (
    Variant("lane", partial(proxies.lane, log=False)),
    Variant("lane, JSON log", partial(proxies.lane, log=True), only_connections=True),
)
NGINX: Final = (
    Variant("nginx ssl_preread", partial(proxies.nginx, log=False)),
    Variant("nginx, access log", partial(proxies.nginx, log=True), only_connections=True),
)
NO_PROXY: Final = Variant("no proxy", lambda directory, cpu: nullcontext(), target=plan.DIRECT)


@dataclass(frozen=True)
class Column:
    """A figure as the table shows it."""

    metric: str
    title: str
    digits: int
    phase: str = ""
    """For a rate: the part of the round that it is of."""


COLUMNS: Final = (
    Column("connections_per_second", "connections\n/s", 0, "connections"),
    Column("connection_cpu_ms", "CPU ms\neach", 3),
    Column("connection_generator_cpu_ms", "generator's\nCPU ms each", 3),
    Column("down_gb_per_second", "down\nGB/s", 2, "down"),
    Column("down_cpu_s_per_gib", "CPU s\n/GiB", 2),
    Column("up_gb_per_second", "up\nGB/s", 2, "up"),
    Column("up_cpu_s_per_gib", "CPU s\n/GiB", 2),
    Column("idle_kb", "KB per idle\nconnection", 1),
    Column("base_rss_mb", "RSS\nMB", 1),
)


def measure(rig: Rig, variant: Variant) -> Figures:
    """One round of one variant."""
    with (
        tempfile.TemporaryDirectory(prefix="box-policy-benchmark-") as directory,
        variant.start(Path(directory), rig.cpus.proxy) as proxy,
    ):
        order = partial(rig.order, target=variant.target)
        phase = partial(rig.measure, proxy, target=variant.target)
        figures: Figures = {}
        if proxy is not None and not variant.only_connections:
            figures["base_rss_mb"] = memory(proxy).resident / 1e6
            # Before all else, since a connection that ends leaves memory for the next one. What the start has
            # left of it is filled first.
            order("keep", count=FILLING)
            before = memory(proxy).private
            order("keep", count=IDLE)
            figures["idle_kb"] = (memory(proxy).private - before) / 1024 / IDLE
            order("release")
        order("connections", parallel=PARALLEL, seconds=WARM_UP)
        figures |= _connections(phase("connections", parallel=PARALLEL, seconds=CONNECTING))
        if not variant.only_connections:
            figures |= _stream("down", down := phase("down", seconds=STREAMING))
            figures |= _stream("up", phase("up", size=int(down.answer["bytes"])))
        return figures


def _connections(phase: Phase) -> Figures:
    count, seconds = phase.answer["connections"], phase.answer["seconds"]
    figures = {
        "connections_per_second": count / seconds,
        "connection_generator_cpu_ms": phase.generator / count * 1000,
        "connection_segments_sent_again": phase.sent_again / count,
        **_busy("connections", phase),
    }
    if phase.proxy is not None:
        figures["connection_cpu_ms"] = phase.proxy / count * 1000
    return figures


def _stream(way: str, phase: Phase) -> Figures:
    size, seconds = phase.answer["bytes"], phase.answer["seconds"]
    figures = {f"{way}_gb_per_second": size / seconds / 1e9, **_busy(way, phase)}
    if phase.proxy is not None:
        figures[f"{way}_cpu_s_per_gib"] = phase.proxy / size * (1 << 30)
    return figures


def _busy(what: str, phase: Phase) -> Figures:
    figures = {
        f"{what}_generator_busy": phase.generator_busy,
        f"{what}_others_busy": phase.others_busy,
    }
    if phase.proxy_busy is not None:
        figures[f"{what}_proxy_busy"] = phase.proxy_busy
    return figures


def measure_all(
    rig: Rig, variants: Sequence[Variant], rounds: int, console: Console
) -> dict[str, list[Figures]]:
    """Every variant in every round, each round beginning with another one."""
    measured: dict[str, list[Figures]] = {variant.name: [] for variant in variants}
    with console.status("") as status:
        for number in range(rounds):
            turn = number % len(variants)
            for variant in (*variants[turn:], *variants[:turn]):
                status.update(f"round {number + 1} of {rounds}: {variant.name}")
                measured[variant.name].append(measure(rig, variant))
    return measured


def summary(rounds: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Median, least and most of every figure."""
    return {
        metric: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for metric in rounds[0]
        if (values := [figures[metric] for figures in rounds])
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Medians, and below each the least and the most."""
    printed = Table(
        "", title="New connections, streams and idle connections through one worker", show_lines=True
    )
    for column in COLUMNS:
        printed.add_column(column.title, justify="right")
    for name, metrics in results.items():
        printed.add_row(name, *(_cell(column, metrics) for column in COLUMNS))
    printed.caption = (
        "Median, and least-most of all rounds. *: the proxy's CPU was not full of it: the load generator, or "
        "other programs on that CPU, were the limit."
    )
    return printed


def _cell(column: Column, metrics: Mapping[str, Mapping[str, float]]) -> str:
    figures = metrics.get(column.metric)
    if figures is None:
        return ""
    busy = metrics.get(f"{column.phase}_proxy_busy")
    mark = "*" if busy is not None and busy["median"] < FULL else ""
    median, least, most = (f"{figures[key]:,.{column.digits}f}" for key in ("median", "min", "max"))
    return f"{median}{mark}\n[dim]{least}-{most}[/dim]"


def main() -> None:
    """Measure, print the table, and write the figures if a file is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lane", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"rounds of all variants (default: {ROUNDS})"
    )
    arguments = parser.parse_args()
    console = Console()
    # So that whatever was started is ended and removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    variants = [*LANE, *NGINX, NO_PROXY]
    if proxies.nginx_binary() is None:
        console.print(proxies.NGINX_IS_MISSING)
        variants = [*LANE, NO_PROXY]
    try:
        enter()
        with Rig(Cpus.usable()) as rig:
            started = time.monotonic()
            measured = measure_all(rig, variants, max(1, arguments.rounds), console)
            elapsed = time.monotonic() - started
    except (LabUnavailable, BenchmarkError) as error:
        sys.exit(f"nothing measured: {error}")
    results = {name: summary(rounds) for name, rounds in measured.items()}
    console.print(table(results))
    noise = statistics.median(
        share
        for rounds in measured.values()
        for figures in rounds
        for metric, share in figures.items()
        if metric.endswith("_others_busy")
    )
    console.print(f"{elapsed:.0f} s. Other programs used {noise:.0%} of the same CPUs meanwhile (median).")
    if arguments.json is not None:
        report = {
            "machine": _machine(rig.cpus),
            "settings": {
                "rounds": len(measured[variants[0].name]),
                "parallel": PARALLEL,
                "connecting_s": CONNECTING,
                "streaming_s": STREAMING,
                "idle_connections": IDLE,
            },
            "results": results,
            "rounds": measured,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _machine(cpus: Cpus) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "pinned": asdict(cpus),
        "python": platform.python_version(),
        "nginx": proxies.nginx_version(),
    }


if __name__ == "__main__":
    main()
