"""``box.exec``: programs in a box."""

import math
import time
from collections.abc import Mapping
from typing import Any, Final

from box_policy.sdk import paths, session_frames, values
from box_policy.sdk._async.runs import AsyncRun, AsyncStreamRun
from box_policy.sdk._async.session import AsyncExecSessionHandle, OutputCallback
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk._async.workspace import AsyncWorkspace
from box_policy.sdk.options import timeout_ms
from box_policy.sdk.types import CodeLanguage

_GRACE_MS: Final = 30_000
"""How much longer than a program's own timeout its answer is waited for, in milliseconds."""


class AsyncExecNamespace:
    """Runs programs.

    ``timeout`` is in milliseconds; when it is over the program is killed, and its exit code is 124.
    ``cwd`` counts from the box's own directory. ``env`` is added to the box's variables.
    """

    def __init__(self, transport: AsyncTransport, at: str, workspace: AsyncWorkspace) -> None:
        self._transport = transport
        self._at = at
        self._workspace = workspace

    async def command(
        self,
        command: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the service keeps it
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> AsyncRun[str]:
        """Run a shell command, and wait for its end.

        Raises:
            BoxError: it could not be run. A program that fails raises nothing.
        """
        return await self._run("exec", "command", self._command(command, timeout, cwd, env))

    async def code(
        self,
        *,
        code: str,
        lang: CodeLanguage,
        timeout: float | None = None,  # noqa: ASYNC109
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> AsyncRun[str]:
        """Run some code, and wait for its end.

        Raises:
            BoxError: it could not be run. Code that fails raises nothing.
        """
        return await self._run("code", "code", self._code(code, lang, timeout, cwd, env))

    async def stream(
        self,
        command: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> AsyncStreamRun[str]:
        """A shell command whose output is read while it runs. It starts with the first iteration."""
        return self._stream("exec-stream", "command", self._command(command, timeout, cwd, env))

    async def stream_code(
        self,
        *,
        code: str,
        lang: CodeLanguage,
        timeout: float | None = None,  # noqa: ASYNC109
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> AsyncStreamRun[str]:
        """Some code whose output is read while it runs. It starts with the first iteration."""
        return self._stream("code-stream", "code", self._code(code, lang, timeout, cwd, env))

    async def session(
        self,
        *,
        cmd: str | None = None,
        argv: list[str] | None = None,
        tty: bool = False,
        cwd: str | None = None,
        rows: int | None = None,
        cols: int | None = None,
        env: list[str] | Mapping[str, str] | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
    ) -> AsyncExecSessionHandle:
        """Start a program to talk to, and return once it runs.

        Args:
            cmd: a shell command.
            argv: a program and its arguments, without a shell; comes before ``cmd``.
            tty: give it a terminal, of ``rows`` and ``cols``. Standard error is then part of standard output.
            env: a mapping, or a list of ``KEY=VALUE``, added to the box's variables.
            on_stdout: is called with each piece of output, as bytes.
            on_stderr: likewise.

        Raises:
            BoxError: it could not be started.
        """
        directory = paths.resolved(self._workspace.cwd, cwd) if cwd else self._workspace.cwd
        frame = session_frames.start(
            cmd=None if cmd is None else values.text(cmd, "cmd"),
            argv=values.arguments(argv),
            tty=tty,
            cwd=directory,
            rows=rows,
            cols=cols,
            env=values.session_environment(env),
        )
        return await AsyncExecSessionHandle.open(
            self._transport, f"{self._at}/exec-session", frame, on_stdout, on_stderr
        )

    async def _run(self, path: str, type_: str, body: dict[str, Any]) -> AsyncRun[str]:
        started = time.monotonic()
        answer = await self._transport.request(
            "POST", f"{self._at}/{path}", body=body, at_least_ms=_waiting(body)
        )
        return AsyncRun.of_answer(type_, answer, started, body.get("timeout"))

    def _stream(self, path: str, type_: str, body: dict[str, Any]) -> AsyncStreamRun[str]:
        self._transport.check_open()
        return AsyncStreamRun(type_, self._transport, f"{self._at}/{path}", body, _waiting(body))

    def _command(
        self, command: str, timeout: float | None, cwd: str | None, env: dict[str, str] | None
    ) -> dict[str, Any]:
        return {"command": ["sh", "-c", values.command(command)]} | self._circumstances(timeout, cwd, env)

    def _code(
        self, code: str, lang: str, timeout: float | None, cwd: str | None, env: dict[str, str] | None
    ) -> dict[str, Any]:
        body = {"code": values.text(code, "code"), "language": values.language(lang)}
        return body | self._circumstances(timeout, cwd, env)

    def _circumstances(
        self, timeout: float | None, cwd: str | None, env: dict[str, str] | None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {}
        directory = paths.resolved(self._workspace.cwd, cwd) if cwd else self._workspace.cwd
        if folder := paths.folder(directory):
            body["folder"] = folder
        if (limit := timeout_ms(timeout)) is not None:
            body["timeout"] = math.ceil(limit)
        if variables := values.environment(env):
            body["env"] = variables
        return body


def _waiting(body: dict[str, Any]) -> float:
    return body["timeout"] + _GRACE_MS if "timeout" in body else 0
