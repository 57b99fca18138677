"""Holds a unix socket's place against others that would listen there, and sees that nobody can bend it."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from box_policy.control.files.trusted_path import Trail, UntrustedError, open_trusted
from box_policy.control.http.address import ControlError

_TRIES: Final = 10


class SocketLock:
    """A locked file beside the socket, for as long as somebody listens on it.

    Who finds a dead process's socket removes it and binds its own: of two that do so at a time, one would
    remove the other's. The file is its owner's alone, so that no stranger can lock it.

    Raises:
        ControlError: another process has the lock; or others than root and the effective user can put a
            file in the socket's place, or move a directory on the way there.
        OSError: of any other failure.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path.with_name(socket_path.name + ".lock")
        # Who ends removes the file. If that was this one, there has to be another.
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                self._fd = self._open(socket_path)
                if self._is_in_place():
                    return
                os.close(self._fd)
        raise ControlError(f"{socket_path}: others come and go there; try again")

    def release(self) -> None:
        """Let others listen."""
        with contextlib.suppress(OSError):  # somebody has taken the directory away
            if self._is_in_place():
                self._path.unlink()
        os.close(self._fd)

    def _open(self, socket_path: Path) -> int:
        created = self._create()
        try:
            fd = open_trusted(self._path, Trail())
        except UntrustedError as error:
            if created:
                self._path.unlink(missing_ok=True)
            raise ControlError(f"{socket_path}: another socket could be put there: {error}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ControlError(
                f"{socket_path} is in use: another process listens there; stop it, or choose another path"
            ) from None
        return fd

    def _create(self) -> bool:
        """Have the file be there; whether it was not."""
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        return True

    def _is_in_place(self) -> bool:
        return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
