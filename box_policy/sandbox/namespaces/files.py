"""A box's files, seen from the caller's event loop: each operation is a worker process in the box.

What a worker says is the box's word: it is bounded, checked, and never taken for more.
"""

import asyncio
import errno
import json
import os
import posixpath
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from box_policy.sandbox.launcher import BoxPausedError, FileInfo, FileType, Program, SandboxError

PATIENCE = 60.0
"""Seconds that a worker may take until it answers, or takes or gives the next piece."""
LONG_PATIENCE = 600.0
"""Seconds that removing a directory and all in it may take."""
WORKERS = 8
"""Operations at one time that end by themselves; and as many streams that the caller reads. More wait."""
_PIECE = 256 * 1024
_FRAME_HEAD = 4
_MAX_FRAME = 1 << 30
_MAX_ANSWER = 64 * 1024
"""Bytes of an answer's first line. A path has at most 4096, and each can take six."""
_MAX_ENTRY = 4096
"""Bytes of a directory entry in an answer. A name has at most 255."""
_MAX_PATH = 4096
"""Bytes, with the one that ends it (PATH_MAX, limits.h)."""
_MAX_ERRNO = 254
_MAX_NUMBER = 1 << 64
_TYPES: dict[str, FileType] = {kind: kind for kind in ("file", "directory", "symlink", "other")}


class Box(Protocol):
    """What this needs of a box."""

    @property
    def is_paused(self) -> bool: ...

    async def start_file_worker(self, operation: dict[str, Any], stdin: int | None, stdout: int) -> Program:
        """A worker that does ``operation``."""


class BoxFiles:
    """The files of a box."""

    def __init__(self, box: Box) -> None:
        self._box = box
        # Two, so that a stream being read never keeps what is read from being written.
        self._operations = asyncio.Semaphore(WORKERS)
        self._streams = asyncio.Semaphore(WORKERS)

    async def read(self, path: str, *, offset: int = 0, length: int | None = None, limit: int) -> bytes:
        """What a regular file holds, or ``length`` bytes of it from ``offset`` on."""
        if offset < 0 or limit < 0 or (length is not None and length < 0) or offset >= 1 << 63:
            raise _error(errno.EINVAL, path)
        operation = {"op": "read", "path": _checked(path), "offset": offset, "length": length, "limit": limit}
        content = bytearray()
        async with self._worker(self._operations, operation, path) as worker:
            await worker.answer()
            async for piece in worker.pieces():
                content += piece
                if len(content) > limit:
                    raise _error(errno.EFBIG, path)
        return bytes(content)

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A regular file in pieces."""
        operation = {"op": "stream", "path": _checked(path)}
        async with self._worker(self._streams, operation, path) as worker:
            await worker.answer()
            yield worker.pieces()

    async def write(self, path: str, content: bytes | AsyncIterable[bytes]) -> None:
        """Make or replace a regular file, whole or not at all; directories above it are made."""
        await self._send({"op": "write", "path": _checked(path)}, path, content)

    async def list(self, path: str, *, limit: int) -> list[FileInfo]:
        """What is in a directory, by name; links are not followed."""
        if limit < 0:
            raise _error(errno.EINVAL, path)
        operation = {"op": "list", "path": _checked(path), "limit": limit}
        text = bytearray()
        async with self._worker(self._operations, operation, path) as worker:
            count = await worker.answer()
            if type(count) is not int or not 0 <= count <= limit:
                raise _malformed()
            async for piece in worker.pieces():
                text += piece
                if len(text) > count * _MAX_ENTRY:
                    raise _malformed()
        lines = bytes(text).split(b"\n")[:-1]
        if len(lines) != count:
            raise _malformed()
        return sorted((_entry(line, path) for line in lines), key=lambda info: info.name)

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """What there is at a path; ``follow`` looks behind a link."""
        facts = await self._ask({"op": "stat", "path": _checked(path), "follow": follow}, path)
        normal = posixpath.normpath(path)
        return _info(posixpath.basename(normal), normal, facts)

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; ``parents`` makes those above it, and takes one that is there already."""
        await self._ask({"op": "mkdir", "path": _checked(path), "parents": parents}, path)

    async def rename(self, source: str, target: str) -> None:
        """Move a file or directory, as rename(2) does."""
        await self._ask({"op": "rename", "source": _checked(source), "target": _checked(target)}, source)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or link, or with ``recursive`` a directory and all in it."""
        await self._ask({"op": "remove", "path": _checked(path), "recursive": recursive}, path, LONG_PATIENCE)

    @asynccontextmanager
    async def archive(self, paths: Sequence[str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """These directories and all in them as one tar stream."""
        operation = {"op": "archive", "paths": [_checked(path) for path in paths]}
        async with self._worker(self._streams, operation, " ".join(paths)) as worker:
            await worker.answer()
            yield worker.pieces()

    async def restore(self, archive: AsyncIterable[bytes]) -> None:
        """Bring back what :meth:`archive` gave."""
        await self._send({"op": "restore"}, "the archive", archive)

    async def _ask(self, operation: dict[str, Any], path: str, patience: float = PATIENCE) -> Any:
        async with self._worker(self._operations, operation, path) as worker:
            result = await worker.answer(patience)
            await worker.end()
            return result

    async def _send(
        self, operation: dict[str, Any], path: str, content: bytes | AsyncIterable[bytes]
    ) -> None:
        async with self._worker(self._operations, operation, path, takes_content=True) as worker:
            try:
                if isinstance(content, bytes):
                    await worker.give(content)
                else:
                    async for piece in content:
                        await worker.give(piece)
                await worker.give_end()
            except BrokenPipeError:
                pass  # it has failed, and its answer says why
            await worker.answer()
            await worker.end()

    @asynccontextmanager
    async def _worker(
        self, slots: asyncio.Semaphore, operation: dict[str, Any], path: str, takes_content: bool = False
    ) -> AsyncIterator["_Worker"]:
        async with slots:
            answer, far_answer = os.pipe2(os.O_CLOEXEC)
            ours, theirs = [answer], [far_answer]
            far_content: int | None = None
            try:
                try:
                    if takes_content:
                        far_content, content = os.pipe2(os.O_CLOEXEC)
                        ours.append(content)
                        theirs.append(far_content)
                    for fd in ours:
                        os.set_blocking(fd, False)
                    program = await self._box.start_file_worker(operation, far_content, far_answer)
                finally:
                    for fd in theirs:
                        os.close(fd)
                worker = _Worker(self._box, program, path, *ours)
                try:
                    yield worker
                finally:
                    worker.close()
            finally:
                for fd in ours:
                    os.close(fd)


class _Worker:
    """A worker process, and the pipes that lead to it."""

    def __init__(self, box: Box, program: Program, path: str, answer: int, content: int = -1) -> None:
        self._box = box
        self._program = program
        self._path = path
        self._answer = answer
        self._content = content
        self._rest = b""
        """What has been read past the first line."""

    def close(self) -> None:
        """Have it end, if it has not, and never read a descriptor again that is closed now."""
        self._program.send_signal(signal.SIGKILL)
        self._answer = self._content = -1

    async def answer(self, patience: float = PATIENCE) -> Any:
        """The result. OSError if the operation has failed in the box."""
        line = bytearray()
        while b"\n" not in line:
            if len(line) > _MAX_ANSWER:
                raise _malformed()
            piece = await self._read(patience)
            if not piece:
                await self.end()
                raise _malformed()
            line += piece
        first, _, self._rest = bytes(line).partition(b"\n")
        return _result(first, self._path)

    async def pieces(self) -> AsyncIterator[bytes]:
        """What follows the first line. OSError or SandboxError if it ends too early."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        while piece := await self._read(PATIENCE):
            yield piece
        await self.end()

    async def end(self) -> None:
        """Return once it has ended as it should."""
        status = await self._within(PATIENCE, self._program.wait())
        if status < 0 or status > _MAX_ERRNO:
            raise SandboxError(
                f"{self._path}: the process in the box that was at it ended early, with {status}"
            )
        if status:
            raise _error(status, self._path)

    async def give(self, data: bytes) -> None:
        """Send content."""
        view = memoryview(data)
        while view:
            frame, view = view[:_MAX_FRAME], view[_MAX_FRAME:]
            await self._write(memoryview(len(frame).to_bytes(_FRAME_HEAD)))
            await self._write(frame)

    async def give_end(self) -> None:
        """Tell it that the content is whole."""
        await self._write(memoryview(bytes(_FRAME_HEAD)))

    async def _read(self, patience: float) -> bytes:
        while True:
            try:
                return os.read(self._answer, _PIECE)
            except BlockingIOError:
                await self._within(patience, _ready(self._answer, writing=False))

    async def _write(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._content, data) :]
            except BlockingIOError:
                await self._within(PATIENCE, _ready(self._content, writing=True))

    async def _within[T](self, patience: float, event: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(patience):
                return await event
        except TimeoutError:
            if self._box.is_paused:
                raise BoxPausedError(f"{self._path}: the box is paused") from None
            raise SandboxError(f"{self._path}: the box has not answered for {patience:.0f} seconds") from None


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add: Callable[..., None] = loop.add_writer if writing else loop.add_reader
    remove = loop.remove_writer if writing else loop.remove_reader
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


def _checked(path: str) -> str:
    if not path.startswith("/") or "\0" in path or not _is_a_name(path):
        raise _error(errno.EINVAL, path)
    if len(path) >= _MAX_PATH:
        raise _error(errno.ENAMETOOLONG, path)
    return path


def _is_a_name(text: str) -> bool:
    """Whether it stands for bytes. A lone surrogate does, if it is one of those that stand for a byte."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _malformed() -> SandboxError:
    return SandboxError("the box's answer is malformed")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise _malformed() from None


def _result(line: bytes, asked: str) -> Any:
    answer = _parsed(line)
    if isinstance(answer, dict) and "ok" in answer:
        return answer["ok"]
    if isinstance(answer, dict):
        number, path = answer.get("errno"), answer.get("path")
        if type(number) is int and 0 < number <= _MAX_ERRNO and isinstance(path, str) and _is_a_name(path):
            raise _error(number, path or asked)
    raise _malformed()


def _entry(line: bytes, directory: str) -> FileInfo:
    shown = _parsed(line)
    if not isinstance(shown, list) or not shown or not isinstance(shown[0], str):
        raise _malformed()
    name = shown[0]
    if name in ("", ".", "..") or "/" in name or "\0" in name or not _is_a_name(name):
        raise _malformed()
    return _info(name, posixpath.join(posixpath.normpath(directory), name), shown[1:])


def _info(name: str, path: str, facts: Any) -> FileInfo:
    if not isinstance(facts, list) or len(facts) != 4:
        raise _malformed()
    kind, size, modified, inode = facts
    numbers = all(type(number) is int and 0 <= number < _MAX_NUMBER for number in (size, inode))
    # Compared so that what is not a number (NaN) is out too.
    is_time = type(modified) in (int, float) and -_MAX_NUMBER < modified < _MAX_NUMBER
    if not isinstance(kind, str) or kind not in _TYPES or not numbers or not is_time:
        raise _malformed()
    return FileInfo(name, path, _TYPES[kind], size, float(modified), inode)
