"""Makes the gate fail at any point of its code, without a line for that in the product.

``sys.monitoring`` calls back at the start of a function, and before each line. What the callback raises is
raised there, in the function itself, as if a call in that place had failed.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final

import box_policy

_TOOL: Final = 4  # one that neither debuggers, coverage nor profilers take by convention
_PACKAGE: Final = str(Path(box_policy.__file__).parent) + "/"
_START: Final = sys.monitoring.events.PY_START
_LINE: Final = sys.monitoring.events.LINE


class InjectedFault(Exception):
    """Raised where a test wants the gate to fail."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the product may fail: at the start of a function, or before one of its lines."""

    code: CodeType
    line: int = 0
    """0: the function's start."""

    @property
    def file(self) -> str:
        """Below the package: ``gate/lane.py``."""
        return self.code.co_filename.removeprefix(_PACKAGE)

    @property
    def where(self) -> str:
        """The function: ``gate/lane.py Lane.adopt``."""
        return f"{self.file} {self.code.co_qualname}"

    def __str__(self) -> str:
        return self.where + (f":{self.line}" if self.line else "")


class Injection:
    """A fault in waiting."""

    def __init__(self) -> None:
        self.count = 0
        """How often the place has been passed."""
        self.raised = False


def _fail(error: Callable[[], BaseException | None]) -> None:
    raised = error()
    try:
        if raised is not None:
            raise raised
    finally:
        del raised  # else the exception would hold this frame, and this frame the exception


@contextmanager
def _monitored() -> Iterator[Any]:
    sys.monitoring.use_tool_id(_TOOL, "box-policy faults")
    try:
        yield sys.monitoring
    finally:
        sys.monitoring.set_events(_TOOL, 0)
        sys.monitoring.register_callback(_TOOL, _START, None)
        sys.monitoring.register_callback(_TOOL, _LINE, None)
        sys.monitoring.free_tool_id(_TOOL)


@contextmanager
def observed(rooms: tuple[str, ...], *, lines: bool = False) -> Iterator[Counter[Place]]:
    """Note which functions of these rooms of the package start, in order, and how often.

    Args:
        rooms: paths below the package, or their beginnings: ``gate/``, ``control/store.py``.
        lines: note every line instead.
    """
    places: Counter[Place] = Counter()
    prefixes = tuple(_PACKAGE + room for room in rooms)

    def passed(code: CodeType, position: int) -> object:
        if not code.co_filename.startswith(prefixes):
            return sys.monitoring.DISABLE
        places[Place(code, position if lines else 0)] += 1
        return None

    event = _LINE if lines else _START
    with _monitored() as monitoring:
        monitoring.restart_events()
        monitoring.register_callback(_TOOL, event, passed)
        monitoring.set_events(_TOOL, event)
        yield places


@contextmanager
def fault(
    place: Place, call: int | None = 1, *, error: Callable[[], BaseException | None] = InjectedFault
) -> Iterator[Injection]:
    """Have a place fail when it is passed for the nth time; each time, if ``call`` is None.

    ``error`` makes what is raised there. It may do something else instead, and return None.
    """
    injection = Injection()

    def passed(code: CodeType, position: int) -> None:
        if place.line and position != place.line:
            return
        injection.count += 1
        if call is None or injection.count == call:
            injection.raised = True
            _fail(error)

    event = _LINE if place.line else _START
    with _monitored() as monitoring:
        monitoring.register_callback(_TOOL, event, passed)
        monitoring.set_local_events(_TOOL, place.code, event)
        try:
            yield injection
        finally:
            monitoring.set_local_events(_TOOL, place.code, 0)
