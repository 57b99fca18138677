"""Other programs' readings of an HTTP/1 byte stream, to be held against the gate's."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Final

import h11

_LARGEST_HEAD: Final = 1 << 20


@dataclass(frozen=True)
class Message:
    """One request, as a server reads it."""

    method: bytes
    target: bytes
    hosts: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True)
class Reading:
    """What a server reads on one connection: whole requests, until there is no more, or no sense."""

    messages: list[Message]
    refused: bool = False


type Reader = Callable[[bytes], Reading]


def h11_reads(data: bytes) -> Reading:
    """As h11 does, which is strict."""
    messages: list[Message] = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD)
        connection.receive_data(data)
        message = None
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    hosts = tuple(value for name, value in event.headers if name == b"host")
                    message = Message(event.method, event.target, hosts, b"")
                elif isinstance(event, h11.Data) and message is not None:
                    message = replace(message, body=message.body + bytes(event.data))
                else:
                    return Reading(messages)
        except h11.RemoteProtocolError:
            return Reading(messages, refused=True)
        if message is not None:
            messages.append(message)
        data = connection.trailing_data[0]
    return Reading(messages)


class _Head(BaseHTTPRequestHandler):
    """One head, read without a connection."""

    def __init__(self, stream: BytesIO) -> None:
        self.rfile = stream
        self.wfile = BytesIO()
        self.raw_requestline = stream.readline()
        self.is_valid = self.parse_request()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        pass


def http_server_reads(data: bytes) -> Reading:
    """As the standard library's http.server reads heads, which is lenient; bodies as they say themselves."""
    messages: list[Message] = []
    stream = BytesIO(data)
    while stream.tell() < len(data):
        head = _Head(stream)
        if not head.is_valid:
            return Reading(messages, refused=True)
        try:
            body = _body(stream, head)
        except ValueError:
            return Reading(messages, refused=True)
        if body is None:
            break
        hosts = tuple(value.encode("latin-1") for value in head.headers.get_all("Host", []))
        target = head.requestline.split()[1]
        messages.append(Message(head.command.encode("latin-1"), target.encode("latin-1"), hosts, body))
    return Reading(messages)


def _body(stream: BytesIO, head: _Head) -> bytes | None:
    """None if it is not all there."""
    if "chunked" in head.headers.get("Transfer-Encoding", "").lower():
        body = b""
        while line := stream.readline():
            size = int(line.split(b";")[0], 16)
            piece = stream.read(size)
            if len(piece) < size or not stream.readline():
                return None
            if size == 0:
                return body
            body += piece
        return None
    length = int(head.headers.get("Content-Length", 0))
    body = stream.read(length)
    return body if len(body) == length else None


_LLHTTP: Final = r"""
const {HTTPParser, allMethods} = process.binding('http_parser');
const lenient = process.argv[1] === 'lenient' ? HTTPParser.kLenientAll : HTTPParser.kLenientNone;
function read(data) {
  const messages = [];
  let fields = [], url = '', now = null;
  const parser = new HTTPParser();
  parser.initialize(HTTPParser.REQUEST, {}, 1 << 20, lenient);
  parser[HTTPParser.kOnHeaders] = (more, part) => { fields.push(...more); url += part; };
  parser[HTTPParser.kOnHeadersComplete] = (major, minor, more, method, part) => {
    fields.push(...(more || []));
    now = {method: allMethods[method], target: url + (part || ''), fields, body: ''};
    fields = []; url = '';
    return 0;
  };
  parser[HTTPParser.kOnBody] = (piece) => { now.body += piece.toString('latin1'); };
  parser[HTTPParser.kOnMessageComplete] = () => { messages.push(now); fields = []; };
  return {messages, refused: parser.execute(data) instanceof Error};
}
require('readline').createInterface({input: process.stdin}).on('line', (line) => {
  process.stdout.write(JSON.stringify(read(Buffer.from(line, 'base64'))) + '\n');
});
"""


class Llhttp:
    """As llhttp does, the parser of Node.js, in a process of its own.

    ``mode``: ``strict``, or ``lenient`` in all that it can be.
    """

    def __init__(self, mode: str) -> None:
        self._process = subprocess.Popen(
            [shutil.which("node") or "node", "--no-deprecation", "-e", _LLHTTP, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, data: bytes) -> Reading:
        pipes = self._process
        assert pipes.stdin is not None and pipes.stdout is not None
        pipes.stdin.write(base64.b64encode(data) + b"\n")
        pipes.stdin.flush()
        read = json.loads(pipes.stdout.readline())
        messages = [
            Message(
                message["method"].encode("latin-1"),
                message["target"].encode("latin-1"),
                tuple(
                    value.encode("latin-1")
                    for name, value in zip(message["fields"][::2], message["fields"][1::2], strict=True)
                    if name.lower() == "host"
                ),
                message["body"].encode("latin-1"),
            )
            for message in read["messages"]
        ]
        return Reading(messages, read["refused"])

    def close(self) -> None:
        self._process.communicate(timeout=10)
