"""Pieces of code, as programs of a box."""

import asyncio
import shutil
from typing import Literal

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.code import prepared
from box_policy.service.programs.runs import Finished, run
from box_policy.service.programs.slots import Slots
from tests.sandbox.boxes import SYSTEM_PATH
from tests.service.programs.conftest import CWD, ENVIRONMENT, PATIENCE, nothing_left, text

pytestmark = pytest.mark.asyncio(loop_scope="module")

python3 = pytest.mark.skipif(shutil.which("python3", path=SYSTEM_PATH) is None, reason="no python3 in a box")
node = pytest.mark.skipif(shutil.which("node", path=SYSTEM_PATH) is None, reason="no node in a box")


async def run_code(
    box: NamespaceBox,
    code: str,
    language: Literal["js", "ts", "python"] = "python",
    *,
    cwd: str = CWD,
    path: str = ENVIRONMENT["PATH"],
    timeout: float | None = None,
) -> Finished:
    async with asyncio.timeout(PATIENCE), prepared(box, code, language) as argv:
        return await run(box, argv, cwd=cwd, env=ENVIRONMENT | {"PATH": path}, slots=Slots(), timeout=timeout)


async def left_in_tmp(box: NamespaceBox) -> list[str]:
    return [info.name for info in await box.files.list("/tmp", limit=100)]


async def place(box: NamespaceBox, path: str, text: str) -> None:
    await box.files.write(path, text.encode())


@python3
async def test_python(box: NamespaceBox) -> None:
    with nothing_left():
        finished = await run_code(box, "import sys\nprint('ä', len(sys.argv), __name__)\nsys.exit(3)")
    assert (finished.exit_code, text(finished.stdout), text(finished.stderr)) == (3, "ä 1 __main__\n", "")
    assert await left_in_tmp(box) == []


@python3
async def test_python_imports_from_the_working_directory(box: NamespaceBox) -> None:
    await place(box, f"{CWD}/project/helper.py", "VALUE = 'from the working directory'")
    finished = await run_code(box, "import helper; print(helper.VALUE)", cwd=f"{CWD}/project")
    assert text(finished.stdout) == "from the working directory\n"


@python3
async def test_a_traceback_of_python_shows_the_line(box: NamespaceBox) -> None:
    finished = await run_code(box, "def wrong():\n    return 1 / 0  # here\n\nwrong()")
    assert finished.exit_code == 1
    assert "line 2, in wrong" in text(finished.stderr) and "1 / 0  # here" in text(finished.stderr)


@python3
async def test_python_has_no_names_but_its_own(box: NamespaceBox) -> None:
    finished = await run_code(box, "print(sorted(name for name in globals() if not name.startswith('__')))")
    assert text(finished.stdout) == "[]\n"


@python3
async def test_processes_of_python_find_its_functions(box: NamespaceBox) -> None:
    code = """
from multiprocessing import get_context
def double(n): return 2 * n
if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
    finished = await run_code(box, code)
    assert text(finished.stdout) == "[2, 4]\n", text(finished.stderr)


@python3
async def test_code_that_no_command_line_would_hold(box: NamespaceBox) -> None:
    finished = await run_code(box, f"text = '{'x' * 1_000_000}'\nprint(len(text))")
    assert text(finished.stdout) == "1000000\n"


@python3
async def test_what_python_prints_is_seen_at_once(box: NamespaceBox) -> None:
    finished = await run_code(box, "import time; print('early'); time.sleep(60)", timeout=1.5)
    assert (finished.exit_code, text(finished.stdout)) == (124, "early\n")
    assert await left_in_tmp(box) == []


@python3
async def test_code_reads_no_input(box: NamespaceBox) -> None:
    assert "EOFError" in text((await run_code(box, "input()")).stderr)


@python3
@pytest.mark.parametrize("code", ["", "# -*- coding: latin-1 -*-\nprint('a')", "print('''\r\n''' == '\\n')"])
async def test_odd_code(box: NamespaceBox, code: str) -> None:
    finished = await run_code(box, code)
    assert finished.exit_code == 0, text(finished.stderr)


@node
async def test_js(box: NamespaceBox) -> None:
    finished = await run_code(box, "console.log('ä'); console.error(typeof require); process.exit(4)", "js")
    assert (finished.exit_code, text(finished.stdout), text(finished.stderr)) == (4, "ä\n", "function\n")
    assert await left_in_tmp(box) == []


@node
async def test_js_requires_from_the_working_directory(box: NamespaceBox) -> None:
    await place(box, f"{CWD}/project/helper.js", "module.exports = 'from the working directory'")
    finished = await run_code(box, "console.log(require('./helper'))", "js", cwd=f"{CWD}/project")
    assert text(finished.stdout) == "from the working directory\n", text(finished.stderr)


@node
async def test_js_that_can_only_be_a_module_is_one(box: NamespaceBox) -> None:
    await place(box, f"{CWD}/project/helper.mjs", "export default 'from the working directory'")
    code = "import helper from './helper.mjs'; console.log(await helper)"
    finished = await run_code(box, code, "js", cwd=f"{CWD}/project")
    if "Cannot use import statement" in text(finished.stderr):
        pytest.skip("a node that does not look for modules in its standard input")
    assert text(finished.stdout) == "from the working directory\n", text(finished.stderr)


@pytest.mark.parametrize(
    ("language", "missing"),
    [("python", "python3"), ("js", "node"), ("ts", "node 22.7 or later, deno, bun or tsx")],
)
async def test_what_is_missing_is_named(
    box: NamespaceBox, language: Literal["js", "ts", "python"], missing: str
) -> None:
    # A directory with the shell and nothing else.
    await run(
        box, ["sh", "-c", "mkdir -p only; ln -sf /bin/sh only/sh"], cwd=CWD, env=ENVIRONMENT, slots=Slots()
    )
    finished = await run_code(box, "1", language, path=f"{CWD}/only")
    assert finished.exit_code == 127
    assert missing in text(finished.stderr)


FAKES = {
    "deno": 'echo deno "$@"; cat',
    "bun": 'echo bun "$@"; cat',
    "tsx": 'echo tsx; cat "$1"',
}


@pytest.mark.parametrize(
    ("program", "shown"), [("deno", "deno run -A --ext=ts -"), ("bun", "bun run -"), ("tsx", "tsx")]
)
async def test_what_runs_typescript(box: NamespaceBox, program: str, shown: str) -> None:
    directory = f"{CWD}/with-{program}"
    await place(box, f"{directory}/{program}", f"#!/bin/sh\n{FAKES[program]}\n")
    script = f"chmod +x {directory}/{program}; ln -sf /bin/sh {directory}/sh; ln -sf /bin/cat {directory}/cat"
    await run(box, ["sh", "-c", script], cwd=CWD, env=ENVIRONMENT, slots=Slots())
    finished = await run_code(box, "let n: number = 1", "ts", path=directory)
    assert text(finished.stdout) == f"{shown}\nlet n: number = 1", text(finished.stderr)


@node
async def test_typescript_by_node_itself(box: NamespaceBox) -> None:
    finished = await run_code(box, "const n: number = 41; console.log(n + 1)", "ts")
    if finished.exit_code == 127:
        pytest.skip(text(finished.stderr))
    assert text(finished.stdout) == "42\n"


async def test_a_box_that_has_ended(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("short"))
    await box.close()
    with pytest.raises(SandboxError):
        await run_code(box, "print(1)")


async def test_a_full_box_says_so(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("small", scratch_bytes=1 << 20))
    try:
        with pytest.raises(OSError, match="No space"):
            await run_code(box, "#" * (4 << 20))
        assert await left_in_tmp(box) == []
    finally:
        await box.close()


async def test_the_file_is_removed_also_when_nobody_waits_any_more(box: NamespaceBox) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run_code(box, "import time; time.sleep(60)"), 1.0)
    assert await left_in_tmp(box) == []
