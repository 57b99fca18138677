"""How long a box takes to start: ``python -m benchmarks.box_start``.

"create" is from the call until the box is ready and its listeners are in the caller's hands, "start"
until /bin/true runs in it, "close" until its last process has ended. "first" includes the start of the
zygote, the process that all later boxes are forked from.
"""

import asyncio
import statistics
import time

from box_policy.sandbox.launcher import BoxSpec, ProgramSpec
from box_policy.sandbox.namespaces import NamespaceLauncher

LATER_BOXES = 20
AT_ONCE = 10


async def timed_box(launcher: NamespaceLauncher) -> tuple[float, float, float]:
    """Seconds to create a box, to start a program in it, and to close it."""
    begin = time.perf_counter()
    box = await launcher.create(BoxSpec("timed"))
    created = time.perf_counter()
    program = await box.start(ProgramSpec(["/bin/true"]))
    started = time.perf_counter()
    await program.wait()
    waited = time.perf_counter()
    await box.close()
    return created - begin, started - created, time.perf_counter() - waited


def show(name: str, seconds: list[float]) -> None:
    """One line of the result."""
    print(f"{name:28} {1e3 * statistics.median(seconds):7.1f} ms  (fastest {1e3 * min(seconds):.1f})")


async def main() -> None:
    """Measure and print."""
    launcher = NamespaceLauncher()
    first = await timed_box(launcher)
    show("first box, create", [first[0]])
    later = [await timed_box(launcher) for _ in range(LATER_BOXES)]
    for name, seconds in zip(("create", "start", "close"), zip(*later, strict=True), strict=True):
        show(f"later box, {name}", list(seconds))
    begin = time.perf_counter()
    boxes = await asyncio.gather(*(launcher.create(BoxSpec(str(n))) for n in range(AT_ONCE)))
    show(f"{AT_ONCE} boxes at once, all", [time.perf_counter() - begin])
    await asyncio.gather(*(box.close() for box in boxes))
    await launcher.close()


if __name__ == "__main__":
    asyncio.run(main())
