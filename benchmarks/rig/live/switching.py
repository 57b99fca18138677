"""From a change to its first effect: the control endpoint, and the policy file."""

import time
from collections.abc import Callable, Iterator

from benchmarks.rig.live.bench import Bench, Count, Figure, Timing
from benchmarks.rig.live.outcomes import Outcome
from benchmarks.rig.live.plan import CUSTOM, DENY_ALL, Policy

SWITCHES = 200
OTHER_SWITCHES = 50
_AFTER_PUT = 0.005
_AFTER_FILE = 0.150


def by_put(bench: Bench) -> Iterator[Figure]:
    """From the answer to a PUT that denies, to the end of the first connection denied."""
    puts, effects = [], []
    still_allowed = 0
    probe = bench.probe
    with bench.operator() as operator:
        for _ in range(SWITCHES):
            operator.put(CUSTOM)
            probe.until(Outcome.ANSWERED)
            sock = probe.open()
            update = operator.put(DENY_ALL)
            outcome = probe.converse(sock)
            ended = time.monotonic()
            if outcome is not Outcome.DENIED:
                others, ended = probe.until(Outcome.DENIED)
                still_allowed += 1 + others
            puts.append(update.answered - update.sent)
            effects.append(ended - update.answered)
        operator.put(CUSTOM)
    yield Timing("PUT answered", puts)
    yield Timing("PUT, from its answer to the first denial", effects, _AFTER_PUT)
    yield Count("PUT: connections let through after its answer", still_allowed, must_be=0)


def by_file(bench: Bench) -> Iterator[Figure]:
    """From a change of the file to the end of the first connection denied."""
    for name, change, switches in (
        ("file renamed, to the first denial", bench.file.replace, SWITCHES),
        ("file written in place, to the first denial", bench.file.write_in_place, OTHER_SWITCHES),
        ("ConfigMap swapped, to the first denial", bench.file.swap, OTHER_SWITCHES),
    ):
        change(CUSTOM)
        yield Timing(name, [_switch(bench, change) for _ in range(switches)], _AFTER_FILE)


def _switch(bench: Bench, change: Callable[[Policy], float]) -> float:
    change(CUSTOM)
    bench.probe.until(Outcome.ANSWERED)
    changed = change(DENY_ALL)
    _, ended = bench.probe.until(Outcome.DENIED)
    return ended - changed
