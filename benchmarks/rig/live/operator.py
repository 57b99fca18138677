"""The operator's two ways to change a policy: the control endpoint, and the policy file."""

import http.client
import itertools
import json
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from benchmarks.rig.live.plan import BOX_ID, Policy
from benchmarks.rig.process import BenchmarkError

_TARGET: Final = f"/v1/boxes/{BOX_ID}/network-policy"
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Update:
    """A policy that was put. Times in monotonic seconds."""

    policy: Policy
    generation: int
    sent: float
    """Before the request's first byte left."""
    answered: float
    """When the whole answer was there."""


class Operator(http.client.HTTPConnection):
    """One connection to the control endpoint, kept open."""

    def __init__(self, control: Path) -> None:
        super().__init__("localhost")
        self._control = str(control)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(self._control)

    def put(self, policy: Policy) -> Update:
        """Put a policy, and read the answer. BenchmarkError if it was refused."""
        body = json.dumps(policy)
        sent = time.monotonic()
        self.request("PUT", _TARGET, body, {"Content-Type": "application/json"})
        response = self.getresponse()
        answer = response.read()
        answered = time.monotonic()
        if response.status != 200:
            raise BenchmarkError(f"the gate has refused a policy: {answer.decode(errors='replace')}")
        return Update(policy, int(json.loads(answer)["generation"]), sent, answered)


class PolicyFile:
    """The file that the gate follows. Each way to change it returns the moment of the change.

    Every revision is one that was never there before.
    """

    def __init__(self, path: Path, policy: Policy) -> None:
        self.path = path
        self._revisions = itertools.count(1)
        path.write_text(self._text(policy))

    def replace(self, policy: Policy) -> float:
        """As most tools do: write another file, and rename it."""
        other = self.path.with_suffix(".new")
        other.write_text(self._text(policy))
        began = time.monotonic()
        other.replace(self.path)
        return began

    def write_in_place(self, policy: Policy) -> float:
        """As editors and shells do: truncate it, and write."""
        text = self._text(policy)
        began = time.monotonic()
        with self.path.open("w") as file:
            file.write(text)
        return began

    def swap(self, policy: Policy) -> float:
        """As the kubelet does with a ConfigMap: the file leads through ``..data``, a link to a directory,
        and that link is replaced; then the directory before goes. At first, the file becomes such a link."""
        directory = self.path.parent
        number = next(self._revisions)
        (directory / f"..{number}").mkdir()
        (directory / f"..{number}" / self.path.name).write_text(self._text(policy))
        data, link = directory / "..data", directory / "..data_tmp"
        before = data.readlink() if data.is_symlink() else None
        link.symlink_to(f"..{number}")
        began = time.monotonic()
        link.replace(data)
        if before is not None:
            shutil.rmtree(directory / before)
        else:
            link.symlink_to(f"..data/{self.path.name}")
            link.replace(self.path)
        return began

    def _text(self, policy: Policy) -> str:
        return f"# revision {next(self._revisions)}\n{json.dumps(policy, indent=2)}\n"
