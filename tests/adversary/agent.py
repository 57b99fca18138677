"""The hand inside the box: does what it is told, line by line, and tells what came of it.

It is handed to ``python3 -c`` in whatever box is attacked, so it is one file, needs nothing but the standard
library, and runs on Python 3.8. A task is a line of JSON on standard input, its result one on standard
output; tasks run at the same time, each in a thread. Bytes travel as base64.
"""

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

CHUNK = 65536


def name_of(error):
    """What an error is called: ECONNRESET, timeout, SSLError ..."""
    if isinstance(error, (socket.timeout, TimeoutError)) and not getattr(error, "errno", None):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        return "SSLError: " + str(error)
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__ + ": " + str(error)


class Agent:
    def __init__(self):
        self.sockets = {}
        self.held = []
        self.lock = threading.Lock()

    def run(self, task):
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

    def do_connect(self, line, address, port, timeout, receive_buffer=None, fast_open=None):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.sockets[line] = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if fast_open is None:
            sock.connect((address, port))
        else:
            sock.sendto(base64.b64decode(fast_open), socket.MSG_FASTOPEN, (address, port))
        return {"local": list(sock.getsockname()[:2])}

    def do_send(self, line, data, timeout, segment=0, pause=0.0):
        sock, data = self.sockets[line], base64.b64decode(data)
        sock.settimeout(timeout)
        size = segment or len(data) or 1
        for start in range(0, len(data), size):
            if pause and start:
                time.sleep(pause)
            sock.sendall(data[start : start + size])
        return {}

    def do_read(self, line, timeout, size=None, until=None):
        """Up to the end, or until there are that many bytes, or those bytes."""
        sock, until = self.sockets[line], base64.b64decode(until or "")
        deadline, data, ended = time.monotonic() + timeout, b"", None
        while ended is None:
            if (size is not None and len(data) >= size) or (until and until in data):
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

    def do_end(self, line):
        self.sockets[line].shutdown(socket.SHUT_WR)
        return {}

    def do_close(self, line, reset=False):
        sock = self.sockets.pop(line, None)
        if sock is not None:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        return {}

    def do_tls(self, line, name, timeout, authority=None, protocols=(), newest=None):
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
        self.sockets[line] = sock = context.wrap_socket(sock, server_hostname=name)
        certificate = sock.getpeercert(binary_form=True)
        return {"certificate": base64.b64encode(certificate).decode(), "version": sock.version()}

    # Everything else.

    def do_datagram(self, address, port, data, timeout, replies=1):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.connect((address, port))
            sock.send(base64.b64decode(data))
            received = [base64.b64encode(sock.recv(CHUNK)).decode() for _ in range(replies)]
        return {"data": received}

    def do_hold(self, address, port, data, count):
        """Open many connections, send the same on each, and keep them."""
        data, connected, failed = base64.b64decode(data), 0, {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for _ in range(count):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
                self.held.append(sock)
                sock.settimeout(10)
                sock.connect((address, port))
                sock.sendall(data)
                connected += 1
            except OSError as error:
                failed[name_of(error)] = failed.get(name_of(error), 0) + 1
        return {"connected": connected, "failed": failed}

    def do_held(self, timeout, ended=None):
        """What has become of those connections. Waits until that many have ended, or the time is over."""
        watched, counts = selectors.DefaultSelector(), {"eof": 0, "reset": 0, "data": 0}
        open_ones = [sock for sock in self.held if sock.fileno() >= 0]
        for sock in open_ones:
            watched.register(sock, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and (ended is None or counts["eof"] + counts["reset"] < ended):
            for key, _ in watched.select(min(0.1, timeout)):
                try:
                    key.fileobj.setblocking(False)
                    if key.fileobj.recv(CHUNK):
                        counts["data"] += 1
                        continue
                    counts["eof"] += 1
                except BlockingIOError:
                    continue
                except OSError:
                    counts["reset"] += 1
                watched.unregister(key.fileobj)
        return dict(counts, open=len(watched.get_map() or ()))

    def do_release(self):
        for sock in self.held:
            sock.close()
        self.held.clear()
        for line in list(self.sockets):
            self.do_close(line)
        return {}

    def do_python(self, source):
        """Run Python code; what it leaves in ``result`` comes back."""
        names = {"agent": self}
        exec(compile(source, "<attack>", "exec"), names)
        return {"value": names.get("result")}

    def do_program(self, argv, timeout, text=None, environment=None):
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


def main():
    agent = Agent()
    for line in sys.stdin:
        threading.Thread(target=agent.run, args=(json.loads(line),), daemon=True).start()


main()
