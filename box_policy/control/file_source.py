"""Policies from a file for all boxes, or from a directory with a file a box, watched while the gate runs."""

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import watchfiles

from box_policy.audit.records import PolicyRecord
from box_policy.audit.sinks import Audit
from box_policy.control.files.agenda import Agenda, Due
from box_policy.control.files.directory_watch import Awatch, DirectoryWatch
from box_policy.control.files.policy_files import (
    DEFAULT,
    Found,
    Listing,
    PolicyFiles,
    examine_all,
    list_files,
    name_of,
)
from box_policy.control.files.trusted_file import SETTLE
from box_policy.control.files.trusted_path import Trail
from box_policy.control.files.watched_file import (
    Bad,
    BeingWritten,
    FileStatus,
    Finding,
    Gone,
    Good,
    Report,
    Same,
    WatchedFile,
)
from box_policy.control.policy_file import PolicyFileError, shortened, shown
from box_policy.control.store import InForce, PolicyStore, UnknownBoxError
from box_policy.control.threads import in_thread
from box_policy.policy.rules import CompiledPolicy

log = logging.getLogger(__name__)

_AGAIN: Final = 0.02
"""Seconds until the next look at a file that is being written."""
_START_WAIT: Final = 2.0
"""Seconds that files have, at start, to be written to their ends, after the first look at them."""
_BATCH: Final = 0.05
"""Seconds of reading after which what was found so far is put in force."""
_SHORTEST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.5
"""Seconds between two rounds. In between, as long as the last one took: half the time at most is spent."""
_POLL_SHARE: Final = 10
"""Looking at every file takes one part in so many of the time at most,"""
_LONGEST_POLL: Final = 4.0
"""as long as it isn't put off for longer than so many seconds."""
_UNREMARKABLE: Final = Same(b"")


class FileSource:
    """Puts what policy files hold in force.

    A path to a file: its policy is every box's. A path to a directory: ``web.yaml`` (or ``.yml``,
    ``.json``) is the policy of the box ``web``, and ``default.yaml`` that of each box that must have one and
    has no file of its own. Hidden files, other suffixes and directories in it are ignored.

    A revision counts when it is whole, can be trusted, and is a valid policy. Until then, and when the file
    goes, the one before stays in force. A revision is put once, when it is new: what others put after it was
    noticed stays until the file changes again.
    """

    def __init__(
        self,
        path: Path,
        store: PolicyStore,
        audit: Audit,
        *,
        boxes: Collection[str],
        poll: float = 2.0,
        awatch: Awatch = watchfiles.awatch,
        retry: float = 30.0,
    ) -> None:
        """
        Args:
            boxes: ids of the boxes that must have a policy.
            poll: seconds between two looks at every file, whether or not an event came.
            awatch: where file events come from.
            retry: seconds until the next try, when file events could not be had.
        """
        self._path = path.absolute()
        self._store = store
        self._audit = audit
        self._poll = poll
        self._is_directory = os.path.isdir(self._path)  # noqa: PTH112 - it never raises
        self._files = PolicyFiles(boxes, every=None if self._is_directory else self._path)
        self._directory = WatchedFile((self._path,), None)
        """Stands for the directory itself."""
        self._fault: FileStatus | None = None
        """What made the last round fail."""
        self._watch = DirectoryWatch(self._on_change, self._is_relevant, awatch=awatch, retry=retry)
        self._leading = Trail()
        """What leads to any of the files."""
        self._strayed = False
        """Whether another way has to be followed than before."""
        self._putting: CompiledPolicy | None = None
        self._others: dict[str, float] = {}
        """Monotonic seconds, when somebody else last put a box's policy."""
        self._root: tuple[str, tuple[int, int]] | None = None
        """The directory by a path without links, its device and inode."""
        self._agenda = Agenda()
        self._wake = asyncio.Event()

    def status(self) -> list[FileStatus]:
        """What each file is worth now, by name; first the directory, if something is wrong with it."""
        statuses = [file.status(shown(file.last_path)) for file in self._files]
        if self._is_directory and self._directory.state != "ok":
            statuses.insert(0, self._directory.status(shown(self._path)))
        if self._fault is not None:
            statuses.insert(0, self._fault)
        return statuses

    # At start

    def load(self) -> None:
        """Read every file, and add every box to the store. To be called once, before :meth:`watch`.

        Waits for up to 2 s for files that are being written.

        Raises:
            PolicyFileError: a file that can't be read or trusted, or holds no policy; two files for one
                box; a file's name that is no box's; a box without a policy; a box that the store has
                already. One line an error, but no more than 20, and nothing has been added to the store.
        """
        errors = self._read_all()
        if not errors:
            errors = [
                f"{shown(self._path)}: {problem}"
                for box in self._files.served()
                if (problem := self._problem_of(box)) is not None
            ]
        if errors:
            raise PolicyFileError(shortened("\n".join(errors)))
        for box in self._files.served():
            file = self._files.file_of(box)
            if file is not None and file.policy is not None:
                self._store.create(box, file.policy, source=shown(file.last_path))

    def _problem_of(self, box: str) -> str | None:
        if self._files.file_of(box) is None:
            return f"the box {box} has no policy: there is neither {box}.yaml nor {DEFAULT}.yaml"
        return f"there is a box {box} already" if box in self._store else None

    def _read_all(self) -> list[str]:
        if self._is_directory:
            self._take_directory(list_files(self._path, self._files))
            if self._directory.state != "ok":
                return [_error_at_start(self._directory)]
        names = self._files.names()
        deadline: float | None = None
        while names:
            for found in examine_all(self._files, names, Due(), seconds=math.inf).found:
                file = self._files[found.name]
                self._keep_trail(file, found.trail)
                file.take(found.finding, time.time())
                if isinstance(found.finding, Good):
                    file.count(found.finding, time.time())
            names = [name for name in names if self._files[name].state == "being_written"]
            deadline = deadline or time.monotonic() + _START_WAIT
            if time.monotonic() >= deadline:
                break
            if names:
                time.sleep(_AGAIN)
        return [_error_at_start(file) for file in self._files if file.state != "ok"]

    # While the gate runs

    async def watch(self) -> None:
        """Put each new revision in force, until cancelled."""
        end = self._store.subscribe(self._on_policy)
        try:
            while True:
                began = time.monotonic()
                await self._safe_round()
                took = time.monotonic() - began
                await asyncio.sleep(min(max(took, _SHORTEST_PAUSE), _LONGEST_PAUSE))
                try:
                    async with asyncio.timeout(max(0, self._agenda.next() - time.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            end()
            await self._watch.close()

    async def _safe_round(self) -> None:
        try:
            await self._round()
            self._fault = None
        except Exception as error:
            said = f"{shown(self._path)}: {type(error).__name__}: {error}"
            if self._fault is None or self._fault.error != said:
                log.exception("policy files can't be looked at; it is tried again")
                self._fault = FileStatus(shown(self._path), None, "refused", said, time.time())

    async def _round(self) -> None:
        """Look at what is due, and put it in force."""
        began = time.monotonic()
        self._wake.clear()
        due = self._agenda.take(began)
        if due.names is None:
            self._agenda.everything = began + self._poll
        idle, names = 0.0, due.names or frozenset()
        if self._is_directory and due.listing:
            names |= self._take_directory(await in_thread(list_files, self._path, self._files))
            idle = time.monotonic() - began
        everything = due.names is None
        idle += await self._look(
            self._files.names() if everything else sorted(name for name in names if name in self._files), due
        )
        if everything and self._agenda.everything:  # no event has come meanwhile
            self._agenda.everything = began + max(self._poll, min(_POLL_SHARE * idle, _LONGEST_POLL))
        if await self._follow():
            # What happened before the new watch was not heard of.
            self._agenda.everything = 0.0

    def _take_directory(self, found: Listing | Gone | Bad) -> frozenset[str]:
        """Take in what is in the directory. Returns the names that are not as they were."""
        moved: Mapping[str, tuple[Path, ...]] = {}
        finding: Finding = _UNREMARKABLE
        if isinstance(found, Listing):
            self._root = (found.root, found.identity)
            moved = found.moved
            if found.complaint is not None:
                finding = Bad(f"{shown(self._path)}: {found.complaint}")
        else:
            # When it only can't be listed, the files that are known may still be read.
            if isinstance(found, Gone):
                self._root = None
                moved = dict.fromkeys(self._files.names(), ())
            finding = found
        for name, paths in moved.items():
            self._files.move(name, paths)
        report = self._directory.take(finding, time.time())
        if report is not None:
            self._record(self._directory, [], report)
        return frozenset(moved)

    async def _look(self, names: Sequence[str], due: Due) -> float:
        """Look at files. Returns the seconds that went into those that are as they were."""
        idle = 0.0
        while names:
            batch = await in_thread(examine_all, self._files, names, due, seconds=_BATCH)
            names = names[batch.looked :]
            idle += batch.idle
            for found in batch.found:
                await self._take(found)
                await asyncio.sleep(0)  # there may be many
        return idle

    async def _take(self, found: Found) -> None:
        name, finding = found.name, found.finding
        file = self._files[name]
        self._keep_trail(file, found.trail)
        report = file.take(finding, time.time())
        if isinstance(finding, BeingWritten):
            self._agenda.again(name, time.monotonic() + (_AGAIN if finding.sample is None else SETTLE))
        else:
            self._agenda.settled(name)
        if isinstance(finding, Good):
            await self._put(name, finding)
        if report is not None:
            self._record(file, self._files.boxes_of(name), report)
        if isinstance(finding, Gone) and self._is_directory and not self._is_needed(name):
            self._files.forget(name)
            self._strayed = True

    def _keep_trail(self, file: WatchedFile, trail: Trail) -> None:
        if file.trail != trail:
            file.trail, self._strayed = trail, True

    def _is_needed(self, name: str) -> bool:
        """Whether a file that has gone is still worth a word: a box goes on with what it held."""
        boxes = self._files.boxes_of(name)
        return self._files[name].policy is not None and any(box in self._store for box in boxes)

    async def _put(self, name: str, good: Good) -> None:
        file = self._files[name]
        source = shown(file.last_path)
        failed: Exception | None = None
        try:
            compiled = await self._store.compile(good.policy)
        except Exception as error:
            failed = error
        else:
            for box in self._files.boxes_of(name):
                try:
                    await self._put_to(box, compiled, file, source)
                except UnknownBoxError:
                    pass  # removed meanwhile
                except Exception as error:
                    failed = error
                await asyncio.sleep(0)  # a default policy may be that of many boxes
        if failed is None:
            file.count(good, time.time())
        elif file.fail(f"{source}: it can't be put in force: {type(failed).__name__}: {failed}", time.time()):
            log.error("the policy in %s can't be put in force; it is tried again", source, exc_info=failed)

    async def _put_to(self, box: str, compiled: CompiledPolicy, file: WatchedFile, source: str) -> None:
        self._putting = compiled
        if box not in self._store:
            if box == file.box:
                self._store.create(box, compiled, source=source)
        elif file.noticed is None or self._others.get(box, 0.0) <= file.noticed:
            # Not by the generation that was in force then: an earlier revision of the file may have come into
            # force since. And no change can come in between: what is compiled is put in one step.
            await self._store.put(box, compiled, source=source)

    def _on_policy(self, new: InForce) -> None:
        if new.compiled is not self._putting:
            self._others[new.box] = time.monotonic()

    def _record(self, file: WatchedFile, boxes: Sequence[str], report: Report) -> None:
        for box in boxes or [""]:
            record = PolicyRecord(
                box=box,
                generation=self._store.get(box).generation if box in self._store else 0,
                outcome=report.outcome,
                source=shown(file.last_path),
                detail=report.detail,
            )
            try:
                self._audit(record)
            except Exception:
                log.exception("what became of %s can't be recorded", record.source)

    # Events

    async def _follow(self) -> bool:
        """Watch whatever leads to the files now. Returns whether the watch is a new one."""
        if self._strayed:
            self._leading = await in_thread(_joined, self._files.trails())
            self._strayed = False
        root = {} if self._root is None else dict([self._root])
        return await self._watch.follow(root | self._leading.directories)

    def _is_relevant(self, path: str) -> bool:
        directory, _, entry = path.rpartition("/")
        if self._name_in_root(directory, entry) is not None:
            return True
        return (directory or "/", entry) in self._leading.entries

    def _name_in_root(self, directory: str, entry: str) -> str | None:
        return name_of(entry) if self._root is not None and directory == self._root[0] else None

    def _on_change(self, paths: Iterable[str]) -> None:
        now = time.monotonic()
        for path in paths:
            directory, _, entry = path.rpartition("/")
            name = self._name_in_root(directory, entry)
            if name is None:
                self._agenda.add_everything(now)  # what is on the way to a file may be on that to others
            else:
                self._agenda.add(name, now, listing=not self._files.is_at(name, entry))
        self._wake.set()


def _joined(trails: Iterable[Trail]) -> Trail:
    """What any of these lead over."""
    joined = Trail()
    for trail in trails:
        joined.entries |= trail.entries
        joined.directories |= trail.directories
    return joined


def _error_at_start(file: WatchedFile) -> str:
    match file.state:
        case "missing":
            problem = os.strerror(errno.ENOENT)
        case "being_written":
            problem = "somebody is writing to it"
        case _:
            return file.error or ""
    return f"{shown(file.last_path)}: {problem}"
