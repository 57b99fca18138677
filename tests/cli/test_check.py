"""``box-policy check``."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from box_policy.cli.check import check
from box_policy.policy.document import MAX_BYTES, parse_document

app = typer.Typer()
app.command("check")(check)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("mode: custom\nallowedDomains: [X.test., '*.y.test']\nallowed_cidrs: [51.81.10.10]\n")
    return path


CANONICAL = {"mode": "custom", "allowed_domains": ["x.test", "*.y.test"], "allowed_cidrs": ["51.81.10.10/32"]}


def test_a_policy_is_printed_in_canonical_form(policy: Path) -> None:
    result = CliRunner().invoke(app, [str(policy)])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == CANONICAL
    assert result.stderr == ""


def test_or_as_yaml_that_reads_back(policy: Path) -> None:
    result = CliRunner().invoke(app, ["--yaml", str(policy)])
    assert result.exit_code == 0
    assert result.stdout.startswith("mode: custom\n")
    assert parse_document(result.stdout, name="out").canonical() == CANONICAL


def test_standard_input() -> None:
    assert json.loads(CliRunner().invoke(app, ["-"], input="deny-all").stdout) == {"mode": "deny-all"}
    result = CliRunner().invoke(app, ["-"], input="mode: open")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("<stdin>:1:1: mode: ")


def test_every_error_is_one_line_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("mode: custom\nallowed_domains:\n  - ok.test\n  - '*.'\ndenied_cidrs:\n  - 10.0.0.1/8\n")
    result = CliRunner().invoke(app, [str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f'{path}:4:5: allowed_domains[1]: "*." names no domain; write "*.example.com"',
        f'{path}:6:5: denied_cidrs[0]: "10.0.0.1/8" has host bits set: "10.0.0.0/8" was meant',
    ]


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path}/none.yaml: No such file or directory\n"
    assert CliRunner().invoke(app, [str(tmp_path)]).stderr == f"{tmp_path}: Is a directory\n"


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES * 100)
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 2
    assert "larger than 8 MiB" in result.stderr
