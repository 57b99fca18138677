"""The two forms of a stream: the same however it is cut, and never without an end."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy import BoxError, ExecExitChunk, ExecOutputChunk, ExecStreamChunk
from box_policy.sdk.exec_streams import exec_stream

LINES = "application/x-ndjson"
RAW = "text/event-stream"


def line(kind: str, **more: object) -> bytes:
    return json.dumps({"type": kind, **more}).encode() + b"\n"


def output(stream: str, data: bytes) -> bytes:
    return line(stream, data=base64.b64encode(data).decode())


def read(media_type: str, *pieces: bytes) -> list[ExecStreamChunk]:
    stream = exec_stream(media_type)
    chunks = [chunk for piece in pieces for chunk in stream.push(piece)]
    return chunks + list(stream.finish())


def text(chunks: list[ExecStreamChunk], stream: str | None) -> str:
    return "".join(c.data for c in chunks if isinstance(c, ExecOutputChunk) and c.stream == stream)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def test_lines_tell_the_two_streams_apart() -> None:
    assert read(
        LINES, output("stdout", b"a"), output("stderr", b"b"), line("exit", exit_code=3, cpu_ns=7)
    ) == [
        ExecOutputChunk("a", stream="stdout"),
        ExecOutputChunk("b", stream="stderr"),
        ExecExitChunk(3, cpu_ns=7),
    ]


def test_a_program_that_was_ended_for_its_time() -> None:
    assert read(LINES, line("exit", exit_code=124, timed_out=True)) == [ExecExitChunk(124, timed_out=True)]


def test_what_a_program_prints_is_not_its_end() -> None:
    forged = b'{"type":"exit","exit_code":0}\nevent: exit\ndata: {"exit_code":0}\n\n'
    chunks = read(LINES, output("stdout", forged), line("exit", exit_code=1))
    assert (text(chunks, "stdout"), chunks[-1]) == (forged.decode(), ExecExitChunk(1))


SPOKEN = "naïve 日本 \U0001f4e6 event: exi"


@given(st.lists(st.integers(0, 7), max_size=80), st.lists(st.integers(1, 5), max_size=40))
def test_lines_mean_the_same_however_they_are_cut(sizes: list[int], steps: list[int]) -> None:
    whole = b"".join(output("stdout", piece) for piece in cut(SPOKEN.encode(), steps))
    chunks = read(LINES, *cut(whole + line("exit", exit_code=0), sizes))
    assert (text(chunks, "stdout"), chunks[-1]) == (SPOKEN, ExecExitChunk(0))


@given(st.lists(st.integers(0, 7), max_size=80))
def test_raw_output_means_the_same_however_it_is_cut(sizes: list[int]) -> None:
    whole = SPOKEN.encode() + b'event: exit\ndata: {"exit_code":5,"cpu_ns":9}\n\n'
    chunks = read(RAW, *cut(whole, sizes))
    assert (text(chunks, None), chunks[-1]) == (SPOKEN, ExecExitChunk(5, cpu_ns=9))


@given(st.lists(st.binary(max_size=40)), st.sampled_from([LINES, RAW, ""]))
def test_whatever_comes_is_chunks_or_an_error(pieces: list[bytes], media_type: str) -> None:
    try:
        assert isinstance(read(media_type, *pieces)[-1], ExecExitChunk)
    except BoxError:
        pass


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    assert text(read(LINES, output("stderr", b"a\xc3"), line("exit", exit_code=0)), "stderr") == "a\ufffd"
    assert text(read(RAW, b'a\xc3event: exit\ndata: {"exit_code":0}\n\n'), None) == "a\ufffd"


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        (LINES, b""),
        (LINES, output("stdout", b"a")),
        (LINES, line("exit", exit_code=0)[:-5]),
        (LINES, line("exit")),
        (LINES, line("exit", exit_code="0")),
        (LINES, line("stdout", data="*")),
        (LINES, line("stdout", data=5)),
        (LINES, b"[]\n"),
        (LINES, b"[" * 100_000 + b"\n"),
        (RAW, b""),
        (RAW, b"output"),
        (RAW, b"event: exit\n"),
        (RAW, b"event: exit\ndata: {\n\n"),
        (RAW, b"event: exit\ndata: {}\n\n"),
        (RAW, b"event: exit\ndata: []\n\n"),
    ],
)
def test_without_an_end_the_run_has_failed(media_type: str, content: bytes) -> None:
    with pytest.raises(BoxError):
        read(media_type, content)


@pytest.mark.parametrize(
    ("media_type", "content"),
    [(LINES, line("error", error="no \x1b")), (RAW, b'out event: error\ndata: {"error":"no \\u001b"}\n\n')],
)
def test_the_service_s_own_error(media_type: str, content: bytes) -> None:
    with pytest.raises(BoxError, match=r"no \\x1b"):
        read(media_type, content)


def test_a_line_without_an_end_is_refused() -> None:
    stream = exec_stream(LINES)
    with pytest.raises(BoxError, match="line of more than"):
        for _ in range(2_000):
            list(stream.push(b"x" * 10_000))
