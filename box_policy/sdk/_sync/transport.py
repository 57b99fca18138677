# Written by scripts/make_sync from _async/transport.py: change that one.
"""Requests to the service, and its answers."""

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import IO, Any, Final

import httpx

from box_policy.sdk import answers
from box_policy.sdk.clients import Clients
from box_policy.sdk.connection import target
from box_policy.sdk.errors import BoxError, BoxNotFoundError
from box_policy.sdk.failures import check_running, failures, timed_out

log = logging.getLogger("box_policy.sdk")

_KEPT_ALIVE: Final = 1.0
"""Seconds for which an idle connection is used again. A service keeps it longer: neither closes what the
other is just about to use."""
_JSON: Final = {"Content-Type": "application/json"}


class Transport:
    """The connections to one service. Any thread, event loop or forked child may use it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """
        Args:
            options: checked keyword arguments: ``base_url``, ``api_key``, ``timeout``, ``debug``.

        Raises:
            BoxError: there is no such service.
        """
        self.timeout_ms: float | None = options["timeout"]
        self.target = target(options)
        self._debug = bool(options.get("debug"))
        self._clients = Clients(self._client)
        self.is_closed = False
        """Whether requests are refused, since :meth:`aclose` was called."""
        self.is_deleted = False
        """Whether the one box that this leads to has been deleted from here."""

    @property
    def timeout_seconds(self) -> float | None:
        """Seconds that the service has for an answer."""
        return None if self.timeout_ms is None else self.timeout_ms / 1000

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        at_least_ms: float = 0,
    ) -> Any:
        """The value that the service answers with.

        Raises:
            BoxError: it answers with an error, with no JSON, not in time, or not at all.
        """
        content = None if body is None else answers.encoded(body)
        headers = {} if body is None else _JSON
        with closing(
            self._answer(method, path, at_least_ms, headers=headers, content=content, params=query)
        ) as pieces:
            body = bytearray()
            for piece in pieces:
                body += piece
        return answers.decoded(bytes(body))

    def upload(self, path: str, destinations: list[str], files: list[tuple[str, IO[bytes]]]) -> None:
        """Send files, each with its name, as a form.

        Raises:
            BoxError: as for :meth:`request`.
        """
        parts = [("files", file) for file in files]
        with closing(
            self._answer("POST", path, 0, headers={}, data={"paths": destinations}, files=parts)
        ) as pieces:
            for _ in pieces:
                pass

    def open(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        accept: str = "*/*",
        at_least_ms: float = 0,
    ) -> httpx.Response:
        """An answer that is to be read piece by piece, and closed by the caller.

        Raises:
            BoxError: as for :meth:`request`.
        """
        content = None if body is None else answers.encoded(body)
        headers = {"Accept": accept} | ({} if body is None else _JSON)
        return self._open(
            method, path, self._limit(at_least_ms), headers=headers, content=content, params=query
        )

    def pieces(self, response: httpx.Response) -> Generator[bytes, None]:
        """What comes of an open answer, as it comes."""
        with failures(self.target, self.timeout_ms):
            yield from response.iter_bytes()

    def check_there(self) -> None:
        """Accept a box that has not been deleted from here.

        Raises:
            BoxNotFoundError: it has.
        """
        if self.is_deleted:
            raise BoxNotFoundError("this box was deleted")

    def check_open(self) -> None:
        """Accept that something is asked of the service.

        Raises:
            BoxNotFoundError: the box has been deleted from here.
            BoxError: the connections were closed.
        """
        self.check_there()
        if self.is_closed:
            raise BoxError("this box object is closed; get the box again with Box.get()")

    def close(self) -> None:
        """Close all connections. Requests are refused from now on."""
        self.is_closed = True
        with failures(self.target, self.timeout_ms):
            self._clients.close()

    def _client(self) -> httpx.Client:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_ALIVE)
        # Reading the certificates of this machine takes longer than most requests do.
        verify = self.target.url.startswith("https:")
        if self.target.uds is None:
            return httpx.Client(verify=verify, trust_env=not self.target.is_local, limits=limits)
        transport = httpx.HTTPTransport(uds=self.target.uds, verify=verify, trust_env=False, limits=limits)
        return httpx.Client(transport=transport, trust_env=False)

    def _limit(self, at_least_ms: float) -> float | None:
        return None if self.timeout_ms is None else max(self.timeout_ms, at_least_ms)

    def _open(
        self, method: str, path: str, limit_ms: float | None, *, headers: dict[str, str], **form: Any
    ) -> httpx.Response:
        self.check_open()
        check_running(self.target)
        if self._debug:
            log.debug("%s %s", method, path)
        with failures(self.target, limit_ms):
            client = self._clients.get()
            request = client.build_request(
                method,
                self.target.url + path,
                # Nothing is to be unpacked here: what is small on the way might be large afterwards.
                headers={"Accept-Encoding": "identity"} | headers | self.target.headers,
                timeout=None if limit_ms is None else limit_ms / 1000,
                **form,
            )
            response = client.send(request, stream=True, follow_redirects=False)
            if self.target.service is not None:
                self.target.service.has_answered = True
            try:
                if not response.is_success:
                    raise answers.error_from(response.status_code, self._error_body(response))
            except BaseException:
                response.close()
                raise
        return response

    def _answer(
        self, method: str, path: str, at_least_ms: float, *, headers: dict[str, str], **form: Any
    ) -> Generator[bytes, None]:
        """A whole answer, bounded in size and time."""
        limit = self._limit(at_least_ms)
        end = None if limit is None else time.monotonic() + limit / 1000
        response = self._open(method, path, limit, headers=headers, **form)
        size = 0
        try:
            with failures(self.target, limit):
                for piece in response.iter_bytes():
                    size += len(piece)
                    if size > answers.MAX_BODY:
                        raise BoxError(f"the service's answer is larger than {answers.MAX_BODY} bytes")
                    # httpx bounds each wait; an answer that dribbles in would have no end.
                    if end is not None and time.monotonic() > end:
                        raise timed_out(limit)
                    yield piece
        finally:
            response.close()

    def _error_body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > answers.MAX_ERROR:
                break
        return bytes(body)
