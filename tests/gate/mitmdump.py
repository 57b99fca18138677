"""A real mitmdump with the addon."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT = 18080
MITMDUMP = Path(sys.executable).with_name("mitmdump")


class Mitmdump:
    """A running mitmdump with a copy of the addon file, which the test may spoil."""

    def __init__(self, directory: Path, policy: str | None, options: Sequence[str]) -> None:
        self.script = directory / "egress_policy.py"
        shutil.copy(ROOT / "addons" / "egress_policy.py", self.script)
        command = [str(MITMDUMP), "-s", str(self.script), "--listen-port", str(PORT)]
        command += ["--set", f"confdir={directory}"]
        if policy is not None:
            (directory / "policy.yaml").write_text(policy)
            command += ["--set", f"box_policy_file={directory / 'policy.yaml'}"]
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = self.process.stdout
        if stream is None:
            return
        for line in stream:
            with self._changed:
                self.output.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            found = self._changed.wait_for(
                lambda: any(text in line for line in self.output) or not self._reader.is_alive(), timeout=20
            )
        assert found and any(text in line for line in self.output), self.output

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=5)
