"""WebSockets to the service, in both kinds. Whatever the library raises becomes a BoxError."""

import asyncio
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import websockets.asyncio.client as asyncio_client
import websockets.sync.client as sync_client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response
from websockets.sync.connection import Connection

from box_policy.sdk import answers, failures, session_frames
from box_policy.sdk.connection import Target
from box_policy.sdk.errors import BoxConnectionError, BoxError, BoxTimeoutError

_CLOSE_TIMEOUT = 2.0
"""Seconds that a peer has to say goodbye."""


def _options(target: Target, timeout: float | None) -> dict[str, Any]:
    return {
        "additional_headers": target.headers,
        "open_timeout": timeout,
        "close_timeout": _CLOSE_TIMEOUT,
        # A callback may take its time with the output. The peer's pongs then wait behind it, and a session
        # ended for want of them would end its program.
        "ping_timeout": None,
        "max_size": session_frames.MAX_FRAME,
        "compression": None,
        "proxy": None if target.is_local else True,
    }


class _Refused(Exception):
    """An HTTP answer in place of a WebSocket."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class _AsyncConnection(asyncio_client.ClientConnection):
    """Follows no redirect: the library would, with the API key, to whatever host it is told."""

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().handshake(*arguments, **options)
        except InvalidStatus as error:
            raise _Refused(error.response) from None


class _Connection(sync_client.ClientConnection):
    """Follows no redirect either."""

    def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            super().handshake(*arguments, **options)
        except InvalidStatus as error:
            raise _Refused(error.response) from None


def _refusal(target: Target, error: Exception) -> BoxError:
    if isinstance(error, _Refused):
        body = bytes(error.response.body or b"")[: answers.MAX_ERROR]
        return answers.error_from(error.response.status_code, body)
    if isinstance(error, TimeoutError):
        return BoxTimeoutError("exec-session connection failed: the service didn't answer in time")
    return failures.connection_error(target, error)


def _ended(error: Exception) -> BoxConnectionError:
    return BoxConnectionError(f"the session's connection has ended: {error}")


class AsyncSocket:
    """An open WebSocket that carries JSON."""

    def __init__(self, connection: asyncio_client.ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, target: Target, path: str, timeout: float | None) -> "AsyncSocket":  # noqa: ASYNC109
        """Connect.

        Raises:
            BoxError: the service refuses, or can't be reached.
        """
        failures.check_running(target)
        url, options = target.websocket_url + path, _options(target, timeout)
        options["create_connection"] = _AsyncConnection
        try:
            if target.uds is not None:
                return cls(await asyncio_client.unix_connect(target.uds, url, **options))
            return cls(await asyncio_client.connect(url, **options))
        except Exception as error:
            raise _refusal(target, error) from None

    async def send(self, frame: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            BoxError: the connection has ended, or the message can't be written.
        """
        message = answers.encoded(frame).decode()
        try:
            await self._connection.send(message)
        except Exception as error:
            raise _ended(error) from None

    async def receive(self, timeout: float | None = None) -> dict[str, Any] | None:  # noqa: ASYNC109
        """The next message; None at the end of the connection.

        Raises:
            BoxTimeoutError: there was none within ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                return session_frames.read(await self._connection.recv())
        except TimeoutError:
            raise BoxTimeoutError("exec.session handshake timed out") from None
        except (ConnectionClosed, OSError, EOFError):
            return None

    async def aclose(self) -> None:
        """End the connection."""
        await self._connection.close()


class Socket:
    """An open WebSocket that carries JSON."""

    def __init__(self, connection: AbstractContextManager[Connection]) -> None:
        self._open = ExitStack()
        self._connection = self._open.enter_context(connection)

    @classmethod
    def open(cls, target: Target, path: str, timeout: float | None) -> "Socket":
        """Connect.

        Raises:
            BoxError: the service refuses, or can't be reached.
        """
        failures.check_running(target)
        url, options = target.websocket_url + path, _options(target, timeout)
        options["create_connection"] = _Connection
        try:
            if target.uds is not None:
                return cls(sync_client.unix_connect(target.uds, url, **options))
            return cls(sync_client.connect(url, **options))
        except Exception as error:
            raise _refusal(target, error) from None

    def send(self, frame: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            BoxError: the connection has ended, or the message can't be written.
        """
        message = answers.encoded(frame).decode()
        try:
            self._connection.send(message)
        except Exception as error:
            raise _ended(error) from None

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message; None at the end of the connection.

        Raises:
            BoxTimeoutError: there was none within ``timeout`` seconds.
        """
        try:
            return session_frames.read(self._connection.recv(timeout))
        except TimeoutError:
            raise BoxTimeoutError("exec.session handshake timed out") from None
        except (ConnectionClosed, OSError, EOFError):
            return None

    def close(self) -> None:
        """End the connection."""
        self._open.close()
