"""Does anything reach a foreign address outside the windows in which the policy allows it?

A window begins when the PUT of a policy is sent that allows it, ``allow-all`` and one by name in turn, and
ends when that of the closed policy has been answered. The evidence is a tap on the gate's interface to the
origin: the kernel's own timestamp of every segment that leaves for the foreign address. Connections left
over from a window must be ended by its end.
"""

import bisect
import random
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from benchmarks.rig.live.bench import Bench, Count, Figure, Timing
from benchmarks.rig.live.outcomes import Outcome
from benchmarks.rig.live.plan import ALLOW_ALL, CUSTOM, FOREIGN, HTTP_PORT, WITH_FOREIGN
from benchmarks.rig.live.tap import FIN, RST, SYN, Segment, Tap
from benchmarks.rig.plan import PORT
from benchmarks.rig.process import BenchmarkError

WINDOWS: Final = 250
"""Two switches each."""
LONGEST: Final = 0.012
"""Seconds for which a window stays open, or shut, at most."""
SHOWN: Final = 10
_CLOCK_STEP: Final = 1_000_000
"""Nanoseconds between the two clocks, from which on the time of day counts as changed."""


class Window(NamedTuple):
    """In nanoseconds since the epoch, as the tap has them."""

    begins: int
    ends: int


def windows(bench: Bench) -> Iterator[Figure]:
    """Open and close windows under load; then hold every segment against them."""
    from benchmarks.rig.network import TO_ORIGIN

    bench.rig.origin.order("forget")
    choose = random.Random(1)
    puts: list[float] = []
    opened: list[Window] = []
    tap = Tap(TO_ORIGIN, FOREIGN)
    clocks = time.time_ns() - time.monotonic_ns()
    with bench.operator() as operator:
        operator.put(CUSTOM)
        bench.rig.box.begin("hammer")
        for number in range(WINDOWS):
            _work(tap, choose.uniform(0, LONGEST))
            begins = time.time_ns()
            first = operator.put(WITH_FOREIGN if number % 2 else ALLOW_ALL)
            _work(tap, choose.uniform(0, LONGEST))
            second = operator.put(CUSTOM)
            opened.append(Window(begins, time.time_ns()))
            puts += [update.answered - update.sent for update in (first, second)]
        still_open = bench.rig.origin.order("report")["foreign_open"]
        _work(tap, LONGEST)
        bench.rig.box.write_line(b"stop")
    load = bench.rig.box.finish()
    if abs(time.time_ns() - time.monotonic_ns() - clocks) > _CLOCK_STEP:
        raise BenchmarkError("the time of day was changed meanwhile")
    tap.drain()
    if lost := tap.lost():
        raise BenchmarkError(f"the tap has lost {lost} packets")
    tap.close()
    seen = bench.rig.origin.order("report")
    outside, late = violations(opened, tap.segments)
    allowed = load["outcomes"][0]
    foreign = {kind: sum(some[kind] for some in load["outcomes"][1:]) for kind in Outcome}
    attempts = [segment for segment in tap.segments if segment.flags & SYN]
    yield Timing("windows: PUT answered under load", puts)
    yield Count("windows: switches", len(puts))
    yield Count("windows: connections let through in them", len(attempts))
    yield Count("windows: ... accepted by the origin", seen["foreign"])
    yield Count("windows: ... bytes they carried", seen["foreign_bytes"])
    yield Count("windows: connections refused", foreign[Outcome.DENIED] + foreign[Outcome.RESET])
    yield Count("windows: allowed name answered", allowed[Outcome.ANSWERED])
    yield Count("windows: ... cut at a window's end", allowed[Outcome.RESET])
    yield Count("windows: ... refused", allowed[Outcome.DENIED], 0)
    yield Count("windows: SYNs and bytes outside them", len(outside), 0, [str(s) for s in outside[:SHOWN]])
    for name, port in (("TLS and raw", PORT), ("HTTP", HTTP_PORT)):
        some = [connection for connection in late if connection.to_port == port]
        detail = [str(connection) for connection in some[:SHOWN]]
        yield Count(f"windows: {name} connections outliving one", len(some), 0, detail)
        if ended := [connection.by for connection in some if connection.by is not None]:
            yield Timing(f"windows: {name} connections outliving one, by", ended)
    yield Count("windows: open at the origin after the last", still_open, 0)


class Late(NamedTuple):
    """A connection that was made in a window and not ended, by RST or FIN, when the window ended."""

    to_port: int
    by: float | None
    """Seconds from the window's end to that of the connection; None if it never came."""


def violations(opened: Sequence[Window], segments: Sequence[Segment]) -> tuple[list[Segment], list[Late]]:
    """The segments outside all windows that open a connection or carry bytes; and the connections that
    outlived their window.

    What else is outside is the kernel's own: it answers with RST, or acknowledges, what still comes from
    the origin for a connection that is no more.
    """
    begins = [window.begins for window in opened]
    outside: list[Segment] = []
    alive: dict[int, tuple[Segment, int]] = {}
    late: list[Late] = []
    for segment in sorted(segments):
        number = bisect.bisect_right(begins, segment.time) - 1
        inside = number >= 0 and segment.time <= opened[number].ends
        if not inside and (segment.flags & SYN or segment.payload):
            outside.append(segment)
        if segment.flags & SYN:
            alive[segment.port] = segment, number
        elif segment.flags & (RST | FIN) and segment.port in alive:
            first, number = alive.pop(segment.port)
            if number >= 0 and segment.time > opened[number].ends:
                late.append(Late(first.to_port, (segment.time - opened[number].ends) / 1e9))
    late += [Late(first.to_port, None) for first, _ in alive.values()]
    return outside, late


def _work(tap: Tap, seconds: float) -> None:
    """Let the clients have their time, and take in what they caused."""
    until = time.monotonic() + seconds
    tap.drain()
    time.sleep(max(0.0, until - time.monotonic()))
