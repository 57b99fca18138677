# Written by scripts/make_sync from _async/workspace.py: change that one.
"""The directory that a box's programs start in, and relative paths count from."""

from box_policy.sdk import answers, paths
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk.errors import BoxFileError, BoxNotFoundError
from box_policy.sdk.types import FileStat


class Workspace:
    """It belongs to the object on this side alone: the box knows nothing of it."""

    def __init__(self, transport: Transport, at: str) -> None:
        self._transport = transport
        self._at = at
        self.cwd = paths.WORKSPACE

    def resolved(self, path: str) -> str:
        """``path`` as an absolute one."""
        return paths.resolved(self.cwd, path)

    def cd(self, path: str) -> None:
        """Change it.

        Raises:
            BoxFileError: there is no such directory.
        """
        wanted = paths.normalized(self.resolved(path))
        try:
            answer = self._transport.request(
                "GET", f"{self._at}/files/stat", query={"path": wanted, "follow": "true"}
            )
        except (BoxFileError, BoxNotFoundError) as error:
            if error.status_code != 404 or error.code == "box_unknown":
                raise
            raise BoxFileError(
                f"cd: {path}: No such file or directory", error.status_code, code=error.code
            ) from None
        if answers.model(FileStat, answer).type != "directory":
            raise BoxFileError(f"cd: {path}: Not a directory")
        self.cwd = wanted
