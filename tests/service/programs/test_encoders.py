"""Output as the body of an answer, read by the hosted service's own client."""

import base64
import json
import re
from collections.abc import Iterable, Sequence

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from upstash_box import BoxError
from upstash_box._sync._sse import iter_exec_stream
from upstash_box.types import ExecExitChunk, ExecOutputChunk

from box_policy.service.programs.encoders import JsonLines, RawText, encoder_for
from box_policy.service.programs.execution import Piece

# What a program might print to deceive, and what lies next to it.
FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            b"event: exit\n",
            b"event: error\n",
            b"event: exit",
            b"event: error",
            b"event: exit \n",
            b"event: exit\r\n",
            b"event: ex",
            b"it",
            b"eve",
            b"nt: ",
            b"e",
            b"\n",
            b"\r",
            b" ",
            b'data: {"exit_code":0,"cpu_ns":0}\n\n',
            b'data: {"error":"forged"}\n\n',
            "ß€😀".encode(),
            "😀".encode()[:2],
            "😀".encode()[2:],
            b"\xff",
            b"\xc3",
            b"\xef\xbb\xbf",
            b"\0",
            b"\x1b[31m",
        ]
    ),
    st.binary(max_size=6),
)
PIECES = st.lists(
    st.builds(
        Piece,
        st.sampled_from(["stdout", "stderr"]),
        st.lists(FRAGMENTS, min_size=1, max_size=4).map(b"".join).filter(bool),
    ),
    max_size=12,
)
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


class _Cut(httpx.SyncByteStream):
    def __init__(self, data: bytes, cuts: Sequence[int], last: bytes) -> None:
        self._data, self._cuts, self._last = data, cuts, last

    def __iter__(self) -> Iterable[bytes]:  # type: ignore[override]
        data, number = self._data, 0
        while data:
            cut = self._cuts[number % len(self._cuts)]
            yield data[:cut]
            data, number = data[cut:], number + 1
        yield self._last


def read(data: bytes, cuts: Sequence[int], last: bytes) -> list[ExecOutputChunk | ExecExitChunk]:
    """What the client makes of a body that arrives in any pieces, but for the last, which arrives whole."""
    return list(iter_exec_stream(httpx.Response(200, stream=_Cut(data, cuts, last))))


def as_raw(pieces: Sequence[Piece]) -> tuple[RawText, bytes]:
    encoder = RawText()
    return encoder, b"".join(encoder.piece(piece) for piece in pieces)


def plain(pieces: Sequence[Piece]) -> str:
    """The pieces as one text: no character is torn, each stream's are whole where their last byte is."""
    import codecs

    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    text = "".join(decoders[piece.stream].decode(piece.data) for piece in pieces)
    return text + "".join(decoder.decode(b"", final=True) for decoder in decoders.values())


def broken_up(text: str) -> str:
    """By another way than the encoder's: line by line."""
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1]):
        if line.endswith(("event: exit", "event: error")):
            lines[number] += " "
    return "\n".join(lines)


@given(PIECES, CUTS, st.integers(-(2**31), 2**31))
@example([Piece("stdout", b"event: exit"), Piece("stderr", b"\ndata: 1\n")], [1], 7)
@example([Piece("stdout", b"event: ex"), Piece("stderr", b"it"), Piece("stdout", b"\n")], [3], 7)
@example([Piece("stdout", b"event: err"), Piece("stdout", b"or"), Piece("stdout", b"\n")], [40], 7)
@example([Piece("stdout", b"event: event: exit\n")], [40], 7)
@example([Piece("stdout", b"event: exit")], [40], 7)
@example([Piece("stdout", b"\xf0\x9f"), Piece("stderr", b"x"), Piece("stdout", b"\x98\x80")], [1], 7)
def test_no_output_forges_an_end_and_all_of_it_arrives(
    pieces: list[Piece], cuts: list[int], exit_code: int
) -> None:
    encoder, data = as_raw(pieces)
    rest, last = encoder.end(exit_code, timed_out=False)
    *output, end = read(data + rest, cuts, last)
    assert isinstance(end, ExecExitChunk)
    assert end.exit_code == exit_code
    assert all(isinstance(chunk, ExecOutputChunk) for chunk in output)
    assert "".join(chunk.data for chunk in output) == broken_up(plain(pieces))  # type: ignore[union-attr]


@given(PIECES, CUTS, st.text())
def test_an_error_ends_the_stream_for_the_client(pieces: list[Piece], cuts: list[int], text: str) -> None:
    encoder, data = as_raw(pieces)
    rest, last = encoder.failure(text)
    with pytest.raises(BoxError, match=f"^{re.escape(text or 'Stream error')}$"):
        read(data + rest, cuts, last)


@given(PIECES)
def test_text_without_such_lines_is_not_touched(pieces: list[Piece]) -> None:
    calm = [Piece(piece.stream, piece.data.replace(b"event", b"Event")) for piece in pieces]
    encoder, data = as_raw(calm)
    assert (data + encoder.end(0, timed_out=False)[0]).decode() == plain(calm)


def test_the_last_event_is_one_piece() -> None:
    assert RawText().end(3, timed_out=True)[-1] == b'event: exit\ndata: {"exit_code":3,"cpu_ns":0}\n\n'


@given(PIECES)
def test_json_lines_carry_every_byte(pieces: list[Piece]) -> None:
    encoder = JsonLines()
    body = b"".join([*map(encoder.piece, pieces), *encoder.end(5, timed_out=True)])
    *output, end = [json.loads(line) for line in body.splitlines()]
    assert [Piece(line["type"], base64.b64decode(line["data"])) for line in output] == pieces
    assert end == {"type": "exit", "exit_code": 5, "timed_out": True}


def test_json_lines_tell_of_a_failure() -> None:
    assert JsonLines().failure("why\n") == (b'{"type":"error","error":"why\\n"}\n',)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, RawText),
        ("", RawText),
        ("*/*", RawText),
        ("text/event-stream", RawText),
        ("application/x-ndjson", JsonLines),
        ("text/plain, Application/X-NDJSON;q=0.5", JsonLines),
        ("application/x-ndjson-seq", RawText),
    ],
)
def test_the_form_is_that_asked_for(accept: str | None, kind: type) -> None:
    assert type(encoder_for(accept)) is kind
