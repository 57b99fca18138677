"""Forms with files."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from box_policy.control.http.answers import ApiError, json_response
from box_policy.control.http.bodies import Bodies
from box_policy.control.http.uploads import Upload, read_upload
from tests.control.serving import Served, serving

MAX_BYTES = 1024 * 1024
BOUNDARY = "b0undary"


class App:
    """Takes uploads, and notes what it took."""

    def __init__(self) -> None:
        self.uploads: list[Upload] = []
        self.fault: Exception | None = None
        self.without_bytes = 30.0
        self.in_all = 30.0
        self.app = Starlette(
            routes=[
                Route("/v2/upload", self.upload, methods=["POST"]),
                Route("/v2/body", self.body, methods=["POST"]),
            ],
            exception_handlers={ApiError: self.on_api_error},
        )

    @staticmethod
    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response_at(request.scope["path"])

    async def upload(self, request: Request) -> Response:
        times = {"without_bytes": self.without_bytes, "in_all": self.in_all}
        async with read_upload(request, max_bytes=MAX_BYTES, max_files=4, **times) as upload:
            self.uploads.append(upload)
            if self.fault is not None:
                raise self.fault
            contents = [len(file.content.read()) for file in upload.files]
        names = [file.name for file in upload.files]
        sizes = [file.size for file in upload.files]
        return json_response({"paths": upload.paths, "names": names, "sizes": sizes, "read": contents})

    async def body(self, request: Request) -> Response:
        async with Bodies().read(request, max_body=100_000) as body:
            return json_response(len(str(body.value)))


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def served(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    before = open_files(spool)
    async with serving(tmp_path, app.app) as served:
        yield served
    assert list(spool.iterdir()) == []
    assert open_files(spool) == before
    for upload in app.uploads:
        assert all(file.content.closed for file in upload.files)


def open_files(below: Path) -> int:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return sum(link.startswith(str(below)) for link in links)


def part(name: str, content: bytes, filename: str | None = None, *more: str) -> bytes:
    shown = "" if filename is None else f'; filename="{filename}"'
    lines = [f"--{BOUNDARY}", f'Content-Disposition: form-data; name="{name}"{shown}', *more, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class TestForms:
    async def test_files_and_their_paths(self, served: Served, app: App) -> None:
        files = [("files", ("a.txt", b"abc")), ("files", ("ünï/b", bytes(300_000))), ("files", ("c", b""))]
        async with served.client() as client:
            response = await client.post("/v2/upload", data={"paths": ["x/a.txt", "ü"]}, files=files)
        assert response.json() == {
            "paths": ["x/a.txt", "ü"],
            "names": ["a.txt", "ünï/b", "c"],
            "sizes": [3, 300_000, 0],
            "read": [3, 300_000, 0],
        }

    async def test_chunked_byte_by_byte(self, served: Served) -> None:
        body = part("paths", b"p") + part("files", b"\r\n--b0undar\r\n" * 3, "f") + END

        async def bytewise() -> AsyncIterator[bytes]:
            for byte in body:
                yield bytes([byte])

        async with served.client() as client:
            response = await client.post("/v2/upload", content=bytewise(), headers=TYPE)
        assert response.json()["sizes"] == [39]

    async def test_a_fault_closes_the_files(self, served: Served, app: App) -> None:
        app.fault = ApiError("box_paused", "paused", status=409)
        async with served.client() as client:
            response = await client.post("/v2/upload", files=[("files", ("f", bytes(200_000)))])
        assert response.json()["code"] == "box_paused"
        assert app.uploads[0].files[0].content.closed

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "body_invalid"),
            (b"nothing of the kind", "body_invalid"),
            (part("files", b"x", "f"), "body_invalid"),
            (part("files", b"x", "f") + b"--b0und", "body_invalid"),
            (part("files", b"x") + END, "body_invalid"),
            (part("paths", b"x", "f") + END, "body_invalid"),
            (part("other", b"x") + END, "body_invalid"),
            (part("paths", b"x" * 5000) + END, "body_invalid"),
            (part("files", b"x", "f") * 5 + END, "body_invalid"),
            (part("paths", b"x") * 5 + END, "body_invalid"),
            (part("files", b"x", "f" * 100_000) + END, "body_invalid"),
            (part("files", b"x", "f", "X: " + "x" * 100_000) + END, "body_invalid"),
            (part("files", b"x", "f", *["X: y"] * 1000) + END, "body_invalid"),
            (f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END, "body_invalid"),
            (part("files", bytes(MAX_BYTES), "f") + END, "body_too_large"),
        ],
        ids=lambda value: repr(value[:70]) if isinstance(value, bytes) else value,
    )
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_what_is_no_acceptable_form(
        self, served: Served, body: bytes, code: str, chunked: bool
    ) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for begin in range(0, len(body), 50_000):
                yield body[begin : begin + 50_000]

        async with served.client() as client:
            content = pieces() if chunked else body
            response = await client.post("/v2/upload", content=content, headers=TYPE)
        assert response.json()["code"] == code
        assert isinstance(response.json()["error"], str)

    @pytest.mark.parametrize(
        ("media_type", "code"),
        [
            ("application/json", "media_type_unsupported"),
            ("multipart/mixed; boundary=b", "media_type_unsupported"),
            ("multipart/form-data", "body_invalid"),
            ("multipart/form-data; boundary=", "body_invalid"),
            ("multipart/form-data; boundary=" + "x" * 71, "body_invalid"),
            ('multipart/form-data; boundary="\u00e9"', "body_invalid"),
        ],
    )
    async def test_other_media_types(self, served: Served, media_type: str, code: str) -> None:
        async with served.client() as client:
            headers = {"Content-Type": media_type.encode("latin-1")}
            response = await client.post("/v2/upload", content=END, headers=headers)  # type: ignore[arg-type]
        assert response.json()["code"] == code

    async def test_a_charset_does_not_choose_the_decoder(self, served: Served) -> None:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}; charset=utf-16"}
        async with served.client() as client:
            body = part("paths", b"ab") + part("files", b"x", "cd") + END
            response = await client.post("/v2/upload", content=body, headers=headers)
        assert (response.json()["paths"], response.json()["names"]) == (["ab"], ["cd"])

    async def test_a_client_that_leaves_in_the_middle(self, served: Served, app: App) -> None:
        _, writer = await served.open()
        head = f"POST /v2/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE['Content-Type']}\r\n"
        writer.write(f"{head}Content-Length: 900000\r\n\r\n".encode() + part("files", bytes(500_000), "f"))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await served.empty()
        assert app.uploads == []

    @pytest.mark.parametrize("bound", ["without_bytes", "in_all"])
    async def test_a_client_that_trickles(self, served: Served, app: App, bound: str) -> None:
        setattr(app, bound, 0.2)
        reader, writer = await served.open()
        head = f"POST /v2/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE['Content-Type']}\r\n"
        writer.write(f"{head}Content-Length: 900000\r\n\r\n".encode() + part("files", bytes(100_000), "f"))

        async def trickle() -> None:
            while bound == "in_all":
                writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"}")
        trickling.cancel()
        assert b"408" in answer.split(b"\r\n")[0]
        assert b'"code":"body_timeout"' in answer
        writer.close()

    async def test_no_room(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
        async with served.client() as client:
            response = await client.post("/v2/upload", files=[("files", ("f", b"x"))])
        assert (response.status_code, response.json()["code"]) == (507, "storage_full")


class TestBodies:
    @pytest.mark.parametrize(("size", "status"), [(100_000, 200), (100_001, 413)])
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_bound_of_their_own(self, served: Served, size: int, status: int, chunked: bool) -> None:
        body = b'"x"'.ljust(size)

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        async with served.client() as client:
            headers = {"Content-Type": "application/json"}
            response = await client.post("/v2/body", content=pieces() if chunked else body, headers=headers)
        assert response.status_code == status
