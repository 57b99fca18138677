"""Fuzzes one target, or runs one again on inputs that broke it.

python -m tests.fuzz client_hello --seconds 3600
python -m tests.fuzz client_hello build/fuzz/client_hello/crash-...
"""

import argparse
import hashlib
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Final, NoReturn

from tests.fuzz.target import Target

_HTTP: Final = (
    "mitmproxy.net.http.http1.read",
    "mitmproxy.net.http.validate",
    "mitmproxy.proxy.layers.http._http1",
)
WATCHED: Final = {
    "client_hello": ("box_policy.wire.client_hello", "box_policy.policy.domains"),
    "second_hello": ("box_policy.wire.second_hello", "box_policy.wire.client_hello"),
    "http_head": ("box_policy.gate.http_request", "box_policy.gate.http_layer", *_HTTP, "h11._readers"),
    "dns_question": ("box_policy.wire.dns_message", "box_policy.policy.domains"),
    "dns_reply": ("box_policy.wire.dns_reply",),
    "policy_document": (
        "box_policy.policy.document",
        "box_policy.policy.model",
        "box_policy.policy.complaints",
        "box_policy.policy.domains",
        "box_policy.policy.addresses",
        "box_policy.policy.rules",
        "idna.core",
    ),
}
"""The targets, and the modules in which the fuzzer sees which way an input has taken."""

_MOST_SECONDS_AN_INPUT: Final = 10
_MOST_MEGABYTES: Final = 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one target.")
    parser.add_argument("target", choices=WATCHED)
    parser.add_argument("inputs", nargs="*", type=Path, help="run the target on these files, and do not fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random numbers (default: a new one each time)"
    )
    parser.add_argument(
        "--directory", type=Path, help="for inputs found and crashes (default: build/fuzz/TARGET)"
    )
    arguments = parser.parse_args()
    if arguments.inputs:
        target = _load(arguments.target)
        for path in arguments.inputs:
            target.one(path.read_bytes())
        print(f"{len(arguments.inputs)} inputs, nothing found")
    else:
        directory = arguments.directory or Path("build/fuzz", arguments.target)
        fuzz(arguments.target, arguments.seconds, directory, arguments.seed)


def fuzz(name: str, seconds: int, directory: Path, seed: int) -> NoReturn:
    """Fuzz for that long, then exit: with 0 if nothing was found."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: it has no wheel for this platform, or this Python")
    target = _load(name)
    # Not atheris.instrument_imports: it takes whole packages, and four seconds for mitmproxy.
    for function in (function for module in WATCHED[name] for function in _functions(module)):
        atheris.instrument_func(function)
    seeds, found = directory / "seeds", directory / "corpus"
    for folder in (seeds, found):
        folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds:
        (seeds / _digest(data)).write_bytes(data)
    dictionary = directory / "dictionary"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.dictionary))

    def one(data: bytes) -> None:
        try:
            target.one(data)
        except BaseException:
            crash = directory / f"crash-{_digest(data)}"
            crash.write_bytes(data)  # as libFuzzer does, but it may still be killed before
            print(
                f"\nTo see it again:\n    python -m tests.fuzz {name} {shlex.quote(str(crash))}",
                file=sys.stderr,
            )
            raise

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        def change(piece: bytes) -> bytes:
            return bytes(atheris.Mutate(piece, max(len(piece) + 16, 32)))

        if target.mutate is None:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, Random(seed), change)[:max_size]

    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={_MOST_SECONDS_AN_INPUT}",
        f"-rss_limit_mb={_MOST_MEGABYTES}",
        f"-max_len={target.max_length}",
        f"-dict={dictionary}",
        f"-artifact_prefix={directory}/",
        "-print_final_stats=1",
        str(found),
        str(seeds),
    ]
    if target.mutate is None:
        atheris.Setup(arguments, one)
    else:
        atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()
    sys.exit(0)


def _load(name: str) -> Target:
    target = import_module(f"tests.fuzz.{name}").TARGET
    assert isinstance(target, Target)
    return target


def _functions(module_name: str) -> Iterator[FunctionType]:
    """The functions and methods that a module defines."""
    for value in vars(import_module(module_name)).values():
        for member in vars(value).values() if isinstance(value, type) else (value,):
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, FunctionType) and function.__module__ == module_name:
                yield function


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _escaped(word: bytes) -> str:
    """In libFuzzer's syntax of dictionaries."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
