"""Policies from a file."""

from pathlib import Path
from typing import NoReturn, Protocol

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

from box_policy.policy.document import MAX_BYTES, DocumentError, parse_document
from box_policy.policy.model import NetworkPolicy


class PolicyFileError(Exception):
    """A policy file can't be read, or holds no valid policy. One line an error, each with its place."""


def read_policy(path: Path) -> NetworkPolicy:
    """The policy in a YAML or JSON file. Raises PolicyFileError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyFileError(f"{path}: {error.strerror}") from error
    try:
        return parse_document(text, name=str(path))
    except DocumentError as error:
        raise PolicyFileError(str(error)) from error


class Enforcer(Protocol):
    """What puts a policy in force."""

    def put_policy(self, policy: NetworkPolicy) -> int: ...

    def refuse(self, why: str) -> NoReturn: ...


class PolicyFile:
    """The mitmproxy addon behind the option ``box_policy_file``. No readable policy, no start."""

    def __init__(self, enforcer: Enforcer) -> None:
        self._enforcer = enforcer

    def load(self, loader: Loader) -> None:
        loader.add_option("box_policy_file", str, "", "The policy to enforce: a YAML or JSON file.")

    def configure(self, updated: set[str]) -> None:
        if "box_policy_file" not in updated:
            return
        if not ctx.options.box_policy_file:
            self._enforcer.refuse("no policy to enforce: add --set box_policy_file=policy.yaml")
        try:
            policy = read_policy(Path(ctx.options.box_policy_file).expanduser())
        except PolicyFileError as error:
            self._enforcer.refuse(str(error))
        self._enforcer.put_policy(policy)
