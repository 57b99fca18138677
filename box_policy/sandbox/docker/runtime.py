"""The interpreter that runs inside containers: a copy of this one, with only what pid 1 of a box needs.

It brings its own loader and C library, so that it runs in a container of any image, and takes nothing of the
image's.
"""

import hashlib
import importlib.util
import io
import json
import marshal
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from box_policy.sandbox.docker.paths import RUNTIME
from box_policy.sandbox.launcher import SandboxError

_LAYOUT = 1
"""To be counted up when the same files come to lie elsewhere."""
_COLLECT = """
import sys
sys.path += [sys.argv[1]]
import importlib.util
spec = importlib.util.spec_from_file_location("box_policy", sys.argv[1] + "/box_policy/__init__.py")
sys.modules["box_policy"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from box_policy.sandbox.docker.collect import main
main()
"""
_COLLECT_TIMEOUT = 60.0
# glibc's loader reads this file of whatever root directory it is in, and loads what it names, before all
# else: an image could put a library into pid 1. Ours looks at a path that is in the runtime and isn't there.
_PRELOAD = b"/etc/ld.so.preload\0"
_NO_PRELOAD = f"{RUNTIME}/empty".encode() + b"\0"
_LOADER = "ld-linux"
_UNCHECKED_HASH = 1
_NO_COPY = "this Python can't be copied into containers, for pid 1 of boxes"
_VERSION_LENGTH = 16
_EXECUTABLE = 0o755
_READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Runtime:
    """The files, by their paths below ``RUNTIME``."""

    version: str
    """Names the content: what is the same has the same."""
    files: Mapping[str, bytes]

    def tar(self) -> bytes:
        """All of them as a tar archive of a root file system."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{RUNTIME.strip('/')}/{path}")
                entry.size = len(content)
                entry.mode = _EXECUTABLE if path in ("ld.so", "bin/python3") else _READABLE
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def command(module: str) -> list[str]:
    """What runs ``main()`` of a module of this package inside a container."""
    code = f"from box_policy.sandbox.docker.{module} import main; main()"
    return [
        *(f"{RUNTIME}/ld.so", "--inhibit-cache", "--library-path", f"{RUNTIME}/lib"),
        *(f"{RUNTIME}/bin/python3", "-I", "-S", "-B", "-X", "utf8", "-c", code),
    ]


def collect() -> Runtime:
    """The runtime that this interpreter makes. It takes a while. SandboxError if it can't be copied."""
    found = _ask()
    try:
        return _runtime(found)
    except OSError as error:
        raise SandboxError(f"{_NO_COPY} ({sys.executable}): {error}") from None


def _ask() -> dict[str, Any]:
    if not sys.executable:
        raise SandboxError("Docker boxes need a Python interpreter; sys.executable is empty")
    parent = str(Path(__file__).parents[3])
    command = [sys.executable, "-I", "-S", "-c", _COLLECT, parent]
    variables = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_COLLECT_TIMEOUT,
            cwd="/",
            env={"LANG": "C.UTF-8", **variables},
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxError(f"{_NO_COPY} ({sys.executable}): {reason}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{_NO_COPY} ({sys.executable}): {error}") from None
    return found


def _runtime(found: dict[str, Any]) -> Runtime:
    library = f"lib/python{found['version']}"
    sources: dict[str, bytes] = {"bin/python3": Path(found["executable"]).read_bytes()}
    for path in found["libraries"]:
        name = Path(path).name
        is_loader = name.startswith(_LOADER)
        sources["ld.so" if is_loader else f"lib/{name}"] = Path(path).read_bytes()
    for path in found["extensions"]:
        sources[f"{library}/lib-dynload/{Path(path).name}"] = Path(path).read_bytes()
    if _PRELOAD not in sources.get("ld.so", b""):
        raise SandboxError(
            f"{_NO_COPY} ({found['executable']}): it is not linked against glibc's shared libraries; use the"
            " Python of a distribution, or of the official image"
        )
    for name, (path, is_package) in found["modules"].items():
        place = name.replace(".", "/") + ("/__init__" if is_package else "")
        sources[f"{library}/{place}.pyc"] = Path(path).read_bytes()
    digest = hashlib.sha256(f"{_LAYOUT} {sys.version}".encode())
    for path, content in sorted(sources.items()):
        digest.update(f"\0{path}\0{len(content)}\0".encode() + content)
    return Runtime(
        digest.hexdigest()[:16], {path: _built(path, content) for path, content in sources.items()}
    )


def _built(path: str, content: bytes) -> bytes:
    if path == "ld.so":
        return content.replace(_PRELOAD, _NO_PRELOAD)
    if not path.endswith(".pyc"):
        return content
    # Compiled here: the volume is read-only. Without its source, a file has no time to be compared with.
    code = compile(content, f"{RUNTIME}/{path[:-1]}", "exec", dont_inherit=True)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little")
    return head + importlib.util.source_hash(content) + marshal.dumps(code)
