"""The service's API for the files of a box.

Paths are the box's: every operation is done inside it, with the rights of its programs.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from hashlib import blake2b
from typing import BinaryIO, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from box_policy.control.http.answers import json_response, rendered_response
from box_policy.control.http.bodies import announced_size
from box_policy.control.http.json_text import render_json
from box_policy.control.http.uploads import read_upload
from box_policy.control.threads import in_thread
from box_policy.sandbox.launcher import FileInfo
from box_policy.service.answers import Deferred, as_base64, as_text, json_in_pieces
from box_policy.service.box import ServedBox
from box_policy.service.context import MAX_WRITTEN_BODY, Context, parameters
from box_policy.service.errors import service_error
from box_policy.service.programs.departure import while_connected
from box_policy.service.requests import MakeDirectory, Remove, Rename, WriteFile

MAX_PART: Final = 8 << 20
"""Bytes of a part of a file that may be asked for, as of the hosted service."""
MAX_READ: Final = 32 << 20
"""Bytes of a whole file in one JSON answer; a larger one is downloaded, or read in parts."""
MAX_UPLOAD: Final = 1 << 30
MAX_UPLOADED_FILES: Final = 1_000
MAX_ENTRIES: Final = 10_000
"""Of a directory that is listed."""
_LEAST_READ: Final = 64 << 10
_PIECE: Final = 1 << 20
_LAST_TIME: Final = 253_402_300_799.0
"""The last second of the year 9999."""


def file_routes(context: Context, box: str) -> list[BaseRoute]:
    """The routes, below the path of a box."""
    files = _Files(context)
    return [
        Route(f"{box}/files/read", files.read),
        Route(f"{box}/files/write", files.write, methods=["POST"]),
        Route(f"{box}/files/list", files.list_directory),
        Route(f"{box}/files/stat", files.stat),
        Route(f"{box}/files/mkdir", files.mkdir, methods=["POST"]),
        Route(f"{box}/files/rename", files.rename, methods=["POST"]),
        Route(f"{box}/files/remove", files.remove, methods=["POST"]),
        Route(f"{box}/files/upload", files.upload, methods=["POST"]),
        Route(f"{box}/files/download", files.download),
    ]


class _Files:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._bodies = context.bodies

    async def read(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = parameters(request, {"path", "encoding", "offset", "length"})
        path = _path(box, asked, "path")
        encoding = _encoding(asked.get("encoding"))
        length = _count(asked, "length")
        offset = _count(asked, "offset") or 0
        if length is not None and length > MAX_PART:
            raise service_error("request_invalid", f"length: at most {MAX_PART >> 20} MiB in one answer")
        box.check_awake()

        async def answer(held: AsyncExitStack, receive: Receive) -> Response:
            held.enter_context(box.used())
            content = await while_connected(receive, self._read(held, box, path, offset, length))
            if encoding == "base64":
                return json_in_pieces({}, content=as_base64(content))
            try:
                for _ in as_text(content, "strict"):
                    await asyncio.sleep(0)
            except UnicodeDecodeError:
                raise service_error(
                    "not_text", f"{path} is not UTF-8: read it with encoding=base64"
                ) from None
            return json_in_pieces({}, content=as_text(content, "strict"))

        return Deferred(answer)

    async def _read(
        self, held: AsyncExitStack, box: ServedBox, path: str, offset: int, length: int | None
    ) -> bytes:
        limit = length
        if limit is None:
            info = await box.sandbox.files.stat(path, follow=True)
            # A file of /proc has no size, and another may grow meanwhile.
            limit = min(max(info.size - offset, _LEAST_READ), MAX_READ)
        share = held.enter_context(self._context.kept.share())
        if share.take(limit) < limit:
            raise service_error("busy", "others have large files read at the moment: try again")
        return await box.sandbox.files.read(path, offset=offset, length=length, limit=limit)

    async def write(self, request: Request) -> Response:
        box = self._context.box(request)
        async with self._bodies.read(request, max_body=MAX_WRITTEN_BODY) as body:
            asked = await body.work(WriteFile.parse, body.value)
            content = await body.work(_content, asked)
        with box.used():
            await box.sandbox.files.write(box.resolve(asked.path), content)
        return json_response({})

    async def list_directory(self, request: Request) -> Response:
        box = self._context.box(request)
        path = box.resolve(parameters(request, {"folder"}).get("folder"))
        with box.used():
            entries = await box.sandbox.files.list(path, limit=MAX_ENTRIES)
        return rendered_response(await in_thread(_listing, entries))

    async def stat(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = parameters(request, {"path", "follow"})
        follow = asked.get("follow", "false")
        if follow not in ("true", "false"):
            raise service_error("request_invalid", "follow is true or false")
        with box.used():
            info = await box.sandbox.files.stat(_path(box, asked, "path"), follow=follow == "true")
        version = blake2b(f"{info.inode} {info.modified} {info.size}".encode(), digest_size=12).hexdigest()
        return json_response(
            {
                "type": info.type,
                "size": info.size,
                "mod_time": _time(info.modified),
                "inode": info.inode,
                "version": version,
            }
        )

    async def mkdir(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, MakeDirectory)
        with box.used():
            await box.sandbox.files.mkdir(box.resolve(asked.path), parents=asked.parents)
        return json_response({})

    async def rename(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Rename)
        with box.used():
            await box.sandbox.files.rename(box.resolve(asked.source), box.resolve(asked.target))
        return json_response({})

    async def remove(self, request: Request) -> Response:
        box = self._context.box(request)
        asked = await self._context.asked(request, Remove)
        with box.used():
            await box.sandbox.files.remove(box.resolve(asked.path), recursive=asked.recursive)
        return json_response({})

    async def upload(self, request: Request) -> Response:
        box = self._context.box(request)
        box.check_awake()  # before a body is read that nobody could use
        with self._context.spooled.share() as share:
            size = int(min(announced_size(request) or MAX_UPLOAD, MAX_UPLOAD))
            if share.take(size) < size:
                raise service_error("busy", "others upload large files at the moment: try again")
            await self._upload(request, box)
        return json_response({})

    async def _upload(self, request: Request, box: ServedBox) -> None:
        async with read_upload(request, max_bytes=MAX_UPLOAD, max_files=MAX_UPLOADED_FILES) as upload:
            if len(upload.paths) != len(upload.files):
                raise service_error("request_invalid", "as many paths are needed as there are files")
            with box.used():
                for path, file in zip(upload.paths, upload.files, strict=True):
                    await box.sandbox.files.write(box.resolve(path), _pieces(file.content))

    async def download(self, request: Request) -> Response:
        box = self._context.box(request)
        path = _path(box, parameters(request, {"folder"}), "folder")
        return _Download(box, path)


class _Download(Response):
    """A file of a box, in pieces."""

    def __init__(self, box: ServedBox, path: str) -> None:
        super().__init__(media_type="application/octet-stream")
        self._box = box
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Opening fails before anything is answered, and whoever goes away meanwhile leaves nothing open.
        with self._box.used():
            async with self._box.sandbox.files.open(self._path) as pieces:
                await StreamingResponse(pieces, media_type=self.media_type)(scope, receive, send)


def _path(box: ServedBox, asked: dict[str, str], key: str) -> str:
    if not asked.get(key):
        raise service_error("request_invalid", f"{key}: missing")
    return box.resolve(asked[key])


def _count(asked: dict[str, str], key: str) -> int | None:
    if key not in asked:
        return None
    if not (asked[key].isascii() and asked[key].isdigit() and len(asked[key]) <= 15):
        raise service_error("request_invalid", f"{key}: a number of bytes")
    return int(asked[key])


def _encoding(asked: str | None) -> str:
    if asked not in (None, "", "utf-8", "utf8", "base64"):
        raise service_error("request_invalid", "encoding is utf-8 or base64")
    return "base64" if asked == "base64" else "utf-8"


def _content(asked: WriteFile) -> bytes:
    try:
        if asked.encoding == "base64":
            return base64.b64decode(asked.content, validate=True)
        return asked.content.encode()
    except (binascii.Error, UnicodeEncodeError, ValueError):
        wanted = "base64" if asked.encoding == "base64" else "text"
        raise service_error("request_invalid", f"content: this is no {wanted}") from None


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await in_thread(file.read, _PIECE):
        yield piece


def _listing(entries: Iterable[FileInfo]) -> str:
    return render_json({"files": [_entry(entry) for entry in entries]})


def _entry(info: FileInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "path": info.path,
        "size": info.size,
        "is_dir": info.type == "directory",
        "mod_time": _time(info.modified),
    }


def _time(seconds: float) -> str:
    """RFC 3339, in UTC. The box sets its files' times as it likes, also to years that no calendar has."""
    bounded = min(max(seconds, 0.0), _LAST_TIME)
    return datetime.fromtimestamp(bounded, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
