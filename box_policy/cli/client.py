"""A client of a gate's control endpoint.

To import httpx takes longer than most commands; only what speaks to a gate imports this.
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, ServerSentEvent

import box_policy
from box_policy.cli.connection import ShortEvents, Watch, WatchedStream, WrongOwner
from box_policy.cli.errors import FAILURE, USAGE
from box_policy.cli.shown import printable
from box_policy.control.http.address import ControlAddress, UnixAddress
from box_policy.policy.model import PolicyIssue

MAX_ANSWER: Final = 32 << 20
"""Bytes of an answer; more is no answer of a gate's."""
CONNECT_TIMEOUT: Final = 5.0
ANSWER_TIMEOUT: Final = 30.0
"""Seconds for a whole exchange, from the connection on. A policy of 100,000 entries is compiled within it."""
SILENCE: Final = 40.0
"""Seconds without a byte after which a stream is broken. The gate writes at least every 15."""
PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to reach the gate again; the last one repeats."""
STEADY: Final = 10.0
"""Seconds that a stream must have lasted for the pauses to start from the first."""
MAX_BACKLOG: Final = 10_000

BOX_ID: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""As in the gate, which isn't imported: mitmproxy comes with it."""

_MAX_ID: Final = 128
_MAX_ISSUES: Final = 100
_MEANT: Final = frozenset({"box_unknown", "policy_invalid", "query_invalid", "request_invalid"})
"""What the gate refuses because of what was typed, or is in a file."""


class RemoteError(Exception):
    """The gate can't be reached, or says no. One line an error: what is wrong, where, what to do."""

    def __init__(
        self, message: str, *, code: str = "", status: int = FAILURE, transient: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        """The gate's own word for it; empty if it isn't the gate who says so."""
        self.status = status
        """Exit status for a command that ends on it."""
        self.transient = transient
        """It may be otherwise in a moment."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream runs."""

    again: bool
    """After it was broken."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream has ended; it is being opened again."""

    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Records that were not shown."""

    records: int | None
    """None if nobody knows how many."""


@dataclass(frozen=True, slots=True)
class Told:
    """One record."""

    record: Mapping[str, Any]
    data: str
    """As it came."""


type News = Opened | Broken | Lost | Told


class Client:
    """Speaks to the gate at an address. Everything raises RemoteError."""

    def __init__(self, address: ControlAddress, token: str | None = None) -> None:
        self._address = address
        self._token = token
        headers = {"User-Agent": f"box-policy/{box_policy.__version__}", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        path = str(address.path) if isinstance(address, UnixAddress) else None
        # A kept connection would be one to a gate that may have been restarted.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=path, trust_env=False, limits=limits),
            base_url=f"http://{address if path is None else 'localhost'}",
            headers=headers,
            timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> tuple[dict[str, Any], str]:
        """The JSON object at a path, and its ETag (without quotes; empty if there is none)."""
        with self._exchange("GET", path) as response:
            return self._object(response), response.headers.get("etag", "").strip('"')

    def boxes(self) -> list[dict[str, Any]]:
        """The gate's boxes."""
        boxes = self.rows(self.get("/v1/boxes")[0], "boxes")
        # An id becomes part of a path, and of what is shown.
        if not all(isinstance(box.get("id"), str) and re.fullmatch(BOX_ID, box["id"]) for box in boxes):
            self._stranger()
        return boxes

    def policy(self, box: str) -> tuple[dict[str, Any], int]:
        """The policy in force for a box, and its generation."""
        policy, tag = self.get(policy_path(box))
        # A policy is shown as it came. One of a later version may hold what this one doesn't know.
        if not isinstance(policy.get("mode"), str) or not re.fullmatch("[0-9]{1,18}", tag):
            self._stranger()
        return policy, int(tag)

    def put_policy(self, box: str, policy: object, *, if_match: int | None = None) -> int:
        """Put a policy in force for a box. Its generation."""
        headers = {"Content-Type": "application/json"}
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        body = json.dumps(policy).encode()
        with self._exchange("PUT", policy_path(box), headers=headers, content=body) as response:
            generation = self._object(response).get("generation")
        if type(generation) is not int:  # true is an int, too
            self._stranger()
        return generation

    def rows(self, answer: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        """A list of objects in an answer."""
        rows = answer.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self._stranger()
        return rows

    def kept(self, filters: Sequence[tuple[str, str]], *, backlog: int) -> Iterator[News]:
        """The last records that the gate keeps, of those that pass the filters."""
        params = [*filters, ("backlog", str(backlog)), ("follow", "false")]
        for _, news in self._stream(params, ""):
            if news is not None:
                yield news

    def follow(self, filters: Sequence[tuple[str, str]], *, backlog: int = 0) -> Iterator[News]:
        """The last records, then each new one, without end.

        Raises RemoteError if the stream can't be opened. One that breaks later is opened again, behind the
        last record, as often as it takes, unless the gate says no.
        """
        last_id = ""
        if not backlog:
            # The id of the latest: to go on behind it, also if the stream breaks before the first record.
            for event_id, _ in self._stream([*filters, ("backlog", "1"), ("follow", "false")], ""):
                last_id = event_id or last_id
        opened = broken = False
        attempt = 0
        while True:
            since = time.monotonic()
            why = "the gate has ended the stream"
            # If there is no id by now, whatever passes the filters is new.
            asked = MAX_BACKLOG if opened or not backlog else backlog
            params = [*filters, *([] if last_id else [("backlog", str(asked))])]
            try:
                for event_id, news in self._stream(params, last_id):
                    last_id = event_id or last_id
                    if isinstance(news, Opened):
                        yield Opened(again=opened)
                        opened, broken = True, False
                    elif news is not None:
                        yield news
            except RemoteError as error:
                if not (opened and error.transient):
                    raise
                why = str(error)
            if not broken:
                yield Broken(why)
                broken = True
            if time.monotonic() - since >= STEADY:
                attempt = 0
            time.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1

    def _stream(
        self, params: Sequence[tuple[str, str]], last_id: str
    ) -> Iterator[tuple[str, Opened | Lost | Told | None]]:
        """What a stream says, each with the id to go on behind."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        timeout = httpx.Timeout(SILENCE, connect=CONNECT_TIMEOUT)
        with self._exchange(
            "GET", "/v1/decisions", lasts=True, params=params, headers=headers, timeout=timeout
        ) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                self._stranger()
            response.stream = ShortEvents(response.stream)
            response.encoding = "utf-8"  # as of every such stream, whatever its head says
            yield "", Opened(again=False)
            for event in EventSource(response).iter_sse():
                # It becomes a header.
                fit = event.id.isascii() and event.id.isprintable() and len(event.id) <= _MAX_ID
                yield event.id if fit else "", self._news(event)

    def _news(self, event: ServerSentEvent) -> Lost | Told | None:
        if not event.data:
            return None
        fields = self._parse(event.data)
        if event.event != "lost":
            return Told(fields, event.data)
        count = fields.get("records")
        return Lost(count if type(count) is int else None)

    @contextmanager
    def _exchange(
        self, method: str, path: str, *, lasts: bool = False, **asked: Any
    ) -> Iterator[httpx.Response]:
        """A response that isn't read yet; one that the gate refuses is an error. Of one that ``lasts``, the
        head alone has a time by which it must be there."""
        watch = Watch(SILENCE if lasts else ANSWER_TIMEOUT)
        try:
            with watch, self._http.stream(method, path, extensions={"trace": watch}, **asked) as response:
                response.stream = WatchedStream(response.stream, watch)
                if response.headers.get("content-encoding", "identity") != "identity":
                    self._stranger()  # nobody asked for it, and it may grow without bound
                if not response.is_success:
                    self._refused(response)
                if lasts:
                    watch.endure()
                yield response
        except WrongOwner as error:
            raise RemoteError(
                f"{self._address} is served by user {error.user}, who is neither you nor root; nothing was "
                "sent to it. If that is the gate's own user, run this as that user"
            ) from None
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except httpx.TransportError as error:
            if watch.late or isinstance(error, httpx.TimeoutException):
                message = f"the gate at {self._address} doesn't answer"
            else:
                message = (
                    f"the connection to {self._address} broke: {printable(error) or type(error).__name__}"
                )
            if method == "PUT" and not isinstance(error, httpx.ConnectTimeout):
                message += "; the policy may be in force or not: see box-policy policy get"
            raise RemoteError(message, transient=True) from None

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        return self._parse(self._read(response))

    def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MAX_ANSWER:
                raise RemoteError(f"{self._address} answers without end; is that a box-policy gate?")
        return bytes(body)

    def _parse(self, document: str | bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(document, parse_constant=_no_number)
        except (ValueError, RecursionError):
            self._stranger()
        if not isinstance(parsed, dict):
            self._stranger()
        return parsed

    def _stranger(self, status: int | None = None) -> NoReturn:
        said = f"HTTP {status}" if status is not None else "otherwise than a gate does"
        raise RemoteError(
            f"what listens at {self._address} is no box-policy gate (it answers {said}); "
            "name the gate with --control"
        )

    def _refused(self, response: httpx.Response) -> NoReturn:
        status = response.status_code
        try:
            error = self._object(response)["error"]
            code, message = str(error["code"]), str(error["message"])
        except (RemoteError, KeyError, TypeError):
            self._stranger(status)
        if status == 401 and self._token is None:
            message = f"{self._address} wants a token: --token-file FILE, or BOX_POLICY_CONTROL_TOKEN"
        elif status == 401:
            message = f"{self._address} refuses this token"
        lines = [printable(message), *(_issue(issue) for issue in _issues(error))]
        raise RemoteError(
            "\n".join(lines),
            code=code,
            status=USAGE if code in _MEANT else FAILURE,
            transient=status >= 500 or status in (408, 429),
        )

    def _unreachable(self, error: httpx.ConnectError) -> RemoteError:
        number = _os_error(error)
        if number in (errno.EACCES, errno.EPERM):
            message = f"{self._address}: permission denied; run this as the gate's own user"
        elif number in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK):
            at = self._address
            message = (
                f"no gate listens at {at}: start one (box-policy serve, box-policy run --control {at}, or "
                f"mitmdump --set box_policy_control={at}), or name another with --control"
            )
        else:
            message = f"{self._address}: {os.strerror(number) if number else printable(error)}"
        return RemoteError(message, transient=True)


def policy_path(box: str) -> str:
    """Where a box's policy is."""
    return f"/v1/boxes/{quote(box, safe='')}/network-policy"


def _issues(error: Mapping[str, Any]) -> list[Any]:
    issues = error.get("issues")
    return issues[:_MAX_ISSUES] if isinstance(issues, list) else []


def _issue(issue: object) -> str:
    """An issue as ``check`` writes it: the key, the index, and what is wrong."""
    if not isinstance(issue, dict) or not isinstance(issue.get("location"), list):
        return printable(issue)
    way = tuple(step for step in issue["location"] if isinstance(step, str | int))
    return printable(PolicyIssue(way, str(issue.get("message"))))


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _os_error(error: BaseException | None) -> int | None:
    """The number of the system's error behind a chain of others."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None
