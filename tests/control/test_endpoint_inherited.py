"""A listening socket that the endpoint is handed."""

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from box_policy.control.endpoint import ControlError, Endpoint, InheritedAddress
from tests.control.serving import serving


async def quick(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("quick")(scope, receive, send)


ABSTRACT = "\0box-policy-test-"


def listening(name: str = "") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(name)
    sock.listen()
    return sock


SPEAK = """
import os, socket, sys
{before}
peer = socket.socket(socket.AF_UNIX)
peer.connect(bytes.fromhex(sys.argv[1]))
peer.sendall(b"GET /v2/quick HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
while data := peer.recv(65536):
    os.write(1, data)
"""


async def speak(name: bytes, before: str = "") -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", SPEAK.format(before=before), name.hex(),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        answer, errors = await process.communicate()
    if b"setuid" in errors or b"setgroups" in errors:
        pytest.skip(f"not possible here: {errors.decode().splitlines()[-1]}")
    return answer + errors


class TestInheritedSocket:
    @pytest.mark.parametrize("bound", ["autobound", "abstract", "path"])
    async def test_it_is_served(self, tmp_path: Path, bound: str) -> None:
        names = {"autobound": "", "abstract": f"{ABSTRACT}{os.getpid()}", "path": str(tmp_path / "x.sock")}
        sock = listening(names[bound])
        name = sock.getsockname()
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(name)  # before anybody serves
        address = InheritedAddress(sock.detach())
        os.set_inheritable(address.fd, True)  # as it was to come here
        async with serving(address, quick) as served:
            assert str(served.endpoint.address) == f"file descriptor {address.fd}"
            assert not os.get_inheritable(address.fd)
            reader, writer = await asyncio.open_unix_connection(sock=waiting)
            writer.write(b"GET /v2/quick HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(5):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            encoded = name if isinstance(name, bytes) else name.encode()
            assert (await speak(encoded)).startswith(b"HTTP/1.1 200")
            writer.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.fcntl(address.fd, fcntl.F_GETFD)
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(name)

    async def test_another_user_is_not_served(self) -> None:
        """Whoever is in the same network namespace can connect to an abstract socket."""
        sock = listening()
        name = sock.getsockname()
        async with serving(InheritedAddress(sock.detach()), quick):
            answer = await speak(name, "os.setgroups([]); os.setgid(1234); os.setuid(1234)")
        assert answer.startswith(b"HTTP/1.1 403")
        assert b'"code":"peer_refused"}' in answer

    async def test_a_process_in_a_box_is_not(self) -> None:
        sock = listening()
        name = sock.getsockname()
        async with serving(InheritedAddress(sock.detach()), quick, foreign=lambda cookie: True):
            assert (await speak(name)).startswith(b"HTTP/1.1 403")

    @pytest.mark.parametrize("kind", ["closed", "negative", "file", "datagram", "TCP", "silent", "connected"])
    def test_what_can_not_be_served(self, tmp_path: Path, kind: str) -> None:
        kept: list[socket.socket] = []
        match kind:
            case "closed":
                fd = os.dup(0)
                os.close(fd)
            case "negative":
                fd = -1
            case "file":
                fd = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
            case "datagram":
                kept = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)]
            case "TCP":
                kept = [socket.create_server(("127.0.0.1", 0))]
            case "silent":
                kept = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)]
            case "connected":
                kept = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        if kept:
            fd = kept[0].fileno()
        with pytest.raises(ControlError):
            Endpoint(InheritedAddress(fd), quick).start()
        if kind not in ("closed", "negative"):
            os.fstat(fd)  # it is still open: not ours to close
        for sock in kept:
            sock.close()
