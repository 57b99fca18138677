# Written by scripts/make_sync from _async/files.py: change that one.
"""``box.files``: the files of a box."""

import builtins
from contextlib import closing

from box_policy.sdk import answers, paths, values
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk._sync.workspace import Workspace
from box_policy.sdk.errors import BoxError
from box_policy.sdk.local_files import download_directory, opened, replaced
from box_policy.sdk.types import FileEntry, FileStat, UploadFileEntry


class FilesNamespace:
    """Reads and writes files. Relative paths count from the box's own directory, ``box.cwd``."""

    def __init__(self, transport: Transport, at: str, workspace: Workspace) -> None:
        self._transport = transport
        self._at = f"{at}/files"
        self._workspace = workspace

    def read(
        self, path: str, *, encoding: str | None = None, offset: int | None = None, length: int | None = None
    ) -> str:
        """A file's content: text, or with ``encoding="base64"`` any bytes.

        Args:
            length: read that many bytes, 8 MiB at most, from ``offset`` on (0 if it isn't given).

        Raises:
            BoxFileError: there is no such file, it is not text, or can't be read.
        """
        if offset is not None and length is None:
            raise BoxError(
                "files.read(offset=...) needs a length as well; without one the whole file is read"
            )
        query = {"path": self._workspace.resolved(path)}
        if encoding:
            query["encoding"] = encoding
        if length is not None:
            query |= {"offset": str(offset or 0), "length": str(length)}
        answer = answers.as_object(self._transport.request("GET", f"{self._at}/read", query=query))
        return answers.text(answer, "content")

    def write(self, *, path: str, content: str, encoding: str | None = None) -> None:
        """Write a file: text, or with ``encoding="base64"`` any bytes. Missing directories are made.

        Raises:
            BoxFileError: it can't be written.
        """
        body = {"path": self._workspace.resolved(path), "content": values.content(content)}
        if encoding:
            body["encoding"] = encoding
        self._transport.request("POST", f"{self._at}/write", body=body)

    def list(self, path: str | None = None) -> builtins.list[FileEntry]:
        """What is in a directory."""
        folder = self._workspace.resolved(path) if path else paths.folder(self._workspace.cwd)
        query = {"folder": folder} if folder else None
        answer = answers.as_object(self._transport.request("GET", f"{self._at}/list", query=query))
        return [answers.model(FileEntry, entry) for entry in answers.as_list(answer.get("files") or [])]

    def stat(self, path: str, *, follow: bool = False) -> FileStat:
        """A file's metadata; a symbolic link's own, unless it is to be followed."""
        query = {"path": self._workspace.resolved(path)}
        if follow:
            query["follow"] = "true"
        return answers.model(FileStat, self._transport.request("GET", f"{self._at}/stat", query=query))

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with ``parents`` those above it as well, and it may be there already."""
        body = {"path": self._workspace.resolved(path), "parents": parents}
        self._transport.request("POST", f"{self._at}/mkdir", body=body)

    def rename(self, from_path: str, to_path: str) -> None:
        """Move a file or directory."""
        body = {"from": self._workspace.resolved(from_path), "to": self._workspace.resolved(to_path)}
        self._transport.request("POST", f"{self._at}/rename", body=body)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` a directory and all that is in it."""
        body = {"path": self._workspace.resolved(path), "recursive": recursive}
        self._transport.request("POST", f"{self._at}/remove", body=body)

    def upload(self, files: builtins.list[UploadFileEntry]) -> None:
        """Copy local files into the box.

        Raises:
            OSError: a local file can't be read.
            BoxError: the service doesn't take them.
        """
        entries = values.uploads(files)
        destinations = [destination for _, destination in entries]
        with opened(path for path, _ in entries) as contents:
            self._transport.upload(
                f"{self._at}/upload",
                [self._workspace.resolved(destination) for destination in destinations],
                list(zip(destinations, contents, strict=True)),
            )

    def download(self, *, folder: str | None = None) -> None:
        """Copy the files of a directory, but not of those in it, into a local directory of its name.

        That directory is made where this process is; the box's own directory at the start becomes
        ``workspace``. A file of the same name is replaced once the new one is whole.

        Raises:
            OSError: a local file can't be written.
            BoxError: the service doesn't give them, or names a file in a way that is not safe.
        """
        path = paths.normalized(self._workspace.resolved(folder)) if folder else self._workspace.cwd
        entries = self.list(path)
        local = download_directory("workspace" if path == paths.WORKSPACE and not folder else path)
        for entry in entries:
            if not entry.is_dir:
                with replaced(local, entry.name) as file:
                    response = self._transport.open(
                        "GET", f"{self._at}/download", query={"folder": entry.path}
                    )
                    try:
                        with closing(self._transport.pieces(response)) as pieces:
                            for piece in pieces:
                                file.write(piece)
                    finally:
                        response.close()
