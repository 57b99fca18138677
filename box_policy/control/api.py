"""The control API: policies, verdicts, records and numbers over HTTP."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from box_policy.audit.metrics import CONTENT_TYPE, Metrics
from box_policy.audit.records import MAX_DETAIL, Outcome, PolicyRecord, timestamp
from box_policy.audit.sinks import Sink
from box_policy.audit.stream import InvalidEventId, Reader, RecordStream
from box_policy.control.http.answers import (
    ApiError,
    issues,
    json_response,
    rendered_response,
)
from box_policy.control.http.bodies import BODY_TIMEOUT, Bodies, Body, parse_if_match
from box_policy.control.http.events import Events
from box_policy.control.http.explanations import explain
from box_policy.control.http.failures import HANDLERS, answered
from box_policy.control.http.json_text import render_json
from box_policy.control.http.openapi import document
from box_policy.control.http.pace import Pace
from box_policy.control.http.protocol import DISPLACED
from box_policy.control.http.queries import parse_query
from box_policy.control.store import InForce, PolicyStore, StaleGenerationError, UnknownBoxError
from box_policy.control.threads import in_thread
from box_policy.gate.resolution import Resolution
from box_policy.policy.model import NetworkPolicy, PolicyError

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 16
"""Streams of records that are open at once."""

_RENDERED_INLINE: Final = 1_000
"""Entries of a policy that the loop writes as JSON, in about a millisecond."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What goes on in a box now."""

    connections: int
    pending: int
    """Connections and requests without a verdict yet."""


class SourceStatus(Protocol):
    """How a file that policies come from is doing."""

    @property
    def path(self) -> str: ...
    @property
    def state(self) -> Literal["ok", "refused", "missing", "being_written"]: ...
    @property
    def box(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def since(self) -> float:
        """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What the API shows, and what it changes."""

    version: str
    store: PolicyStore
    audit: Sink
    stream: RecordStream
    metrics: Metrics
    resolve: Callable[[str], Awaitable[Resolution]]
    """Finds a canonical name's addresses, as the gate itself does."""
    activity: Callable[[str], Activity]
    """Of a box that the store knows."""
    records_lost: Callable[[], int] = lambda: 0
    """Records that could not be written, since the start."""
    ready: Callable[[], bool] = lambda: True
    """Is the gate serving?"""
    file_sources: Callable[[], Iterable[SourceStatus]] = lambda: ()


def make_app(
    backend: Backend,
    *,
    max_streams: int = MAX_STREAMS,
    body_timeout: float = BODY_TIMEOUT,
    keep_alive: float = 15.0,
) -> Starlette:
    """The API as an ASGI app. It asks nobody who they are: an Endpoint does. Times in seconds."""
    api = _Api(backend, max_streams, body_timeout, keep_alive)
    app = Starlette(
        routes=[
            Route("/v1/boxes", api.list_boxes),
            Route("/v1/boxes/{box}/network-policy", api.policy, methods=["GET", "PUT"]),
            Route("/v1/status", api.status),
            Route("/v1/explain", api.explain, methods=["POST"]),
            Route("/v1/decisions", api.decisions),
            Route("/healthz", api.health),
            Route("/readyz", api.readiness),
            Route("/metrics", api.metrics),
            Route("/openapi.json", api.openapi),
        ],
        exception_handlers={**HANDLERS, UnknownBoxError: _on_unknown_box},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host that the client sent
    return app


class _Api:
    """The routes."""

    def __init__(self, backend: Backend, max_streams: int, body_timeout: float, keep_alive: float) -> None:
        self._backend = backend
        self._store = backend.store
        self._max_streams = max_streams
        self._bodies = Bodies(body_timeout)
        self._keep_alive = keep_alive
        self._rendering = asyncio.Semaphore(1)
        self._streams: set[Events] = set()
        self._displaced = 0
        self._started = time.time()
        self._started_monotonic = time.monotonic()
        self._refusals = Pace(burst=10, per_second=1)
        metrics = backend.metrics
        metrics.gauge("boxes", "Boxes with a policy in force.", lambda: len(self._store))
        metrics.gauge("connections", "Connections that are open.", lambda: self._total().connections)
        metrics.gauge("pending", "Connections without a verdict yet.", lambda: self._total().pending)
        metrics.gauge("streams", "Streams of records that are open.", lambda: len(self._streams))
        metrics.counter("records_lost", "Records that could not be written.", backend.records_lost)
        metrics.counter(
            "control_connections_displaced",
            "Connections to this control endpoint that were ended, or refused, because there were too many.",
            lambda: self._displaced,
        )

    async def list_boxes(self, request: Request) -> Response:
        return json_response({"boxes": [_box_fields(box) for box in self._store]})

    async def policy(self, request: Request) -> Response:
        if request.method == "PUT":
            return await self._put_policy(request)
        in_force = self._store.get(request.path_params["box"])
        if _entries(in_force.policy) <= _RENDERED_INLINE:
            return json_response(in_force.policy.canonical(), headers=_entity_tag(in_force))
        async with self._rendering:
            body = await in_thread(_render, in_force.policy)
        return rendered_response(body, headers=_entity_tag(in_force))

    async def _put_policy(self, request: Request) -> Response:
        box = request.path_params["box"]
        self._store.get(box)  # before a body is read that nobody could use
        expected = parse_if_match(request.headers.getlist("if-match"))
        async with self._bodies.read(request) as body:
            policy = await self._parse(box, body)
            # First, since it may take a while, and after the change nobody should wait.
            rendered = await body.work(_render, policy)
            try:
                in_force = await self._store.put(box, policy, source="control", expected=expected)
            except StaleGenerationError as error:
                raise ApiError("generation_stale", str(error), generation=error.current) from None
        answer = f'{{"box":{json.dumps(box)},"generation":{in_force.generation},"policy":{rendered}}}'
        return rendered_response(answer, headers=_entity_tag(in_force))

    async def _parse(self, box: str, body: Body) -> NetworkPolicy:
        try:
            return await body.work(NetworkPolicy.parse, body.value)
        except PolicyError as error:
            self._record_refusal(box, error)
            raise ApiError(
                "policy_invalid", "the policy is not acceptable", issues=issues(error.issues)
            ) from None

    async def status(self, request: Request) -> Response:
        boxes = []
        for in_force in self._store:
            activity = self._backend.activity(in_force.box)
            now = {"connections": activity.connections, "pending": activity.pending}
            boxes.append(_box_fields(in_force) | now)
        sources = [
            {
                "path": source.path,
                "state": source.state,
                "box": source.box,
                "error": source.error,
                "since": timestamp(source.since),
            }
            for source in self._backend.file_sources()
        ]
        return json_response(
            {
                "version": self._backend.version,
                "started": timestamp(self._started),
                "uptime": round(time.monotonic() - self._started_monotonic, 3),
                "ready": self._backend.ready(),
                "boxes": boxes,
                "sources": sources,
                "records_lost": self._backend.records_lost(),
                "streams": len(self._streams),
            }
        )

    async def explain(self, request: Request) -> Response:
        async with self._bodies.read(request) as body:
            return json_response(await explain(body, self._store, self._backend.resolve))

    async def decisions(self, request: Request) -> Response:
        query = parse_query(request.scope["query_string"])
        # The header is the later one: a browser repeats the query each time that it connects again.
        last_event_id = request.headers.get("last-event-id") or query.last_event_id
        resumed: Reader | None = None
        if last_event_id is not None:
            try:
                resumed = self._backend.stream.resume(last_event_id)
            except InvalidEventId:
                raise ApiError("query_invalid", "the last event id is not one of a record") from None
        if len(self._streams) >= self._max_streams:
            raise ApiError(
                "too_many_streams",
                f"{self._max_streams} streams are open, which is the most there may be",
            )
        return Events(
            self._backend.stream, query, resumed, open_streams=self._streams, keep_alive=self._keep_alive
        )

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        if self._backend.ready():
            return json_response({"status": "ready"})
        return json_response({"status": "starting"}, 503)

    async def metrics(self, request: Request) -> Response:
        self._displaced = request.scope.get("state", {}).get(DISPLACED, 0)
        return Response(self._backend.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return json_response(document(self._backend.version))

    def _total(self) -> Activity:
        boxes = [self._backend.activity(in_force.box) for in_force in self._store]
        return Activity(sum(box.connections for box in boxes), sum(box.pending for box in boxes))

    def _record_refusal(self, box: str, error: PolicyError) -> None:
        if not self._refusals.allows():
            return
        detail = "; ".join(map(str, error.issues))
        if held := self._refusals.take_held():
            detail = f"({held} refusals before this one have no record) {detail}"
        try:
            generation = self._store.get(box).generation
            self._backend.audit(
                PolicyRecord(
                    box=box,
                    generation=generation,
                    outcome=Outcome.REFUSED,
                    source="control",
                    detail=detail[:MAX_DETAIL],
                )
            )
        except Exception:
            # Nothing has changed, and the client hears of it either way.
            log.exception("the refusal of a policy could not be recorded")


def _box_fields(in_force: InForce) -> dict[str, object]:
    return {
        "id": in_force.box,
        "generation": in_force.generation,
        "mode": in_force.policy.mode,
        "kind": in_force.policy.kind,
        "source": in_force.source,
        "since": timestamp(in_force.since),
    }


def _entries(policy: NetworkPolicy) -> int:
    lists = (policy.allowed_domains, policy.allowed_cidrs, policy.denied_cidrs)
    return sum(len(entries or ()) for entries in lists)


def _render(policy: NetworkPolicy) -> str:
    return render_json(policy.canonical())


def _entity_tag(in_force: InForce) -> dict[str, str]:
    return {"etag": f'"{in_force.generation}"'}


async def _on_unknown_box(request: Request, error: Exception) -> Response:
    return answered(request, ApiError("box_unknown", str(error)))
