"""A program in a box, from start to end, with all that it wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from box_policy.sandbox.launcher import (
    Box,
    ProgramNotFoundError,
    ProgramRefusedError,
    ProgramSpec,
    SandboxError,
)
from box_policy.service.budget import Share
from box_policy.service.programs.execution import StreamName, executing
from box_policy.service.programs.slots import Slots

MAX_OUTPUT: Final = 8 << 20
"""Bytes that are kept of what a program writes, of standard output and of standard error."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""Exit codes of programs that could not be run, as a shell gives them (POSIX.1-2024, sh, EXIT STATUS)."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended."""

    exit_code: int
    """Its exit status, 128 + n after signal n, 124 after its time was over, 126 or 127 if it could not be
    run."""
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool = False
    """It wrote more, which was not kept."""
    stderr_truncated: bool = False
    timed_out: bool = False

    @property
    def truncated(self) -> bool:
        """Whether some of what it wrote is missing."""
        return self.stdout_truncated or self.stderr_truncated


async def run(
    box: Box,
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    slots: Slots,
    share: Share | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # the program's, which is killed and still has a result
    max_output: int = MAX_OUTPUT,
) -> Finished:
    """Run a program to its end. Its standard input is /dev/null.

    Its end is what counts: what it left behind, and still holds its output, is not waited for. Cancelling
    this kills it.

    Args:
        share: of what all may keep: what it writes is kept at its expense.
        timeout: Seconds after which it is killed, with its process group.
        max_output: Bytes to keep of each stream. The program goes on beyond them.

    Raises:
        TooManyProgramsError: there is no place for it.
        SandboxError: the box has ended, is paused, or can't run it.
    """
    kept: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    truncated: set[StreamName] = set()
    with slots.place(box.id):
        try:
            async with executing(box, ProgramSpec(argv, env, cwd), timeout=timeout) as execution:
                while (piece := await execution.next_piece()) is not None:
                    room = min(len(piece.data), max_output - len(kept[piece.stream]))
                    room = room if share is None else share.take(room)
                    kept[piece.stream] += piece.data[:room]
                    if len(piece.data) > room:
                        truncated.add(piece.stream)
                return Finished(
                    execution.exit_code,
                    bytes(kept["stdout"]),
                    bytes(kept["stderr"]),
                    stdout_truncated="stdout" in truncated,
                    stderr_truncated="stderr" in truncated,
                    timed_out=execution.timed_out,
                )
        except SandboxError as error:
            code = refusal_code(error)
            if code is None:
                raise
            return Finished(code, b"", refusal_text(error))


def refusal_code(error: SandboxError) -> int | None:
    """The exit code a shell would give for a program that could not be run, or not in that directory; None
    if it isn't the program's fault."""
    if isinstance(error, ProgramNotFoundError):
        return NOT_FOUND
    return NOT_EXECUTABLE if isinstance(error, ProgramRefusedError) else None


def refusal_text(error: SandboxError) -> bytes:
    """What the user sees as the standard error of a program that could not be run."""
    return f"{error}\n".encode(errors="replace")
