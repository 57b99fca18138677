"""A socket on a path, through which one process in a container reaches this one: once."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from box_policy.sandbox.docker import identity
from box_policy.sandbox.docker.paths import SOCKET
from box_policy.sandbox.launcher import SandboxError

_LOOK_INTERVAL = 0.25
_PREFIX = "box-policy-doors-"


def make_parent() -> Path:
    """A directory that only this user may pass, for the doors of a launcher. SandboxError if it can't be."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{'-'.join(identity.own_process())}-", dir=_place()))
    except OSError as error:
        raise SandboxError(f"a directory for sockets can't be made: {error}") from None


def remove_left(*, dry_run: bool = False) -> list[str]:
    """Remove the directories that dead launchers of this user's have left; return their paths. With
    ``dry_run`` only return them."""
    left = []
    for path in Path(_place()).glob(f"{_PREFIX}*"):
        process = path.name.removeprefix(_PREFIX).split("-")[:3]
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue  # anybody may make such a name, and put what they like in it
            if identity.may_live("/".join((identity.boot(), *process))) is False:
                if not dry_run:
                    shutil.rmtree(path)
                left.append(str(path))
    return left


def _place() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()


class Door:
    """A listening socket in a directory of its own, to be mounted into a container."""

    def __init__(self, parent: Path, name: str) -> None:
        self.directory = parent / name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path = self.directory / SOCKET
        try:
            self.directory.mkdir()
            # Whoever is in the container, whatever its users are outside of it. Outside, the directory
            # above lets nobody else pass.
            self.directory.chmod(0o755)
            self._socket.bind(str(path))
            path.chmod(0o666)
            self._socket.listen(1)
        except OSError as error:
            self.close()
            raise SandboxError(f"the socket {path} can't be made: {error}") from None

    async def accept(self, patience: float, may_come: Callable[[], Awaitable[bool]]) -> socket.socket:
        """The one connection; the door is closed then, for good.

        SandboxError if none comes in so many seconds, or ``may_come``, asked from time to time, denies it.
        """
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(loop.sock_accept(self._socket))
        try:
            async with asyncio.timeout(patience):
                while True:
                    await asyncio.wait([accepting], timeout=_LOOK_INTERVAL)
                    if accepting.done():
                        return accepting.result()[0]
                    if not await may_come():
                        raise SandboxError("the container's first process has ended before it said anything")
        except TimeoutError:
            raise SandboxError(f"the container has not answered within {patience:.0f} seconds") from None
        finally:
            accepting.cancel()
            self.close()

    def close(self) -> None:
        """Let nobody come any more."""
        self._socket.close()
        # What is mounted in the container stays there, and is empty from now on.
        shutil.rmtree(self.directory, ignore_errors=True)
