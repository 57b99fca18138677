"""A fault at each place that each exchange passes: ``python -m tests.adversary.sweep_all [--lines] [NAME]``.

Takes some minutes. Prints what came out wrong, which should be nothing; the exit status then is 1.
"""

import argparse
import asyncio
import logging
import sys
import time

from tests.adversary.exchanges import EXCHANGES
from tests.adversary.rig import DNS_PORT, TCP_PORT
from tests.adversary.sweep import Sweep, calls_of
from tests.gate.redirect import redirected
from tests.lab import Lab, enter


async def sweep_all(lab: Lab, name: str, lines: bool, calls: int) -> int:
    """Sweep the exchanges whose name has this in it. Returns how many runs came out wrong."""
    sweep = Sweep(lab)
    runs = wrong = 0
    for exchange in EXCHANGES:
        if name not in exchange.name:
            continue
        started = time.monotonic()
        places = await sweep.places(exchange, lines=lines)
        for place, count in places.items():
            for call in calls_of(count, calls):
                run = await sweep.inject(exchange, place, call)
                runs += 1
                if run.wrong:
                    wrong += 1
                    print(f"{exchange.name}: {place}, call {call}: {run.wrong}; saw {run.seen}", flush=True)
        taken = time.monotonic() - started
        print(f"{exchange.name}: {len(places)} places in {taken:.1f} s", flush=True)
    await sweep.close()
    print(f"{runs} runs, {wrong} wrong")
    return wrong


def main() -> int:
    """Sweep, on a test network of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="a part of the names of exchanges")
    parser.add_argument("--lines", action="store_true", help="before each line, not only each function")
    parser.add_argument("--calls", type=int, default=1, help="how many calls of each place fail, in turn")
    options = parser.parse_args()
    enter()
    logging.disable(logging.CRITICAL)  # what is provoked is told a thousand times
    lab = Lab.start()
    try:
        with redirected(TCP_PORT, DNS_PORT):
            return int(asyncio.run(sweep_all(lab, options.name, options.lines, options.calls)) > 0)
    finally:
        lab.close()


if __name__ == "__main__":
    sys.exit(main())
