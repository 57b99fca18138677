"""A box service that keeps to the wire format, runs nothing, and misbehaves where a test tells it to."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

KEY = "key-of-the-stub"


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content) if self.content else None


@dataclass(frozen=True)
class Answer:
    """An answer: JSON, or bytes as they are, or pieces that go out one by one."""

    value: Any = None
    status: int = 200
    content: bytes | None = None
    pieces: Iterator[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Broken(Exception):
    """The connection is to end without another byte."""


type Rule = Callable[[Asked], Answer]


class Stub:
    """The service. ``on`` replaces what it answers to requests of one kind."""

    def __init__(self) -> None:
        self.boxes: dict[str, dict[str, Any]] = {}
        self.snapshots: list[dict[str, Any]] = []
        self.variables: dict[str, str] = {}
        self.asked: list[Asked] = []
        self._rules: list[tuple[str, re.Pattern[str], Rule]] = []
        self._made = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (Broken, ConnectionError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

            def do(self) -> None:
                stub._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def on(self, method: str, path: str, rule: Rule) -> None:
        """Answer by ``rule`` from now on; the path is a regular expression."""
        self._rules.insert(0, (method, re.compile(path), rule))

    def paths(self, method: str) -> list[str]:
        """What has been asked so far by that method."""
        return [asked.path for asked in self.asked if asked.method == method]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        content = handler.rfile.read(length)
        if handler.headers.get("transfer-encoding") == "chunked":
            content = b"".join(_chunks(handler))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, parts.path, dict(parse_qsl(parts.query)), headers, content)
        self.asked.append(asked)
        _send(handler, self._answer(asked))

    def _answer(self, asked: Asked) -> Answer:
        for method, path, rule in self._rules:
            if method == asked.method and path.fullmatch(asked.path):
                return rule(asked)
        if asked.headers.get("x-box-api-key") != KEY:
            return Answer({"error": "wrong key", "code": "unauthorized"}, 401)
        steps = [unquote(step) for step in asked.path.removeprefix("/v2/box").strip("/").split("/")]
        match asked.method, steps:
            case "GET", [""]:
                label = asked.query.get("label")
                return Answer([box for box in self.boxes.values() if not label or label in box["labels"]])
            case "POST", [""] | ["from-snapshot"]:
                return Answer(self.make(asked.body), 201)
            case "DELETE", [""]:
                for one in asked.body["ids"]:
                    self.boxes.pop(one, None)
                return Answer({})
            case "DELETE", ["snapshots"]:
                return Answer({"deleted": 0})
            case "GET", ["settings", "env"]:
                return Answer({"env_vars": self.variables})
            case "PUT", ["settings", "env"]:
                self.variables = asked.body["env_vars"]
                return Answer({})
            case "PUT", ["settings", "env", name]:
                self.variables[name] = asked.body["value"]
                return Answer({})
            case "DELETE", ["settings", "env", name]:
                self.variables.pop(name, None)
                return Answer({})
            case _, [box, *rest]:
                return self._of_box(asked, box, rest)
        return Answer({"error": "no such path", "code": "not_found"}, 404)

    def make(self, body: dict[str, Any]) -> dict[str, Any]:
        self._made += 1
        box = {
            "id": f"box-{self._made}",
            "name": body.get("name"),
            "status": "idle",
            "created_at": 1,
            "updated_at": 1,
            "size": body.get("size", "small"),
            "keep_alive": body.get("keep_alive", False),
            "labels": body.get("labels", []),
            "network_policy": body.get("network_policy") or {"mode": "allow-all"},
        }
        if body.get("ephemeral"):
            box["expires_at"] = 1_000 + body.get("ttl", 0)
        return self.boxes.setdefault(str(box["id"]), box)

    def _of_box(self, asked: Asked, name: str, rest: list[str]) -> Answer:
        box = next((one for one in self.boxes.values() if name in (one["id"], one["name"])), None)
        if box is None:
            return Answer({"error": f"there is no box {name}", "code": "box_unknown"}, 404)
        match asked.method, rest:
            case "GET", []:
                return Answer(box)
            case "DELETE", []:
                del self.boxes[box["id"]]
                return Answer(content=b"")
            case "GET", ["config", "network-policy"]:
                return Answer({"network_policy": box["network_policy"]})
            case "PUT", ["config", "network-policy"]:
                box["network_policy"] = asked.body
                return Answer({"network_policy": asked.body})
            case "POST", ["config", "labels"]:
                box["labels"].append(asked.body["label"])
                return Answer({"labels": box["labels"]})
            case "DELETE", ["config", "labels", label]:
                box["labels"].remove(label)
                return Answer({"labels": box["labels"]})
            case "POST", ["pause" | "resume"]:
                box["status"] = "paused" if rest == ["pause"] else "idle"
                return Answer({"status": box["status"]})
            case "GET", ["status"]:
                return Answer({"status": box["status"]})
            case "POST", ["exec" | "code"]:
                return Answer({"exit_code": 0, "output": "out", "error": "err"})
            case "POST", ["snapshots"]:
                self.snapshots.append(snapshot(asked.body["name"], box["id"]))
                return Answer(self.snapshots[-1])
            case "GET", ["snapshots"]:
                return Answer({"snapshots": self.snapshots})
            case "DELETE", ["snapshots", _]:
                self.snapshots.clear()
                return Answer({})
        return Answer({"error": "no such path", "code": "not_found"}, 404)


def snapshot(name: str, box: str, status: str = "ready") -> dict[str, Any]:
    """A snapshot as the service describes it."""
    return {"id": "s1", "name": name, "box_id": box, "size_bytes": 1, "status": status, "created_at": 1}


def _chunks(handler: BaseHTTPRequestHandler) -> Iterator[bytes]:
    while size := int(handler.rfile.readline(), 16):
        yield handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    content = json.dumps(answer.value).encode() if answer.content is None else answer.content
    handler.send_response(answer.status)
    headers = {"Content-Type": "application/json"} | answer.headers
    if answer.pieces is None:
        headers.setdefault("Content-Length", str(len(content)))
    else:
        headers["Transfer-Encoding"] = "chunked"
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    if answer.pieces is None:
        handler.wfile.write(content)
        return
    for piece in answer.pieces:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.flush()
    handler.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def silent_listener() -> Iterator[str]:
    """The URL of something that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
