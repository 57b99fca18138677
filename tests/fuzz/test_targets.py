"""The fuzz targets, on inputs of many shapes, on those that once broke something, and under the fuzzer."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_policy.wire import client_hello as reader_module
from tests.fuzz import (
    client_hello,
    dns_question,
    dns_reply,
    http_head,
    policy_document,
    second_hello,
    strategies,
)
from tests.fuzz.__main__ import WATCHED
from tests.fuzz.hello_shape import Shape, mutate, take_apart
from tests.fuzz.target import Target
from tests.lab.hellos import client_hello as hello

ROOT: Final = Path(__file__).parents[2]
TARGETS: Final[dict[str, Target]] = {name: import_module(f"tests.fuzz.{name}").TARGET for name in WATCHED}

FOUND: Final = (
    # A server that knows only "chunked", or that counts in 64 bits, takes the body for another request.
    ("http_head", b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("http_head", b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 184467440737095516160\r\n\r\n0"),
    # A later hop has to drop what Connection names.
    ("http_head", b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close, Host\r\n\r\n"),
    # KELVIN SIGN is no "k" to a server.
    ("http_head", b"GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websoc\xe2\x84\xaaet\r\n\r\n"),
    # Python's Punycode decoder raises more than it says.
    ("client_hello", hello(b"xn--0000000000000000000eeea.test")),
    ("dns_question", dns_question.message(b"xn--0000000000000000000eeea")),
    ("policy_document", b"mode: custom\nallowed_domains: [xn--0000000000000000000eeea]\n"),
    # Messages showed these as they are.
    ("policy_document", b'{"' + b"a" * 1500 + b'": []}'),
    ("policy_document", "allowed_\u200ddomains: []\n".encode()),
    ("policy_document", b'{"allow": {"allowed\ttest--": []}}'),
    ("policy_document", b'{"allow": [".\\u001b[31m"]}'),
)


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, seed) for name, target in TARGETS.items() for seed in target.seeds] + list(FOUND),
)
def test_nothing_breaks_on_a_known_input(name: str, data: bytes) -> None:
    TARGETS[name].one(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=200))
def test_nothing_breaks_on_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].one(data)


@settings(max_examples=600, deadline=None)
@given(strategies.hellos)
def test_a_hello_is_judged_by_the_name_that_openssl_hears(data: bytes) -> None:
    client_hello.one(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(second_hello.BEFORE), strategies.hellos)
def test_a_second_hello_is_let_through_with_no_other_name(before: bytes, data: bytes) -> None:
    second_hello.one(before + data)


@settings(max_examples=400, deadline=None)
@given(strategies.requests())
def test_what_is_sent_upstream_is_the_request_that_was_judged(data: bytes) -> None:
    http_head.one(data)


@settings(max_examples=400, deadline=None)
@given(strategies.questions)
def test_a_question_is_the_one_that_others_read(data: bytes) -> None:
    dns_question.one(data)


@settings(max_examples=300, deadline=None)
@given(strategies.replies)
def test_a_reply_is_the_one_that_others_read(data: bytes) -> None:
    dns_reply.one(data)


@settings(max_examples=300, deadline=None)
@given(strategies.documents)
def test_a_document_has_one_meaning_or_one_error(data: bytes) -> None:
    policy_document.one(data)


@given(strategies.sound_shapes, st.randoms())
def test_a_hello_taken_apart_is_put_together_as_it_was(shape: Shape, random: Random) -> None:
    data = shape.put_together()
    again = take_apart(data)
    assert again is not None
    assert again.put_together() == data
    assert isinstance(mutate(data, random, lambda piece: piece + b"x"), bytes)


def parsed(content: "reader_module._Cursor") -> list[bytes]:
    """Every host name in a list that may be followed by anything."""
    names, found = content.vector(2), []
    while not names.done:
        names.take(1)
        found.append(names.vector(2).rest())
    return found


SABOTAGES: Final = {
    "takes the first of two names": lambda content: parsed(content)[0],
    "takes the last of two names": lambda content: parsed(content)[-1],
    "cuts at a NUL": lambda content: parsed(content)[0].partition(b"\0")[0],
    "drops a dot": lambda content: parsed(content)[0].rstrip(b"."),
    "lowers the case": lambda content: parsed(content)[0].lower(),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_reader_that_errs_is_found_out(sabotage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_parse_server_name", SABOTAGES[sabotage])
    inputs = [*TARGETS["client_hello"].seeds, hello(b"a.test..")]
    with pytest.raises(AssertionError):
        for data in inputs:
            client_hello.one(data)


@dataclass
class Run:
    """A target under the fuzzer."""

    process: subprocess.Popen[bytes]
    directory: Path
    output: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All targets at once: they wait for nothing but the time to pass."""
    if find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this platform, or this Python")
    started: dict[str, Run] = {}
    try:
        for name in TARGETS:
            directory = tmp_path_factory.mktemp(name)
            output = directory.with_suffix(".log")
            command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", "3", "--seed", "1"]
            with output.open("wb") as log:
                process = subprocess.Popen(
                    [*command, "--directory", str(directory)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            started[name] = Run(process, directory, output)
        yield started
    finally:
        for run in started.values():
            run.process.kill()
            run.process.wait()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_short_run_of_the_fuzzer_finds_nothing(name: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    status = run.process.wait(timeout=120)
    told = run.output.read_text(errors="replace")
    assert status == 0, told[-5000:]
    assert not list(run.directory.glob("*-*")), "there are crashes"
    assert "stat::number_of_executed_units" in told
