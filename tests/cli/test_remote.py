"""How commands find a gate, and what they say when that fails: one line, and no traceback."""

import contextlib
import gzip
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from box_policy.cli import client, connection
from box_policy.cli.client import Broken, Client, Opened, Told
from box_policy.cli.main import app
from box_policy.cli.remote import default_address
from box_policy.control.http.address import parse_control_address
from box_policy.gate import mode

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def box_policy(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, arguments, env={"BOX_POLICY_CONTROL": None, "BOX_POLICY_CONTROL_TOKEN": None}
    )


def said(*arguments: str) -> tuple[int, str]:
    """The exit status, and the one line on standard error; there is none on standard output."""
    result = box_policy(*arguments)
    assert result.stdout == ""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("box-policy: ")
    assert result.stderr.count("\n") == 1
    return result.exit_code, result.stderr.removeprefix("box-policy: ").rstrip("\n")


class Odd:
    """Something on a unix socket that is no gate."""

    def __init__(self, path: Path, cleanup: contextlib.ExitStack) -> None:
        self._path = path
        self._cleanup = cleanup
        self.asked: list[bytes] = []

    def __call__(self, *answers: bytes, then: str = "close", user: int = -1) -> str:
        """Answer a request each, the last one for ever; and then close, wait, or repeat the answer's end
        (or dribble it) for as long as the client reads. Returns the address."""
        listener = self._cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self._path))
        before = os.geteuid()
        os.seteuid(user if user >= 0 else before)
        try:
            listener.listen()
        finally:
            os.seteuid(before)
        thread = threading.Thread(target=self._serve, args=(listener, answers, then))
        thread.start()
        self._cleanup.callback(thread.join)
        # To close it doesn't wake who waits in accept().
        self._cleanup.callback(listener.shutdown, socket.SHUT_RDWR)
        return str(self._path)

    def _serve(self, listener: socket.socket, answers: tuple[bytes, ...], then: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    asked = b""
                    # With the body: to close before all is read would reset the connection.
                    while not _is_whole(asked):
                        received = connection.recv(65536)
                        if not received:
                            raise ConnectionError
                        asked += received
                    answer = answers[min(len(self.asked), len(answers) - 1)]
                    self.asked.append(asked)
                    connection.sendall(answer)
                    while then == "repeat":
                        connection.sendall(answer[-65536:])
                    while then == "dribble":
                        connection.sendall(answer[-1:])
                        time.sleep(0.01)
                    if then == "wait":
                        connection.recv(1)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    announced = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(announced[1] if announced else 0)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Odd]:
    with contextlib.ExitStack() as cleanup:
        yield Odd(tmp_path / "odd.sock", cleanup)


class TestTheAddress:
    def test_nothing_there(self, tmp_path: Path) -> None:
        path = f"{tmp_path}/none.sock"
        assert said("status", "--control", path) == (
            1,
            f"no gate listens at unix:{path}: start one (box-policy serve, box-policy run --control "
            f"unix:{path}, or mitmdump --set box_policy_control=unix:{path}), or name another with "
            "--control",
        )

    def test_a_socket_that_a_gate_left_behind(self, tmp_path: Path) -> None:
        path = tmp_path / "stale.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        code, line = said("policy", "get", "--control", f"unix:{path}")
        assert (code, line.partition(":")[0]) == (1, "no gate listens at unix")

    def test_a_file_that_is_no_socket(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert said("tail", "--control", f"{tmp_path}/file")[1].startswith("no gate listens at ")

    def test_a_port_where_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        code, line = said("status", "--control", f"127.0.0.1:{port}")
        assert (code, line.partition(":")[0]) == (1, "no gate listens at 127.0.0.1")

    def test_a_socket_of_somebody_elses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def connect(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "connect", connect)
        assert said("status", "--control", f"{tmp_path}/gate.sock") == (
            1,
            f"unix:{tmp_path}/gate.sock: permission denied; run this as the gate's own user",
        )

    def test_a_socket_that_somebody_else_serves(self, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
        """They might be after the token, or after what a policy says of those who wrote it."""
        address = odd(HEAD + b"\r\n{}")
        peer = struct.pack("3i", 1, 4242, 4242)
        monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: peer)
        assert said("policy", "get", "--control", address) == (
            1,
            f"unix:{address} is served by user 4242, who is neither you nor root; nothing was sent to it. "
            "If that is the gate's own user, run this as that user",
        )
        assert odd.asked == []
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        assert "is no box-policy gate" in said("policy", "get", "--control", address)[1]

    @pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
    def test_the_kernel_says_who_serves_it(self, odd: Odd) -> None:
        # The kernel keeps the credentials with which it began to listen.
        address = odd(HEAD + b"\r\n{}", user=4242)
        assert "is served by user 4242" in said("policy", "get", "--control", address)[1]
        assert odd.asked == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="root alone may use the gate of another user")
    def test_root_may_use_the_gate_of_whoever_owns_the_directory(
        self, odd: Odd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = odd(HEAD + b"\r\n{}")
        monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: struct.pack("3i", 1, 4242, 4242))
        stat = Path.stat

        def owned(path: Path, **options: bool) -> os.stat_result:
            status = stat(path, **options)
            return (
                os.stat_result((*status[:4], 4242, *status[5:10])) if path == Path(address).parent else status
            )

        monkeypatch.setattr(Path, "stat", owned)
        assert "is no box-policy gate" in said("policy", "get", "--control", address)[1]

    @pytest.mark.parametrize(
        "address", ["gate", "example.com:9090", "0.0.0.0:9090", "unix:relative", "/x" * 200]
    )
    def test_one_that_is_none(self, address: str) -> None:
        code, line = said("status", "--control", address)
        assert code == 2
        assert line.startswith('"')

    def test_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert default_address() == "/run/user/1000/box-policy/control.sock"
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert default_address() == "/run/box-policy/control.sock"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        assert default_address() == "/run/box-policy/control.sock"


class TestTheToken:
    @pytest.mark.parametrize(
        "content", ["", "\n", "two words of a token", "line-of-a-token\nand-another", "ü" * 20]
    )
    def test_a_file_that_holds_none(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "token"
        file.write_text(content)
        code, line = said("status", "--control", "127.0.0.1:9", "--token-file", str(file))
        assert code == 2
        assert str(file) in line
        assert content.strip() == "" or content.strip() not in line

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        code, line = said("status", "--control", "127.0.0.1:9", "--token-file", f"{tmp_path}/none")
        assert (code, line) == (2, f"token file {tmp_path}/none: No such file or directory")


class TestWhoIsNoGate:
    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>hello</html>",
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<html>no</html>",
            b"HTTP/1.1 401 Unauthorized\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
            HEAD + b"\r\n[1, 2]",
            HEAD + b'\r\n{"boxes": 1, "sources": {}}',
            HEAD + b'\r\n{"boxes": [1], "sources": []}',
            HEAD + b'\r\n{"boxes": [], "sources": [], "uptime": NaN}',
            HEAD + b"\r\n" + b"[" * 100_000,
            HEAD + b"\r\n\xff\xfe",
            HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b'{"boxes": [], "sources": []}'),
            b'HTTP/1.1 500 X\r\n\r\n{"error": "yes"}',
            b'HTTP/1.1 500 X\r\n\r\n{"error": {"code": 1}}',
        ],
    )
    def test_is_recognised(self, odd: Odd, answer: bytes) -> None:
        address = odd(answer)
        code, line = said("status", "--control", address)
        assert code == 1
        assert line.startswith(f"what listens at unix:{address} is no box-policy gate (it answers ")

    @pytest.mark.parametrize(
        "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
    )
    def test_or_breaks_off(self, odd: Odd, answer: bytes) -> None:
        address = odd(answer)
        code, line = said("status", "--control", address)
        assert code == 1
        assert line.startswith(f"the connection to unix:{address} broke: ")

    def test_one_that_never_answers(self, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.05)
        address = odd(b"", then="wait")
        assert said("status", "--control", address) == (1, f"the gate at unix:{address} doesn't answer")

    def test_one_that_dribbles(self, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.05)
        assert "doesn't answer" in said("status", "--control", odd(HEAD + b"\r\n ", then="repeat"))[1]

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nX-Header: x",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n ",
            b"HTTP/1.1 200 OK\r\n\r\n ",
        ],
    )
    def test_one_that_is_never_late_with_the_next_byte(
        self, odd: Odd, answer: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.3)
        address = odd(answer, then="dribble")
        assert said("status", "--control", address) == (1, f"the gate at unix:{address} doesn't answer")

    def test_one_that_only_says_go_on(self, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.3)
        monkeypatch.setattr(client, "SILENCE", 0.3)
        address = odd(b"HTTP/1.1 100 Continue\r\n\r\n", then="repeat")
        for command in (["status"], ["tail"], ["tail", "--no-follow"]):
            assert said(*command, "--control", address) == (1, f"the gate at unix:{address} doesn't answer")

    def test_one_that_answers_without_end(self, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "MAX_ANSWER", 1 << 20)
        assert (
            "without end" in said("status", "--control", odd(HEAD + b"\r\n" + b" " * 65536, then="repeat"))[1]
        )

    def test_what_it_says_moves_no_cursor(self, odd: Odd) -> None:
        error = {"error": {"code": "x", "message": "a\x1b[2Jb\nc\x9bd\u202e"}}
        address = odd(b"HTTP/1.1 500 X\r\n\r\n" + json.dumps(error, ensure_ascii=False).encode())
        assert said("status", "--control", address) == (1, "a\\x1b[2Jb\\nc\\x9bd\\u202e")

    @pytest.mark.parametrize("tag", [b'"x"', b"", b'"' + b"9" * 9000 + b'"', b'W/"1"'])
    def test_a_policy_without_a_generation(self, odd: Odd, tag: bytes) -> None:
        boxes, head = HEAD + b'\r\n{"boxes": [{"id": "b"}]}', HEAD + b"ETag: " + tag + b"\r\n\r\n"
        address = odd(boxes, head + b'{"mode": "deny-all"}')
        assert "is no box-policy gate" in said("policy", "get", "--control", address)[1]

    @pytest.mark.parametrize(
        "box", ["\x1b]0;pwned", "\ud800", "", "a/b", "-x", None, 1, ["b"], "b" * 65, "b\n"]
    )
    def test_a_box_whose_id_is_none(self, odd: Odd, box: object) -> None:
        address = odd(HEAD + b"\r\n" + json.dumps({"boxes": [{"id": box}]}).encode())
        for command in (["policy", "get"], ["policy", "watch"], ["tail", "--box", "b"]):
            assert "is no box-policy gate" in said(*command, "--control", address)[1]

    @pytest.mark.parametrize("generation", ["true", "1.0", '"1"', "null"])
    def test_a_generation_that_is_no_number(self, odd: Odd, generation: str) -> None:
        boxes = HEAD + b'\r\n{"boxes": [{"id": "b"}]}'
        address = odd(boxes, HEAD + f'\r\n{{"generation": {generation}}}'.encode())
        line = said("policy", "set", "--deny-all", "--control", address)[1]
        assert "is no box-policy gate" in line

    @pytest.mark.parametrize("option", ["--yaml", "--json"])
    def test_a_policy_that_has_no_bottom(self, odd: Odd, option: str) -> None:
        boxes, head = HEAD + b'\r\n{"boxes": [{"id": "b"}]}', HEAD + b'ETag: "1"\r\n\r\n'
        address = odd(boxes, head + b'{"mode": "custom", "x": ' + b"[" * 900 + b"]" * 900 + b"}")
        result = box_policy("policy", "get", option, "--control", address)
        assert result.exception is None or isinstance(result.exception, SystemExit)

    def test_a_proxy_is_never_asked(self, odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            assert said("status", "--control", "127.0.0.1:9")[1].startswith("no gate listens at 127.0.0.1:9")
            proxy.setblocking(False)
            with pytest.raises(BlockingIOError):
                proxy.accept()


class TestTheStream:
    @pytest.mark.parametrize(
        "answer",
        [
            HEAD + b"\r\n{}",
            STREAM + b"data: no JSON\n\n",
            STREAM + b"data: [1]\n\n",
            STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
            + gzip.compress(b"data: {}\n\n"),
        ],
    )
    def test_of_something_else(self, odd: Odd, answer: bytes) -> None:
        address = odd(answer)
        for more in ([], ["--no-follow"]):
            code, line = said("tail", "--control", address, *more)
            assert (code, line.partition(" is no ")[0]) == (1, f"what listens at unix:{address}")

    @pytest.mark.parametrize("line", [b"x" * 65536, b"data: x\n" * 8192])
    def test_an_event_without_end(self, odd: Odd, line: bytes) -> None:
        address = odd(STREAM + line, then="repeat")
        assert said("tail", "--no-follow", "--control", address) == (
            1,
            f"the connection to unix:{address} broke: an event without end",
        )

    def test_many_events_are_no_long_one(self, odd: Odd) -> None:
        event = b'id: 0-1\r\ndata: {"event":"policy"}\r\n\r\n'
        address = odd(STREAM + b": \n\n" + event * (2 * connection.MAX_EVENT // len(event)))
        result = box_policy("tail", "--no-follow", "--json", "--control", address)
        assert result.exit_code == 0
        assert result.stdout.count("\n") == 2 * connection.MAX_EVENT // len(event)

    @pytest.mark.parametrize("charset", [b"hex", b"utf-16", b"idna", b"none"])
    def test_is_utf_8_whatever_its_head_says(self, odd: Odd, charset: bytes) -> None:
        head = STREAM.replace(b"event-stream", b"event-stream; charset=" + charset)
        address = odd(head + b'data: {"event":"policy"}\n\n')
        shown = box_policy("tail", "--no-follow", "--json", "--control", address)
        assert (shown.stdout, shown.exit_code) == ('{"event":"policy"}\n', 0)

    @pytest.mark.parametrize("number", ["true", "1" + "0" * 400, "-1", "1e308", "1e999", '"1"', "[]"])
    def test_records_with_numbers_that_are_none(self, odd: Odd, number: str) -> None:
        record = f'{{"event":"end","bytes_up":{number},"duration":{number}}}'
        result = box_policy("tail", "--no-follow", "--control", odd(STREAM + f"data: {record}\n\n".encode()))
        assert (result.exit_code, result.stdout.count("\n"), result.stderr) == (0, 1, "")

    def test_records_move_no_cursor(self, odd: Odd) -> None:
        record = {
            "event": "decision",
            "box": "\x1b[2J",
            "name": "a\rb",
            "rule": "\x9bm",
            "protocol": "\u202e",
        }
        data = json.dumps(record, ensure_ascii=False)
        address = odd(STREAM + f"data: {data}\n\n".encode())
        shown = box_policy("tail", "--no-follow", "--control", address).stdout
        assert shown.endswith(r"deny  \x1b[2J \u202e a\rb (\x9bm) ?" + "\n")
        assert (
            box_policy("tail", "--no-follow", "--json", "--control", address).stdout
            == json.dumps(record) + "\n"
        )


class TestABrokenStream:
    """What nobody who can open a stream is told again and again."""

    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How long it was waited for; nobody does."""
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        return waited

    def follow(self, address: str, count: int) -> list[client.News]:
        with Client(parse_control_address(address)) as gate:
            return list(islice(gate.follow([], backlog=1), count))

    def test_is_opened_again_after_growing_pauses(self, odd: Odd, pauses: list[float]) -> None:
        ended = Broken("the gate has ended the stream")
        news = self.follow(odd(STREAM), 21)
        assert news == [Opened(again=False), *[ended, Opened(again=True)] * 10]
        assert pauses == sorted(pauses)
        assert (pauses[0], pauses[-1], sum(pauses) > 20) == (client.PAUSES[0], client.PAUSES[-1], True)

    def test_silence_is_one(self, odd: Odd, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "SILENCE", 0.05)
        address = odd(STREAM, then="wait")
        silent = Broken(f"the gate at unix:{address} doesn't answer")
        assert self.follow(address, 3) == [Opened(again=False), silent, Opened(again=True)]

    def test_it_goes_on_behind_the_last_record(self, odd: Odd, pauses: list[float]) -> None:
        address = odd(STREAM + b"id: 0a-1\ndata: {}\n\nid: 0a-2\n\n: \n\nid: 0a-3\ndata: {}\n")
        assert self.follow(address, 4)[1:3] == [Told({}, "{}"), Broken("the gate has ended the stream")]
        assert b"backlog=1 " in odd.asked[0]
        assert b"Last-Event-ID: 0a-2\r\n" in odd.asked[1]
        assert b"backlog" not in odd.asked[1]

    @pytest.mark.parametrize("event_id", ["a\x0bb", "a\u202eb", "a" * 1000])
    def test_an_id_that_fits_in_no_header_is_none(self, odd: Odd, pauses: list[float], event_id: str) -> None:
        self.follow(odd(STREAM + f"id: {event_id}\ndata: {{}}\n\n".encode()), 4)
        assert b"Last-Event-ID" not in odd.asked[1]

    def test_a_refusal_is_the_end(self, odd: Odd, pauses: list[float], tmp_path: Path) -> None:
        refused = b'HTTP/1.1 403 X\r\n\r\n{"error": {"code": "peer_refused", "message": "no"}}'
        address = odd(STREAM, refused)
        with pytest.raises(client.RemoteError, match="no") as caught:
            self.follow(address, 4)
        assert (caught.value.code, caught.value.status) == ("peer_refused", 1)

    def test_a_gate_that_is_busy_is_asked_again(self, odd: Odd, pauses: list[float]) -> None:
        busy = b'HTTP/1.1 429 X\r\n\r\n{"error": {"code": "too_many_streams", "message": "no"}}'
        address = odd(STREAM, busy, busy, STREAM)
        assert self.follow(address, 3)[2] == Opened(again=True)
        assert len(odd.asked) == 4


def test_a_watch_goes_on_if_the_gate_goes_while_the_policy_is_read(odd: Odd) -> None:
    boxes = HEAD + b'\r\n{"boxes": [{"id": "b", "generation": 1, "source": "s"}]}'
    policy = HEAD + b'ETag: "1"\r\n\r\n{"mode": "deny-all"}'
    refusal = b'HTTP/1.1 403 X\r\n\r\n{"error": {"code": "peer_refused", "message": "enough"}}'
    address = odd(boxes, STREAM, STREAM, b"", STREAM, boxes, policy, refusal)
    result = box_policy("policy", "watch", "--json", "--control", address)
    assert json.loads(result.stdout)["policy"] == {"mode": "deny-all"}
    assert (result.exit_code, result.stderr.splitlines()) == (
        1,
        [
            "box-policy: the gate has ended the stream; trying again",
            "box-policy: connected again",
            "box-policy: the gate has ended the stream; trying again",
            "box-policy: enough",
        ],
    )


def test_a_policy_whose_fate_is_unknown(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 0.05)
    address = parse_control_address(odd(b"", then="wait"))
    with Client(address) as gate, pytest.raises(client.RemoteError, match="may be in force or not"):
        gate.put_policy("b", {"mode": "deny-all"})


def test_the_ids_of_boxes_are_those_of_the_gate() -> None:
    assert client.BOX_ID == mode.BOX_ID


def test_who_speaks_to_no_gate_does_not_wait_for_what_does() -> None:
    slow = {"httpx", "uvicorn", "starlette", "mitmproxy"}
    code = f"import sys, box_policy.cli.main; print({slow} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
