# Written by scripts/make_sync from _async/runs.py: change that one.
"""What a program in a box did, or is doing."""

import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Final, Self

import httpx

from box_policy.sdk import answers, failures
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk.errors import BoxError
from box_policy.sdk.exec_streams import LINES, exec_stream
from box_policy.sdk.types import ExecExitChunk, ExecOutputChunk, ExecStreamChunk, RunCost, RunStatus
from box_policy.sdk.unsupported import unsupported

_MOST_KEPT: Final = 16 * 1024 * 1024
"""Characters of a stream's output that are kept for ``result``."""


class Run[T]:
    """A program that ran in a box.

    A program that ends with another status than 0 raises nothing: ``status`` is ``failed`` then, and
    ``result`` what it said on standard error, or else on standard output.
    """

    def __init__(self, type_: str, timeout_ms: float | None = None) -> None:
        self.type = type_
        """``command`` or ``code``."""
        self._id = str(uuid.uuid4())
        self._status: RunStatus = "running"
        self._result = ""
        self._stdout = ""
        self._stderr = ""
        self._exit_code: int | None = None
        self._truncated = False
        self._timed_out = False
        self._timeout_ms = timeout_ms
        self._started = time.monotonic()
        self._compute_ms: float | None = None

    @classmethod
    def of_answer(cls, type_: str, answer: Any, started: float, timeout_ms: float | None) -> Self:
        """The run that an answer tells of. Its own timeout was ``timeout_ms``, if it had one.

        Raises:
            BoxError: it tells of none.
        """
        answer = answers.as_object(answer)
        run = cls(type_, timeout_ms)
        run._started = started
        run._stdout = answers.text(answer, "output")
        run._stderr = answers.text(answer, "error")
        run._truncated = answer.get("truncated") is True
        run._timed_out = answer.get("timed_out") is True
        code = answer.get("exit_code")
        if not isinstance(code, int) or isinstance(code, bool):
            raise BoxError("the service doesn't say how the program ended")
        run._end(code)
        # Many programs that succeed warn on standard error: it must not take the place of their output.
        run._result = run._stdout if code == 0 else run._stderr or run._stdout
        return run

    @property
    def id(self) -> str:
        """An id of this object's own."""
        return self._id

    @property
    def status(self) -> RunStatus:
        """``running``, ``completed``, ``failed``, ``cancelled``, or ``detached``: nobody reads it."""
        return self._status

    @property
    def result(self) -> Any:
        """What the program had to say."""
        return self._result

    @property
    def exit_code(self) -> int | None:
        """How the program ended: 128 + n by signal n, 124 when its time was up. None while it runs."""
        return self._exit_code

    @property
    def stdout(self) -> str:
        """What it wrote to standard output."""
        return self._stdout

    @property
    def stderr(self) -> str:
        """What it wrote to standard error."""
        return self._stderr

    @property
    def truncated(self) -> bool:
        """Whether there was more output than is kept."""
        return self._truncated

    @property
    def timed_out(self) -> bool:
        """Whether the program was ended because its ``timeout`` was over."""
        return self._timed_out

    @property
    def cost(self) -> RunCost:
        """How long it took, as seen from here."""
        elapsed = (time.monotonic() - self._started) * 1000
        return RunCost(compute_ms=elapsed if self._compute_ms is None else self._compute_ms)

    def cancel(self) -> None:
        """Stop it, if it still runs. A stream's program is ended, and whoever iterates gets a BoxError."""

    def logs(self) -> list[Any]:
        """Not supported.

        Raises:
            BoxUnsupportedError: always.
        """
        raise unsupported("run.logs()", "what a program writes is in run.stdout and run.stderr")

    def __repr__(self) -> str:
        killed = ""
        if self._timed_out:
            timeout = "timeout" if self._timeout_ms is None else f"timeout of {self._timeout_ms:g} ms"
            killed = f" (killed: its {timeout} was over)"
        return f"<{type(self).__name__} {self.type}: {self._status}, exit code {self._exit_code}{killed}>"

    def _end(self, code: int) -> None:
        self._exit_code = code
        self._status = "completed" if code == 0 else "failed"
        self._compute_ms = (time.monotonic() - self._started) * 1000


class StreamRun[T](Run[T]):
    """A program whose output is read while it runs. It starts with the first iteration.

    Whoever stops reading early closes the run, or uses it as a context manager: only then does the
    program end, and ``status`` become ``detached``.
    """

    def __init__(
        self, type_: str, transport: Transport, path: str, body: dict[str, Any], at_least_ms: float
    ) -> None:
        super().__init__(type_, body.get("timeout"))
        self._transport = transport
        self._response: httpx.Response | None = None
        self._cancelled = self._closed = False
        self._kept: list[ExecOutputChunk] = []
        self._room = _MOST_KEPT
        self._chunks = self._iterate(path, body, at_least_ms)

    def __iter__(self) -> Iterator[ExecStreamChunk]:
        return self._chunks

    def close(self) -> None:
        """Stop reading. The program is ended, if it still runs."""
        self._closed = True
        self._cut()
        try:
            self._chunks.close()
        except (RuntimeError, ValueError):
            pass  # another task or thread is reading at this moment: it sees the end of the connection
        if self._status == "running":
            self._status = "detached"

    def cancel(self) -> None:
        """Stop it, if it still runs. The program is ended, and whoever iterates gets a BoxError."""
        if self._status == "running":
            self._cancelled = True
            self._status = "cancelled"
            self._cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _cut(self) -> None:
        if self._response is not None:
            failures.cut(self._response)

    def _iterate(self, path: str, body: object, at_least_ms: float) -> Generator[ExecStreamChunk, None]:
        try:
            self._check_wanted()
            response = self._transport.open("POST", path, body=body, accept=LINES, at_least_ms=at_least_ms)
            try:
                self._response = response
                self._check_wanted()
                stream = exec_stream(response.headers.get("content-type", ""))
                with closing(self._transport.pieces(response)) as pieces:
                    for piece in pieces:
                        for chunk in stream.push(piece):
                            self._note(chunk)
                            yield chunk
                        if stream.ended:
                            break
                for chunk in stream.finish():
                    self._note(chunk)
                    yield chunk
            finally:
                self._response = None
                response.close()
        except BoxError:
            self._check_wanted()
            self._status = "failed"
            raise
        finally:
            if self._status == "running":
                self._status = "detached"
            self._result = "".join(chunk.data for chunk in self._kept)
            self._stdout = "".join(chunk.data for chunk in self._kept if chunk.stream != "stderr")
            self._stderr = "".join(chunk.data for chunk in self._kept if chunk.stream == "stderr")
            self._kept.clear()
            if self._compute_ms is None:
                self._compute_ms = (time.monotonic() - self._started) * 1000

    def _check_wanted(self) -> None:
        if self._cancelled:
            raise BoxError("Run cancelled") from None
        if self._closed:
            raise BoxError("the run was closed while it was read") from None

    def _note(self, chunk: ExecStreamChunk) -> None:
        if isinstance(chunk, ExecExitChunk):
            self._timed_out = chunk.timed_out
            self._end(chunk.exit_code)
        elif len(chunk.data) <= self._room:
            self._room -= len(chunk.data)
            self._kept.append(chunk)
        else:
            self._truncated = True
            self._room = 0
