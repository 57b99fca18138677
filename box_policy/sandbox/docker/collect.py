"""What the processes of this backend inside containers run with, found out by such a process.

Run by the interpreter that is to be copied, with the directory of this package as its argument. It imports
all that they import, and prints as JSON what of the interpreter's files that takes.
"""

import ctypes
import encodings.ascii
import encodings.latin_1
import encodings.utf_8  # noqa: F401
import json
import os
import sys
from pathlib import Path
from typing import Any

from box_policy.sandbox.docker import container_init, network_helper  # noqa: F401

_PHDR_INFO = ctypes.c_char_p * 2
"""struct dl_phdr_info, as far as it matters: an address, then the name."""
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_PHDR_INFO), ctypes.c_size_t, ctypes.c_void_p)


def main() -> None:
    """Print it."""
    modules = {}
    extensions = []
    for name, module in tuple(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(path, str):
            continue
        if path.endswith(".py"):
            modules[module.__name__] = [path, hasattr(module, "__path__")]
        else:
            extensions.append(path)
    json.dump(
        {
            "version": f"{sys.version_info.major}.{sys.version_info.minor}",
            "executable": str(Path("/proc/self/exe").readlink()),
            "libraries": [path for path in _loaded() if path not in extensions],
            "modules": modules,
            "extensions": sorted(set(extensions)),
        },
        sys.stdout,
    )


def _loaded() -> list[str]:
    """The shared objects of this process, by the names that they were asked for, dl_iterate_phdr(3)."""
    found: list[str] = []

    def note(info: Any, _size: int, _data: Any) -> int:
        name = os.fsdecode(info.contents[1] or b"")
        if name.startswith("/"):
            found.append(name)
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_CALLBACK(note), None)
    return sorted(found)


if __name__ == "__main__":
    main()
