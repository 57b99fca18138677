"""A piece of code, as a program of a box.

It is handed over in a file of the box's, as a command line takes 128 KiB at most. Yet it runs as if it had
been given to ``python -c`` or ``node -e``: what it imports is looked for in the working directory, and not
where that file happens to be.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

from box_policy.sandbox.launcher import Box, SandboxError

type Language = Literal["js", "ts", "python"]

_REMOVAL_PATIENCE: Final = 5.0
"""Seconds for a file to be removed. One that stays lies in the box's /tmp, and goes with it."""

# With -c, sys.path begins with the working directory. The name of the file lets tracebacks show its lines and
# multiprocessing load it anew. What is printed to a pipe would be kept back until there is much of it.
_PYTHON_START: Final = (
    "import sys; sys.stdout.reconfigure(line_buffering=True)\n"
    "sys.argv.pop(0); __file__ = sys.argv[0]; del sys\n"
    "exec(compile(open(__file__, 'rb').read(), __file__, 'exec', dont_inherit=True))"
)
# Which programs there are is asked of the box, in the same breath as they are started.
_PYTHON: Final = """\
for python in python3 python; do
  if command -v $python >/dev/null; then exec $python -c "$2" "$1"; fi
done
echo 'running python takes python3, which this box does not have on its PATH' >&2
exit 127
"""
# What node reads from its standard input it treats like -e: CommonJS, or a module if only that can be meant.
_JAVASCRIPT: Final = """\
if command -v node >/dev/null; then exec node - <"$1"; fi
echo 'running js takes node, which this box does not have on its PATH' >&2
exit 127
"""
_TYPESCRIPT: Final = """\
if command -v node >/dev/null && node -e 'process.exit(process.features.typescript ? 0 : 1)' 2>/dev/null
then exec node - <"$1"; fi
if command -v deno >/dev/null; then exec deno run -A --ext=ts - <"$1"; fi
if command -v bun >/dev/null; then exec bun run - <"$1"; fi
if command -v tsx >/dev/null; then exec tsx "$1"; fi
flags='--experimental-strip-types --input-type=module-typescript --disable-warning=ExperimentalWarning'
if command -v node >/dev/null && node $flags -e 'let n: number' 2>/dev/null
then exec node $flags - <"$1"; fi
echo 'running ts takes node 22.7 or later, deno, bun or tsx, none of which this box has on its PATH' >&2
exit 127
"""
_SCRIPTS: Final[dict[Language, tuple[str, tuple[str, ...]]]] = {
    "python": (_PYTHON, (_PYTHON_START,)),
    "js": (_JAVASCRIPT, ()),
    "ts": (_TYPESCRIPT, ()),
}
_SUFFIXES: Final[dict[Language, str]] = {"python": ".py", "js": ".js", "ts": ".ts"}


@asynccontextmanager
async def prepared(box: Box, code: str, language: Language) -> AsyncIterator[list[str]]:
    """Hand code over to a box; the context gives the arguments of the program that runs it, as often as
    one likes. It ends with exit code 127, and says what is missing, in a box that can't run this language.

    Raises:
        OSError: the box can't take it, as its disk is full.
        SandboxError: the box has ended, or is paused.
    """
    path = f"/tmp/code-{secrets.token_hex(8)}{_SUFFIXES[language]}"  # noqa: S108  # the box's, not the host's
    script, more = _SCRIPTS[language]
    try:
        await box.files.write(path, code.encode())
        yield ["sh", "-c", script, "sh", path, *more]
    finally:
        with suppress(OSError, SandboxError, TimeoutError):
            async with asyncio.timeout(_REMOVAL_PATIENCE):
                await box.files.remove(path)
