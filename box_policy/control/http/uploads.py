"""Takes forms with files (multipart/form-data, RFC 7578), within bounds of number, size and time."""

import asyncio
import contextlib
import errno
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from box_policy.control.http.answers import ApiError
from box_policy.control.http.bodies import announced_size, body_too_large
from box_policy.policy.quoting import quoted

_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, section 5.1.1."""
_MAX_FIELD: Final = 4096
"""Bytes of a field that is no file; as of a path (PATH_MAX)."""
_IN_MEMORY: Final = 32 * 1024
"""Bytes of a file that are kept in memory; larger ones go to the disk."""
_WITHOUT_BYTES: Final = 30.0
"""Seconds that a client may send nothing."""
_IN_ALL: Final = 3600.0
"""Seconds that an upload may take."""


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One file of a form."""

    name: str
    """As the client calls it: it may be anything."""
    size: int
    """Bytes."""
    content: BinaryIO
    """At its beginning. It has no name in the file system, and is gone when the form is closed."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A form: its fields ``paths`` and its files ``files``, each in the order they came in."""

    paths: tuple[str, ...]
    files: tuple[UploadedFile, ...]


class _Parser(MultiPartParser):
    """Starlette's parser, but a form that breaks off is none: there, a file that isn't whole is left out."""

    spool_max_size = _IN_MEMORY

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], max_parts: int) -> None:
        super().__init__(
            headers,
            self._checked(stream),
            max_files=max_parts,
            max_fields=max_parts,
            max_part_size=_MAX_FIELD,
        )
        self._whole = False

    def on_end(self) -> None:
        self._whole = True

    async def _checked(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._whole:
            raise MultiPartException("it breaks off")


@contextlib.asynccontextmanager
async def read_upload(
    request: Request,
    *,
    max_bytes: int,
    max_files: int,
    without_bytes: float = _WITHOUT_BYTES,
    in_all: float = _IN_ALL,
) -> AsyncIterator[Upload]:
    """The form in a request's body. Its files are closed when the context ends.

    Args:
        max_bytes: of the whole body.
        max_files: and as many fields.
        without_bytes: seconds that the client may send nothing.
        in_all: seconds for the whole body.

    Raises:
        ApiError: there is none, or it breaks a bound.
        ClientDisconnect: the client went away before the end.
    """
    boundary = _boundary(request)
    if announced_size(request) > max_bytes:
        raise body_too_large(max_bytes)
    parser = _Parser(
        # Of the client's own header only this: a charset would choose how names are decoded.
        Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'}),
        _bounded(request, max_bytes, without_bytes),
        max_files,
    )
    try:
        async with asyncio.timeout(in_all):
            form = await parser.parse()
    except MultiPartException as error:
        raise ApiError("body_invalid", f"the form is not acceptable: {error.message}") from None
    except TimeoutError:
        raise ApiError("body_timeout", f"the body was not here within {in_all:g} seconds") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ApiError("storage_full", "there is no room for the upload", status=507) from None
    try:
        yield _upload(form.multi_items())
    finally:
        for _, value in form.multi_items():
            if isinstance(value, UploadFile):
                value.file.close()


def _boundary(request: Request) -> str:
    types = request.headers.getlist("content-type")
    media_type, options = parse_options_header(types[0] if len(types) == 1 else "")
    if media_type != b"multipart/form-data":
        raise ApiError("media_type_unsupported", "send the files as Content-Type: multipart/form-data")
    encodings = request.headers.getlist("content-encoding")
    if any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise ApiError("media_type_unsupported", "send the body without a Content-Encoding")
    boundary = options.get(b"boundary", b"").decode("latin-1")
    if not _BOUNDARY.fullmatch(boundary):
        raise ApiError("body_invalid", "the form is not acceptable: it has no boundary, or none of RFC 2046")
    return boundary


async def _bounded(request: Request, max_bytes: int, without_bytes: float) -> AsyncGenerator[bytes, None]:
    """The body as it comes in, as long as it keeps to its bounds."""
    stream = request.stream()
    size = 0
    try:
        while True:
            async with asyncio.timeout(without_bytes):
                chunk = await anext(stream)
            size += len(chunk)
            if size > max_bytes:
                raise body_too_large(max_bytes)
            yield chunk
    except StopAsyncIteration:
        return
    except TimeoutError:
        message = f"nothing of the body came for {without_bytes:g} seconds"
        raise ApiError("body_timeout", message) from None


def _upload(items: list[tuple[str, UploadFile | str]]) -> Upload:
    paths: list[str] = []
    files: list[UploadedFile] = []
    for field, value in items:
        if isinstance(value, UploadFile) and field == "files":
            files.append(UploadedFile(value.filename or "", value.size or 0, value.file))
        elif isinstance(value, str) and field == "paths":
            paths.append(value)
        else:
            raise ApiError(
                "body_invalid",
                f"the form is not acceptable: it has fields paths and files named files, no {quoted(field)}",
            )
    return Upload(tuple(paths), tuple(files))
