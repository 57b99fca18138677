"""Becomes a Docker engine in a network namespace of its own, which ends with the process that started it.

    python -m tests.containers.daemon DIRECTORY

The firewall rules and bridges that an engine makes stay in that namespace, which has no route out. Everything
that the engine keeps is below the directory; its socket is ``DIRECTORY/sock``.
"""

import ctypes
import os
import shutil
import signal
import sys
from typing import NoReturn

from tests.containers.prepare import engine_environment, engine_path
from tests.lab.namespace import bring_up, unshare_network

_PR_SET_PDEATHSIG = 1


def become(directory: str) -> NoReturn:
    """Replace this process."""
    unshare_network()
    bring_up("lo")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    dockerd = shutil.which("dockerd", path=engine_path())
    if dockerd is None:
        sys.exit("dockerd is gone")
    command = [
        "dockerd",
        *(
            "--data-root",
            f"{directory}/data",
            "--exec-root",
            f"{directory}/exec",
            "--pidfile",
            f"{directory}/pid",
        ),
        *("--host", f"unix://{directory}/sock", "--config-file", f"{directory}/daemon.json"),
        *("--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"),
        # Where this process may not raise limits, containers can't be given the engine's higher ones.
        *("--default-ulimit", "nofile=1024:1024", "--default-ulimit", "nproc=1000:1000"),
        *("--ipv6", "--fixed-cidr-v6", "2a0f:5100:d::/64"),
    ]
    os.execve(dockerd, command, {**os.environ, **engine_environment()})


if __name__ == "__main__":
    become(sys.argv[1])
