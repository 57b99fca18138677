"""The standard library's tarfile, without what it loads for archives that are compressed."""

import sys

# tarfile loads these for archives that are compressed, which none is here. In the process that boxes are
# forked from, each would slow every fork.
_NOT_NEEDED = ("bz2", "lzma", "zlib")
_hidden = {name: sys.modules.get(name) for name in _NOT_NEEDED}
sys.modules.update(dict.fromkeys(_NOT_NEEDED))  # type: ignore[arg-type]  # None: an import of it fails
import tarfile  # noqa: E402

for _name, _module in _hidden.items():
    if _module is None:
        del sys.modules[_name]
    else:
        sys.modules[_name] = _module

__all__ = ["BLOCK", "MODE", "tarfile"]

BLOCK = tarfile.BLOCKSIZE
MODE = 0o1777
"""What an archive keeps of a mode. Never set-uid or set-gid: no program of a box may set those."""
