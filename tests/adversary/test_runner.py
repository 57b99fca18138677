"""The runner that holds the same attacks against any product's box."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adversary.__main__ import OWN, groups

ATTACKS = "in the clear"


def run(tmp_path: Path, *options: str) -> tuple[int, dict[str, str], str]:
    """The exit status, what each attack came to, and what was written."""
    results = tmp_path / "results.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.adversary", "--only", ATTACKS, "--json", str(results), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    lines = results.read_text().splitlines() if results.exists() else []
    outcomes = {json.loads(line)["attack"]: json.loads(line)["outcome"] for line in lines}
    return done.returncode, outcomes, done.stdout


@pytest.mark.parametrize("command", [OWN, "sh -c {program}"], ids=["a box", "no box at all"])
def test_tells_what_leaks(require_lab: None, tmp_path: Path, command: str) -> None:
    status, outcomes, said = run(tmp_path, "--group", "PostgreSQL", "--box-command", command)
    expected = "contained" if command == OWN else "leaked"
    assert set(outcomes.values()) == {expected}, said
    assert (status, len(outcomes)) == (0 if command == OWN else 1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--box-command", "/does/not/exist"], "no box: /does/not/exist: No such file or directory"),
        (["--box-command", "true"], "no box: the box command runs no Python"),
        (["--group", "Magic"], "no such group: Magic; there are"),
    ],
)
def test_says_what_is_wrong(require_lab: None, tmp_path: Path, options: list[str], said: str) -> None:
    status, outcomes, output = run(tmp_path, *options)
    assert (status, outcomes) == (2, {})
    assert said in output


def test_every_attack_has_a_name_of_its_own() -> None:
    names = [f"{group}: {attack.name}" for group, attacks in groups().items() for attack in attacks]
    assert len(names) == len(set(names))
