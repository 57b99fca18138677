"""The attacker in the box, as the attack's author commands it."""

import asyncio
import base64
import itertools
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

AGENT: Final = (Path(__file__).parent / "agent.py").read_text()
"""To be run by a Python interpreter in the box, with pipes as standard input and output."""

PATIENCE: Final = 6.0
"""Seconds after which a client that has heard nothing has been met with silence."""

_LONGEST_ANSWER: Final = 64 * 1024 * 1024


class AttackerGone(Exception):
    """The agent in the box has ended, or never began."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client in the box was told.

    ``kind`` is ``alert`` (a fatal TLS alert, then the end), ``http`` (a whole status line), ``reset``,
    ``eof`` (the end without a word), ``data`` (bytes of some other sort), ``silence``, or the name of
    another error: ``EPERM``, ``ECONNREFUSED``, ...
    """

    kind: str
    code: int = 0
    """The alert's description, or HTTP's status."""
    data: bytes = b""
    ended: str | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.code}" if self.code else self.kind


class Channel(Protocol):
    """Carries lines to an agent and back."""

    async def write(self, line: bytes) -> None: ...

    async def read(self) -> bytes:
        """The next line; empty at the end."""

    async def close(self) -> None: ...


class StreamChannel:
    """A channel over a pair of pipes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def write(self, line: bytes) -> None:
        self._writer.write(line)
        await self._writer.drain()

    async def read(self) -> bytes:
        return await self._reader.readline()

    async def close(self) -> None:
        self._writer.close()


class Attacker:
    """Commands one agent."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        self.nonce = secrets.token_hex(8)
        """A secret, new for each attack: where it turns up, the attack's bytes have been."""

    def new_nonce(self) -> None:
        self.nonce = secrets.token_hex(8)

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._channel.close()

    async def do(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Have the agent do something. Its failures are in the result, under ``error``."""
        if self._listening.done():
            raise AttackerGone("the agent in the box has ended")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        line = json.dumps({"id": number, "do": task, "with": arguments}).encode() + b"\n"
        try:
            await self._channel.write(line)
            return await future
        except OSError:
            raise AttackerGone("the agent in the box has ended") from None
        finally:
            del self._waiting[number]

    async def connect(self, address: str, port: int, *, timeout: float = PATIENCE, **options: Any) -> "Line":
        """Open a connection. How that ended is in the line's ``error``."""
        line = Line(self, next(self._numbers))
        result = await self.do(
            "connect", line=line.number, address=address, port=port, timeout=timeout, **options
        )
        line.error = result.get("error")
        return line

    async def exchange(self, address: str, port: int, data: bytes, **how: Any) -> Seen:
        """Connect, send, and read to the end: most attacks. ``how``: see :meth:`Line.send`."""
        line = await self.connect(address, port)
        try:
            if line.error is None:
                await line.send(data, **how)
            return await line.see()
        finally:
            await line.close()

    async def datagram(self, address: str, port: int, data: bytes, *, timeout: float = PATIENCE) -> Seen:
        """Send a datagram and wait for an answer, or an error."""
        result = await self.do("datagram", address=address, port=port, data=_text(data), timeout=timeout)
        if "error" in result:
            kind = "silence" if result["error"] == "timeout" else result["error"]
            return Seen(kind, seconds=result["seconds"])
        return Seen("data", data=base64.b64decode(result["data"][0]), seconds=result["seconds"])

    async def python(self, source: str) -> Any:
        """Run Python code in the agent: what it leaves in ``result``, or the name of its error."""
        result = await self.do("python", source=source)
        return result["error"] if "error" in result else result["value"]

    async def program(
        self,
        *argv: str,
        text: str | None = None,
        timeout: float = 20,
        environment: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Run a program: its exit status and all that it wrote. AttackerGone if there is none."""
        result = await self.do("program", argv=argv, text=text, timeout=timeout, environment=environment)
        if "error" in result:
            raise AttackerGone(f"{argv[0]}: {result['error']}")
        return result["status"], result["output"]

    async def _listen(self) -> None:
        try:
            while line := await self._channel.read():
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer["result"])
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(AttackerGone("the agent in the box has ended"))


class Line:
    """One TCP connection of the agent's."""

    def __init__(self, attacker: Attacker, number: int) -> None:
        self._attacker = attacker
        self.number = number
        self._reset = False
        self.error: str | None = None
        """Why there is no connection, or no handshake: an error's name."""

    async def send(self, data: bytes, *, segment: int = 0, pause: float = 0.0) -> str | None:
        """Send bytes, in segments of a size, with pauses (seconds) between them. Returns the error's name."""
        result = await self._attacker.do(
            "send", line=self.number, data=_text(data), segment=segment, pause=pause, timeout=PATIENCE
        )
        self._reset |= result.get("error") in ("ECONNRESET", "EPIPE")
        return result.get("error")

    async def read(self, *, size: int | None = None, until: bytes = b"", timeout: float = PATIENCE) -> Seen:
        """Read until there are so many bytes, or those, or it ends; then say what that was."""
        result = await self._attacker.do(
            "read", line=self.number, size=size, until=_text(until), timeout=timeout
        )
        if "error" in result:
            return Seen(result["error"], seconds=result["seconds"])
        # The kernel tells of a reset once: to the sending, if that came later.
        ended = "reset" if self._reset and result["ended"] == "eof" else result["ended"]
        return classify(base64.b64decode(result["data"]), ended, result["seconds"])

    async def see(self, timeout: float = PATIENCE) -> Seen:
        """Read to the end and say what that was."""
        if self.error is not None:
            # Refused as soon as it was accepted: the reset may come before connect() has returned.
            return Seen({"timeout": "silence", "ECONNRESET": "reset"}.get(self.error, self.error))
        return await self.read(timeout=timeout)

    async def tls(self, name: str | None, **options: Any) -> dict[str, Any]:
        """A TLS handshake. What the client saw, ``certificate`` (DER) and ``version``, or ``error``."""
        result = await self._attacker.do("tls", line=self.number, name=name, timeout=PATIENCE, **options)
        self.error = result.get("error")
        return result

    async def end(self) -> None:
        """Send FIN."""
        await self._attacker.do("end", line=self.number)

    async def close(self, *, reset: bool = False) -> None:
        await self._attacker.do("close", line=self.number, reset=reset)


def classify(data: bytes, ended: str | None, seconds: float) -> Seen:
    """Name what a client has read."""
    if len(data) == 7 and data[0] == 0x15 and data[5] == 2:
        return Seen("alert", data[6], data, ended, seconds)
    if data.startswith(b"HTTP/1.") and data[9:12].isdigit():
        return Seen("http", int(data[9:12]), data, ended, seconds)
    if data:
        return Seen("data", 0, data, ended, seconds)
    return Seen("silence" if ended == "timeout" else ended or "data", 0, data, ended, seconds)


async def over_pipes(process: asyncio.subprocess.Process) -> Attacker:
    """The attacker whose agent is a process with pipes, of which lines may be long."""
    assert process.stdin is not None and process.stdout is not None
    process.stdout._limit = _LONGEST_ANSWER  # type: ignore[attr-defined]
    return Attacker(StreamChannel(process.stdout, process.stdin))


def interpreter() -> str | None:
    """An interpreter that a box made of this machine's system directories has."""
    return shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
