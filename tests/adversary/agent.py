"""The hand inside the box: does what it is told, line by line, and tells what came of it.

It is handed to ``python3 -c`` in whatever box is attacked, so it is one file, needs nothing but the standard
library, and runs on Python 3.8. A task is a line of JSON on standard input, its result one on standard
output; tasks run at the same time, each in a thread. Bytes travel as base64.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import Any

CHUNK = 65536


def name_of(error: BaseException) -> str:
    """What an error is called: ECONNRESET, timeout, SSLError ..."""
    if isinstance(error, (socket.timeout, TimeoutError)) and not getattr(error, "errno", None):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        return "SSLError: " + str(error)
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__ + ": " + str(error)


class Agent:
    def __init__(self) -> None:
        self.sockets: dict[int, socket.socket] = {}
        self.held: list[socket.socket] = []
        self.lock = threading.Lock()

    def run(self, task: dict[str, Any]) -> None:
        started = time.monotonic()
        try:
            result = getattr(self, "do_" + task["do"])(**task.get("with", {}))
        except BaseException as error:
            result = {"error": name_of(error)}
        result["seconds"] = time.monotonic() - started
        line = json.dumps({"id": task["id"], "result": result}) + "\n"
        with self.lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    # A connection, step by step.

    def do_connect(
        self,
        line: int,
        address: str,
        port: int,
        timeout: float,
        receive_buffer: int | None = None,
        fast_open: str | None = None,
    ) -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.sockets[line] = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if fast_open is None:
            sock.connect((address, port))
        else:
            sock.setblocking(True)  # or the data is not even queued where there is no cookie yet
            sock.sendto(base64.b64decode(fast_open), socket.MSG_FASTOPEN, (address, port))
        return {"local": list(sock.getsockname()[:2])}

    def do_send(
        self, line: int, data: str, timeout: float, segment: int = 0, pause: float = 0.0
    ) -> dict[str, Any]:
        sock, sent = self.sockets[line], base64.b64decode(data)
        sock.settimeout(timeout)
        size = segment or len(sent) or 1
        for start in range(0, len(sent), size):
            if pause and start:
                time.sleep(pause)
            sock.sendall(sent[start : start + size])
        return {}

    def do_read(
        self, line: int, timeout: float, size: int | None = None, until: str | None = None
    ) -> dict[str, Any]:
        """Up to the end, or until there are that many bytes, or those bytes."""
        sock, marker = self.sockets[line], base64.b64decode(until or "")
        deadline, data = time.monotonic() + timeout, b""
        ended: str | None = None
        while ended is None:
            if (size is not None and len(data) >= size) or (marker and marker in data):
                break
            left = deadline - time.monotonic()
            if left <= 0:
                ended = "timeout"
                break
            try:
                sock.settimeout(left)
                piece = sock.recv(CHUNK if size is None else size - len(data))
            except (socket.timeout, ssl.SSLWantReadError):
                ended = "timeout"
            except ConnectionResetError:
                ended = "reset"
            except OSError as error:
                ended = name_of(error)
            else:
                data += piece
                if not piece:
                    ended = "eof"
        return {"data": base64.b64encode(data).decode(), "ended": ended}

    def do_end(self, line: int) -> dict[str, Any]:
        self.sockets[line].shutdown(socket.SHUT_WR)
        return {}

    def do_close(self, line: int, reset: bool = False) -> dict[str, Any]:
        sock = self.sockets.pop(line, None)
        if sock is not None:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        return {}

    def do_tls(
        self,
        line: int,
        name: str | None,
        timeout: float,
        authority: str | None = None,
        protocols: list[str] | None = None,
        newest: str | None = None,
    ) -> dict[str, Any]:
        """A handshake on a connection. ``authority``: certificates that are trusted; none: any."""
        context = ssl.create_default_context()
        if authority:
            context.load_verify_locations(cadata=authority)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.check_hostname = bool(authority and name)
        if protocols:
            context.set_alpn_protocols(protocols)
        if newest:
            context.maximum_version = getattr(ssl.TLSVersion, newest)
        sock = self.sockets[line]
        sock.settimeout(timeout)
        self.sockets[line] = secure = context.wrap_socket(sock, server_hostname=name)
        certificate = secure.getpeercert(binary_form=True) or b""
        return {"certificate": base64.b64encode(certificate).decode(), "version": secure.version()}

    # Everything else.

    def do_datagram(
        self, address: str, port: int, data: str, timeout: float, replies: int = 1
    ) -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.connect((address, port))
            sock.send(base64.b64decode(data))
            received = [base64.b64encode(sock.recv(CHUNK)).decode() for _ in range(replies)]
        return {"data": received}

    def do_hold(self, address: str, port: int, data: str, count: int) -> dict[str, Any]:
        """Open many connections, send the same on each, and keep them."""
        sent, connected = base64.b64decode(data), 0
        failed: dict[str, int] = {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for _ in range(count):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
                self.held.append(sock)
                sock.settimeout(10)
                sock.connect((address, port))
                sock.sendall(sent)
                connected += 1
            except OSError as error:
                failed[name_of(error)] = failed.get(name_of(error), 0) + 1
        return {"connected": connected, "failed": failed}

    def do_held(self, timeout: float, ended: int | None = None) -> dict[str, Any]:
        """What has become of those connections. Waits until that many have ended, or the time is over."""
        watched, counts = selectors.DefaultSelector(), {"eof": 0, "reset": 0, "data": 0}
        open_ones = [sock for sock in self.held if sock.fileno() >= 0]
        for sock in open_ones:
            watched.register(sock, selectors.EVENT_READ, sock)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and (ended is None or counts["eof"] + counts["reset"] < ended):
            for key, _ in watched.select(min(0.1, timeout)):
                try:
                    key.data.setblocking(False)
                    if key.data.recv(CHUNK):
                        counts["data"] += 1
                        continue
                    counts["eof"] += 1
                except BlockingIOError:
                    continue
                except OSError:
                    counts["reset"] += 1
                watched.unregister(key.data)
        return dict(counts, open=len(watched.get_map() or ()))

    def do_release(self) -> dict[str, Any]:
        for sock in self.held:
            sock.close()
        self.held.clear()
        for line in list(self.sockets):
            self.do_close(line)
        return {}

    def do_python(self, source: str) -> dict[str, Any]:
        """Run Python code; what it leaves in ``result`` comes back."""
        names: dict[str, Any] = {"agent": self}
        exec(compile(source, "<attack>", "exec"), names)
        return {"value": names.get("result")}

    def do_program(
        self,
        argv: list[str],
        timeout: float,
        text: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        done = subprocess.run(
            argv,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=dict(os.environ, **(environment or {})),
            text=True,
            errors="replace",
        )
        return {"status": done.returncode, "output": done.stdout}


def main() -> None:
    agent = Agent()
    for line in sys.stdin:
        threading.Thread(target=agent.run, args=(json.loads(line),), daemon=True).start()


main()
