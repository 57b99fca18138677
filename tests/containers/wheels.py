"""The gate's dependencies as wheels, for images that are built where nothing can be fetched.

    python -m tests.containers.wheels

Tests have no network, so this runs before them. pip takes the wheels from where it is configured to.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from tests.containers import prepare

PYTHON: Final = "3.13"
"""The base image's."""
_ROOT: Final = Path(__file__).parents[2]


def wheels() -> Path:
    """Where they are: another place for each list of dependencies."""
    wanted = "\n".join([PYTHON, platform.machine(), *_requirements()])
    return prepare.cache() / f"wheels-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"


def fetch() -> None:
    """Have them there. CalledProcessError if pip can't."""
    if wheels().exists():
        return
    prepare.cache().mkdir(parents=True, exist_ok=True)
    partial = wheels().with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    options = ["--only-binary=:all:", "--python-version", PYTHON, "--dest", str(partial)]
    subprocess.run([*pip, *options, *_requirements()], stdin=subprocess.DEVNULL, check=True)
    partial.rename(wheels())


def _requirements() -> list[str]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    return sorted([*project["project"]["dependencies"], *project["build-system"]["requires"]])


if __name__ == "__main__":
    fetch()
