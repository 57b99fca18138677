"""The rig with a gate whose policies change, and what is measured on it."""

import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.rig import plan
from benchmarks.rig.assembly import Cpus, Rig
from benchmarks.rig.bulk import limit_stalls
from benchmarks.rig.live.operator import Operator, PolicyFile
from benchmarks.rig.live.outcomes import Conversation, Outcome
from benchmarks.rig.live.plan import CUSTOM, REDIRECTED
from benchmarks.rig.process import BenchmarkError, Program, python_module
from benchmarks.rig.proxies import wait_until_it_listens

_PATIENCE: Final = 5.0
"""Seconds within which a policy must take effect, and records must be written."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long something took, each time."""

    name: str
    seconds: Sequence[float]
    target: float | None = None
    """Seconds that the 99th percentile must not exceed; the longest, where there are fewer than 100."""

    def percentile(self, share: float) -> float:
        """By the nearest rank."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)]

    @property
    def missed(self) -> bool:
        return self.target is not None and self.percentile(0.99) > self.target


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened."""

    name: str
    value: float
    must_be: int | None = None
    detail: Sequence[str] = ()
    """A few of the cases, in words."""

    @property
    def missed(self) -> bool:
        return self.must_be is not None and self.value != self.must_be


type Figure = Timing | Count


class Probe:
    """Makes connections in the box's place, from this process, which then sees a change and its effect.

    A socket belongs for ever to the namespace in which it was made.
    """

    def __init__(self, box: int) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._box = os.open(f"/proc/{box}/ns/net", os.O_RDONLY)
        self._hello = plan.hello(plan.ANSWER)

    def close(self) -> None:
        os.close(self._home)
        os.close(self._box)

    def open(self) -> socket.socket:
        """A new one of the box's."""
        os.setns(self._box, os.CLONE_NEWNET)
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            os.setns(self._home, os.CLONE_NEWNET)
        limit_stalls(sock)
        return sock

    def converse(self, sock: socket.socket) -> Outcome:
        """A connection for the allowed name."""
        return Conversation(sock, plan.ALLOWED, self._hello).outcome()

    def until(self, wanted: Outcome) -> tuple[int, float]:
        """One connection after the other until one has that outcome.

        Returns how many had another, and when it ended. BenchmarkError if that goes on for seconds.
        """
        deadline = time.monotonic() + _PATIENCE
        others = 0
        while time.monotonic() < deadline:
            if self.converse(self.open()) is wanted:
                return others, time.monotonic()
            others += 1
        raise BenchmarkError(f"no connection was {wanted}")


@dataclass(frozen=True)
class Bench:
    """Everything that a measurement needs. The gate begins with the policy ``plan.CUSTOM``."""

    rig: Rig
    gate: Program
    control: Path
    file: PolicyFile
    probe: Probe
    _records: Path

    @classmethod
    @contextmanager
    def start(cls, cpus: Cpus) -> Iterator[Self]:
        """Start it all."""
        with ExitStack() as stack:
            rig = stack.enter_context(
                Rig(
                    cpus,
                    box="benchmarks.rig.live.box",
                    origin="benchmarks.rig.live.origin",
                    redirected=REDIRECTED,
                )
            )
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="box-policy-benchmark-")))
            (directory / "policy").mkdir()
            file = PolicyFile(directory / "policy" / "policy.yaml", CUSTOM)
            control, records = directory / "control.sock", directory / "records.jsonl"
            gate = stack.enter_context(
                python_module("benchmarks.rig.live.gate", file.path, control, records, cpu=cpus.proxy)
            )
            wait_until_it_listens(gate)
            probe = Probe(rig.box.pid)
            stack.callback(probe.close)
            if cpus.box is not None:  # not the gate's: this process is a part of the load generator
                os.sched_setaffinity(0, [cpus.box])
            yield cls(rig, gate, control, file, probe, records)

    def operator(self) -> Operator:
        """A new connection to the control endpoint."""
        return Operator(self.control)

    def records(self) -> "Records":
        """What the gate records from now on."""
        return Records(self._records, self._records.stat().st_size)


@dataclass
class Records:
    """A part of the gate's log."""

    path: Path
    _start: int
    entries: list[dict[str, Any]] = field(default_factory=list)

    def read_until(self, whole: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """All of them, as soon as that says that they are all; after a few seconds those that there are.

        BenchmarkError if some were lost.
        """
        deadline = time.monotonic() + _PATIENCE
        with self.path.open("rb") as file:
            file.seek(self._start)
            part = b""
            while True:
                part += file.read()
                *lines, part = part.split(b"\n")
                self.entries += map(json.loads, lines)
                if any(entry["event"] == "lost" for entry in self.entries):
                    raise BenchmarkError("the gate's log has lost records")
                if whole(self.entries) or time.monotonic() > deadline:
                    return self.entries
                time.sleep(0.02)
