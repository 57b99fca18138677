"""The rig put together: the box, the origin, and what an order to them costs everybody."""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.rig import plan
from benchmarks.rig.process import BenchmarkError, Program, busy_seconds, cpu_seconds, python_module


@dataclass(frozen=True)
class Cpus:
    """Which CPU each program is pinned to; None where there is only one."""

    proxy: int | None
    box: int | None
    origin: int | None

    @classmethod
    def usable(cls) -> Self:
        """A CPU of its own for the proxy; the load generator's two programs get one each, or share one."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) == 1:
            return cls(None, None, None)
        return cls(cpus[0], cpus[1], cpus[2] if len(cpus) > 2 else cpus[1])


@dataclass(frozen=True)
class Phase:
    """What came of one order, and the CPU seconds that it took."""

    answer: dict[str, float]
    proxy: float | None
    generator: float
    """The box's and the origin's."""
    proxy_busy: float | None
    """The share of its CPU that the proxy has used."""
    generator_busy: float
    """The same of the box and the origin, or of the busier one if each has its own CPU."""
    others_busy: float
    """The share of those CPUs that programs outside the rig have used."""
    sent_again: int
    """TCP segments, in all three namespaces."""


class Rig:
    """Three namespaces in a row, for the life of a ``with``. This process is in the middle one."""

    box: Program
    origin: Program

    def __init__(
        self,
        cpus: Cpus,
        *,
        box: str = "benchmarks.rig.box",
        origin: str = "benchmarks.rig.origin",
        redirected: Sequence[str] = (plan.ALLOWED,),
    ) -> None:
        """
        Args:
            box: the module that is the load generator.
            origin: the module that is the origin.
            redirected: the origin's addresses that lead to the proxy.
        """
        self.cpus = cpus
        self._modules = box, origin
        self._redirected = redirected
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # pyroute2 takes 130 ms to import, which the two programs need as well to start.
        with ExitStack() as stack:
            box, origin = self._modules
            self.box = stack.enter_context(python_module(box, cpu=self.cpus.box))
            self.origin = stack.enter_context(python_module(origin, cpu=self.cpus.origin))
            from benchmarks.rig import network

            for program in (self.box, self.origin):
                _expect(program, b"unshared")
            try:
                network.connect(self.box.pid, self.origin.pid, self._redirected)
            except (OSError, network.NetlinkError) as error:
                raise BenchmarkError(f"the kernel refuses the rig's network: {error}") from error
            self.origin.write_line(b"connected")
            _expect(self.origin, b"ready")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def order(self, order: str, **arguments: Any) -> dict[str, float]:
        """Have the box do something. BenchmarkError if it can't."""
        return self.box.order(order, **arguments)

    def measure(self, proxy: int | None, order: str, **arguments: Any) -> Phase:
        """The same, with what it costs; ``proxy`` is the process id of the one under test."""
        programs = [proxy, self.box.pid, self.origin.pid]
        pinned = {cpu for cpu in (self.cpus.proxy, self.cpus.box, self.cpus.origin) if cpu is not None}
        watched = sorted(pinned or os.sched_getaffinity(0))

        def used() -> tuple[list[float], list[float], float]:
            own = [cpu_seconds(pid) if pid is not None else 0.0 for pid in programs]
            return own, [busy_seconds(cpu) for cpu in watched], time.monotonic()

        sent_again = self._sent_again()
        own, busy, started = used()
        answer = self.order(order, **arguments)
        own_after, busy_after, ended = used()
        wall = ended - started
        by_proxy, by_box, by_origin = (after - before for before, after in zip(own, own_after, strict=True))
        total = sum(busy_after) - sum(busy)
        shared = self.cpus.box == self.cpus.origin
        return Phase(
            answer=answer,
            proxy=None if proxy is None else by_proxy,
            generator=by_box + by_origin,
            proxy_busy=None if proxy is None else by_proxy / wall,
            generator_busy=(by_box + by_origin if shared else max(by_box, by_origin)) / wall,
            others_busy=max(0.0, total - by_proxy - by_box - by_origin) / wall / len(watched),
            sent_again=self._sent_again() - sent_again,
        )

    def _sent_again(self) -> int:
        return sum(
            _sent_again(Path(f"/proc/{pid}/net/snmp").read_text())
            for pid in (os.getpid(), self.box.pid, self.origin.pid)
        )


def _expect(program: Program, line: bytes) -> None:
    if program.read_line() != line:
        raise BenchmarkError(f"{program.name} does not start")


def _sent_again(snmp: str) -> int:
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["RetransSegs"])
