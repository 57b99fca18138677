"""The mitmproxy addon that brings policies to the gate: the option ``box_policy_file``."""

from pathlib import Path
from typing import NoReturn, Protocol

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

from box_policy.control.policy_file import PolicyFileError, read_policy
from box_policy.policy.model import NetworkPolicy


class Enforcer(Protocol):
    """What puts a policy in force."""

    def put_policy(self, policy: NetworkPolicy) -> None: ...

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
