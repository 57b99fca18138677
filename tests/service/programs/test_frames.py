"""What is said in a session, from any client."""

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.service.programs import frames
from box_policy.service.programs.frames import FrameError, IgnoredFrameError, parse_frame, parse_start

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(
    ["start", "stdin", "stdin_close", "resize", "signal", "terminate", "exit", "", 1, None]
)
KEYS = st.sampled_from(
    ["argv", "cmd", "cwd", "env", "tty", "rows", "cols", "data", "signal", "graceMs", "extra"]
)


def start(**fields: object) -> frames.Start:
    return parse_start(json.dumps({"type": "start", **fields}))


def frame(kind: str, **fields: object) -> frames.Frame:
    return parse_frame(json.dumps({"type": kind, **fields}))


def test_a_start_with_all_it_can_have() -> None:
    assert start(
        argv=["ls", "-l"], cmd="no", cwd="/tmp", env=["A=1", "B=x=y", "C="], tty=True, rows=30, cols=100
    ) == frames.Start(("ls", "-l"), None, "/tmp", {"A": "1", "B": "x=y", "C": ""}, (30, 100))


def test_a_start_with_the_least() -> None:
    assert start(cmd="ls") == frames.Start((), "ls", None, {}, None)
    assert start(cmd="ls", argv=[], tty=False, rows=None, cols=0, cwd="", env=None).terminal is None
    assert start(cmd="ls", tty=True).terminal == (24, 80)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "there must be a cmd, or an argv"),
        ({"argv": []}, "there must be a cmd, or an argv"),
        ({"argv": "ls"}, "argv must be a list"),
        ({"argv": ["a", 1]}, "argv must be a list"),
        ({"argv": ["a\0b"]}, "without NUL"),
        ({"argv": ["\ud800"]}, "argv must be a list"),
        ({"argv": ["x"] * 5000}, "at most 4096"),
        ({"cmd": 1}, "cmd must be a string"),
        ({"cmd": "a\0"}, "cmd must be a string"),
        ({"cmd": "a", "cwd": ["/"]}, "cwd must be a string"),
        ({"cmd": "a", "env": {"A": "1"}}, "env must be a list"),
        ({"cmd": "a", "env": ["A"]}, "NAME=VALUE"),
        ({"cmd": "a", "env": ["=A"]}, "NAME=VALUE"),
        ({"cmd": "a", "tty": True, "rows": -1}, "whole numbers from 1 to 65535"),
        ({"cmd": "a", "tty": True, "cols": 70000}, "whole numbers from 1 to 65535"),
        ({"cmd": "a", "tty": True, "cols": "80"}, "whole numbers from 1 to 65535"),
        ({"type": "stdin"}, "first frame"),
    ],
)
def test_a_start_that_can_not_be_understood(fields: dict[str, object], why: str) -> None:
    with pytest.raises(FrameError, match=why):
        parse_start(json.dumps({"type": "start"} | fields))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "null", '"start"', "[" * 100_000, "9" * 10_000, b"\xff", b"\0"]
)
def test_what_is_no_frame(text: str | bytes) -> None:
    for parse in (parse_start, parse_frame):
        with pytest.raises(FrameError, match="a frame must be a JSON object"):
            parse(text)


def test_a_huge_frame() -> None:
    with pytest.raises(FrameError, match="more than 16777216"):
        parse_frame(" " * (frames.MAX_FRAME + 1))


def test_later_frames() -> None:
    assert frame("stdin", data="aGk=") == frames.Stdin(b"hi")
    assert frame("stdin_close") == frames.StdinClose()
    assert frame("resize", rows=1, cols=65535) == frames.Resize(1, 65535)
    assert frame("signal", signal="INT") == frames.Signal(signal.SIGINT)
    assert frame("terminate", graceMs=250) == frames.Terminate(0.25)


@pytest.mark.parametrize("data", [None, 1, ["aGk="], "aGk", "a-_=", "aGk=junk", "ä"])
def test_input_that_would_be_lost_is_an_error(data: object) -> None:
    with pytest.raises(FrameError, match="data must be base64") as raised:
        frame("stdin", data=data)
    assert not isinstance(raised.value, IgnoredFrameError)


@pytest.mark.parametrize("size", [0, -1, 65536, 10**30, 1.5, True, "24", None])
def test_a_size_that_no_terminal_has_is_ignored(size: object) -> None:
    with pytest.raises(IgnoredFrameError, match="resize"):
        frame("resize", rows=size, cols=80)
    with pytest.raises(IgnoredFrameError, match="resize"):
        frame("resize", rows=24, cols=size)


@pytest.mark.parametrize("kind", ["start", "exit", "", None, 1, {}])
def test_an_unknown_type_is_ignored(kind: object) -> None:
    with pytest.raises(IgnoredFrameError, match="no such type"):
        parse_frame(json.dumps({"type": kind}))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TERM", 15),
        ("SIGKILL", 9),
        ("int", 2),
        (" hup ", 1),
        ("TSTP", 20),
        ("QUIT", 3),
        ("USR1", 10),
        ("USR2", 12),
        ("sigwinch", 28),
        ("CONT", 18),
        (None, 15),
    ],
)
def test_signals_have_names(name: str | None, number: int) -> None:
    assert frames.signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIG", "NO", 9, "9", "SIG_DFL", "_IGN", "SIGSIGTERM", "TERM" * 100, []])
def test_names_that_no_signal_has(name: object) -> None:
    with pytest.raises(IgnoredFrameError, match="none of that name"):
        frames.signal_number(name)


@pytest.mark.parametrize("grace", [None, 0, -1, "5", float("nan"), []])
def test_a_grace_that_is_none_is_the_default(grace: object) -> None:
    assert frame("terminate", graceMs=grace) == frames.Terminate(5.0)


@pytest.mark.parametrize("grace", [1e300, float("inf"), 10**400])
def test_a_grace_has_a_bound(grace: float) -> None:
    assert frame("terminate", graceMs=grace) == frames.Terminate(3600.0)


@given(TYPES, st.dictionaries(KEYS, JSON, max_size=5))
def test_any_object_is_a_frame_or_is_refused(kind: object, fields: dict[str, object]) -> None:
    text = json.dumps({"type": kind} | fields)
    for parse in (parse_start, parse_frame):
        try:
            parse(text)
        except FrameError as error:
            assert str(error)


@given(st.text() | st.binary())
def test_any_text_is_a_frame_or_is_refused(text: str | bytes) -> None:
    for parse in (parse_start, parse_frame):
        try:
            parse(text)
        except FrameError as error:
            assert str(error)


@given(st.binary())
def test_output_is_one_line_of_json(data: bytes) -> None:
    import base64

    text = frames.encode_output("stdout", data)
    assert json.loads(text) == {"type": "stdout", "data": base64.b64encode(data).decode()}
