"""Hears from the kernel what changes in directories, for as long as the kernel tells.

That is for speed alone: a network file system tells nothing, a host may have no watches left, and a
directory that is moved away takes its watch along. Whoever uses this looks for himself from time to time.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import watchfiles

log = logging.getLogger(__name__)

# It would announce every change to the operator.
logging.getLogger("watchfiles.main").setLevel(logging.WARNING)

_STEP: Final = 5
"""Milliseconds between two looks at the queue of events. Silence for one step ends a batch."""
_DEBOUNCE: Final = 20
"""Most milliseconds for which a batch of events is put off by further ones."""
_MAX_DIRECTORIES: Final = 256


type Awatch = Callable[..., AsyncIterator[set[tuple[Any, str]]]]
"""watchfiles.awatch, or what is called like it."""


class DirectoryWatch:
    """Watches directories, not what is below them."""

    def __init__(
        self,
        on_change: Callable[[Iterable[str]], None],
        is_relevant: Callable[[str], bool],
        *,
        awatch: Awatch = watchfiles.awatch,
        retry: float = 30.0,
    ) -> None:
        """
        Args:
            on_change: called with the paths that have changed.
            is_relevant: whether a path is worth that. Other files in the same directory may change often.
            retry: seconds after which a watch is tried again that could not be had.
        """
        self._on_change = on_change
        self._is_relevant = is_relevant
        self._awatch = awatch
        self._retry = retry
        self._directories: dict[str, tuple[int, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._failed: float | None = None
        """Monotonic seconds, of the last failure; None if all is well."""

    async def follow(self, directories: Mapping[str, tuple[int, int]]) -> bool:
        """Watch these directories (with their device and inode) from now on, and no others.

        Returns whether the watch is a new one: what happened before it was not heard of.
        """
        wanted = {path: directories[path] for path in sorted(directories)[:_MAX_DIRECTORIES]}
        if not wanted:
            self._directories = {}  # what comes there may have the inode of what has gone
            return False
        running = self._task is not None and not self._task.done()
        due = self._failed is None or time.monotonic() - self._failed >= self._retry
        if wanted == self._directories and (running or not due):
            return False
        await self.close()
        self._directories = wanted
        self._task = asyncio.get_running_loop().create_task(self._watch(list(wanted)))
        await asyncio.sleep(0)  # the task's first step sets up the watch
        return not self._task.done()

    async def close(self) -> None:
        """Watch nothing any longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._task = None

    async def _watch(self, directories: list[str]) -> None:
        why: object = "they have ended"
        try:
            async for batch in self._awatch(
                *directories,
                watch_filter=lambda _, path: path in directories or self._is_relevant(path),
                step=_STEP,
                debounce=_DEBOUNCE,
                rust_timeout=60_000,
                recursive=False,
                ignore_permission_denied=True,
            ):
                self._failed = None
                paths = {path for _, path in batch}
                if not paths.isdisjoint(directories):
                    # It has gone, and the watch with it. One made in its place may well have its inode.
                    self._directories = {}
                self._on_change(paths)
        except FileNotFoundError:
            # A directory has gone since it was looked at. That is no failure of the watch's.
            self._directories = {}
            return
        except Exception as error:
            why = error
        if self._failed is None:
            log.warning("no file events (%s): changes of policies are found by looking for them", why)
        self._failed = time.monotonic()
