"""The service's API: the hosted product's ``/v2/box`` as an ASGI app."""

import asyncio
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from box_policy.control.http.answers import ApiError, internal_error, json_response
from box_policy.control.http.bodies import Body
from box_policy.control.http.failures import HANDLERS, answered
from box_policy.policy.model import NetworkPolicy
from box_policy.sandbox.launcher import BoxPausedError, SandboxError
from box_policy.service.box import ServedBox
from box_policy.service.context import Context, parameters, parse_policy
from box_policy.service.errors import file_error, service_error
from box_policy.service.file_routes import file_routes
from box_policy.service.program_routes import program_routes
from box_policy.service.programs.departure import ClientGoneError, while_connected
from box_policy.service.programs.slots import TooManyProgramsError
from box_policy.service.requests import (
    MAX_LABELS,
    AddLabel,
    CreateBox,
    Ids,
    TakeSnapshot,
    Variable,
    Variables,
    check_variable,
)

_NOT_OURS: Final = {
    "browser": "browsers",
    "config": "this setting",
    "git": "git operations (run git by exec)",
    "logs": "logs of runs (decisions about traffic are at /v1/decisions)",
    "preview": "public URLs",
    "run": "agents",
    "runs": "a list of runs",
    "schedules": "schedules",
    "startup": "commands at the start",
}
"""What the hosted service has at ``/v2/box/{box}/...``, and this one has not."""
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def make_service_app(context: Context) -> Starlette:
    """The API as an ASGI app. It asks nobody who they are: an Endpoint does."""
    api = _Api(context)
    app = Starlette(
        routes=_routes(context, api),
        exception_handlers={
            **HANDLERS,
            OSError: _on_file_error,
            SandboxError: api.on_sandbox_error,
            TooManyProgramsError: _on_too_many_programs,
            ClientGoneError: _on_nobody,
        },
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host that the client sent
    return app


def _routes(context: Context, api: "_Api") -> list[BaseRoute]:
    at = "/v2/box"
    box = at + "/{box}"
    return [
        Route(at, api.boxes, methods=["GET", "POST", "DELETE"]),
        Route(f"{at}/from-snapshot", api.from_snapshot, methods=["POST"]),
        Route(f"{at}/snapshots", api.all_snapshots, methods=["GET", "DELETE"]),
        Route(f"{at}/settings/env", api.variables, methods=["GET", "PUT"]),
        Route(f"{at}/settings/env/{{name}}", api.variable, methods=["PUT", "DELETE"]),
        Route(box, api.box, methods=["GET", "DELETE"]),
        Route(f"{box}/status", api.status),
        Route(f"{box}/pause", api.pause, methods=["POST"]),
        Route(f"{box}/resume", api.resume, methods=["POST"]),
        Route(f"{box}/config/network-policy", api.network_policy, methods=["GET", "PUT"]),
        Route(f"{box}/config/labels", api.add_label, methods=["POST"]),
        Route(f"{box}/config/labels/{{label}}", api.remove_label, methods=["DELETE"]),
        Route(f"{box}/snapshots", api.snapshots, methods=["GET", "POST"]),
        Route(f"{box}/snapshots/{{snapshot}}", api.snapshot, methods=["DELETE"]),
        *program_routes(context, box),
        *file_routes(context, box),
        *(Route(f"{box}/{word}", _not_ours, methods=_METHODS) for word in _NOT_OURS),
        *(Route(f"{box}/{word}/{{rest:path}}", _not_ours, methods=_METHODS) for word in _NOT_OURS),
    ]


class _Api:
    """The routes of boxes, their policies and snapshots."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._boxes = context.boxes
        self._bodies = context.bodies

    async def boxes(self, request: Request) -> Response:
        match request.method:
            case "POST":
                return await self._create(request, from_snapshot=False)
            case "DELETE":
                return await self._delete_boxes(request)
        label = parameters(request, {"label"}).get("label")
        return json_response([self._fields(box) for box in self._boxes.all(label or None)])

    async def from_snapshot(self, request: Request) -> Response:
        return await self._create(request, from_snapshot=True)

    async def box(self, request: Request) -> Response:
        box = self._context.box(request)
        if request.method == "DELETE":
            await self._boxes.delete(box)
            return json_response({})
        return json_response(self._fields(box))

    async def status(self, request: Request) -> Response:
        return _status(self._context.box(request))

    async def pause(self, request: Request) -> Response:
        box = self._context.box(request)
        if box.keep_alive:
            raise service_error("keep_alive", "Keep-alive boxes cannot be paused")
        await self._boxes.pause(box)
        return _status(box)

    async def resume(self, request: Request) -> Response:
        box = self._context.box(request)
        await self._boxes.resume(box)
        return _status(box)

    async def network_policy(self, request: Request) -> Response:
        box = self._context.box(request)
        if request.method == "PUT":
            async with self._bodies.read(request) as body:
                policy = await parse_policy(body, body.value)
                in_force = await self._boxes.put_policy(box, policy)
        else:
            in_force = self._boxes.in_force(box)
        return json_response(
            {
                "network_policy": in_force.policy.canonical(),
                "network_policy_generation": in_force.generation,
            }
        )

    async def add_label(self, request: Request) -> Response:
        box = self._context.box(request)
        label = (await self._context.asked(request, AddLabel)).label
        if label not in box.labels:
            if len(box.labels) >= MAX_LABELS:
                raise service_error("request_invalid", f"a box has at most {MAX_LABELS} labels")
            box.labels.append(label)
            box.changed()
        return json_response({"labels": box.labels})

    async def remove_label(self, request: Request) -> Response:
        box = self._context.box(request)
        label = request.path_params["label"]
        if label in box.labels:
            box.labels.remove(label)
            box.changed()
        return json_response({"labels": box.labels})

    async def snapshots(self, request: Request) -> Response:
        snapshots = self._boxes.snapshots
        box = self._context.box(request)
        if request.method == "GET":
            return json_response({"snapshots": [one.fields() for one in snapshots.of_box(box.id)]})
        name = (await self._context.asked(request, TakeSnapshot)).name
        with box.used():
            taken = await while_connected(request.receive, self._boxes.take_snapshot(box, name))
        return json_response(taken.fields(), 201)

    async def snapshot(self, request: Request) -> Response:
        # Snapshots outlive their boxes, so that the box may be gone.
        self._boxes.snapshots.delete(request.path_params["snapshot"])
        await self._boxes.snapshots.sweep()
        return json_response({})

    async def all_snapshots(self, request: Request) -> Response:
        snapshots = self._boxes.snapshots
        if request.method == "GET":
            return json_response({"snapshots": [snapshots.get(one).fields() for one in snapshots.ids()]})
        wanted = parameters(request, {"all"}).get("all")
        if wanted not in (None, "true"):
            raise service_error("request_invalid", "all is true, or left out")
        ids = snapshots.ids() if wanted == "true" else (await self._context.asked(request, Ids)).distinct
        for one in ids:
            snapshots.check_deletable(one)  # all or none
        for one in ids:
            snapshots.delete(one)
        await snapshots.sweep()
        return json_response({"deleted": len(ids), "ids": ids})

    async def variables(self, request: Request) -> Response:
        if request.method == "PUT":
            self._boxes.environment = dict((await self._context.asked(request, Variables)).env_vars)
        return json_response({"env_vars": self._boxes.environment})

    async def variable(self, request: Request) -> Response:
        name = check_variable(request.path_params["name"])
        if request.method == "DELETE":
            self._boxes.environment.pop(name, None)
            return json_response({})
        value = (await self._context.asked(request, Variable)).value
        self._boxes.environment = dict(
            Variables.parse({"env_vars": self._boxes.environment | {name: value}}).env_vars
        )
        return json_response({})

    async def on_sandbox_error(self, request: Request, error: Exception) -> Response:
        """What is said of a box that could not do what was asked of it."""
        if isinstance(error, BoxPausedError):
            return answered(request, service_error("box_paused", str(error)))
        if "box" in request.path_params:
            try:
                self._context.box(request)
            except ApiError as gone:
                return answered(request, gone)
        return answered(request, service_error("box_failed", str(error)))

    async def _create(self, request: Request, *, from_snapshot: bool) -> Response:
        async with self._bodies.read(request) as body:
            asked = CreateBox.parse(body.value)
            if from_snapshot and asked.snapshot_id is None:
                raise service_error("request_invalid", "snapshot_id: missing")
            if not from_snapshot and asked.snapshot_id is not None:
                raise service_error("request_invalid", "snapshot_id: only at /v2/box/from-snapshot")
            policy = await _policy_of(body, asked)
        snapshot = self._boxes.snapshots.get(asked.snapshot_id) if asked.snapshot_id is not None else None
        box = await while_connected(request.receive, self._boxes.create(asked, policy, snapshot))
        if await request.is_disconnected():
            await self._boxes.delete(box)  # nobody would know of it
        return json_response(self._fields(box), 201)

    async def _delete_boxes(self, request: Request) -> Response:
        ids = (await self._context.asked(request, Ids)).distinct
        boxes = [self._boxes.get(one) for one in ids]  # all or none
        await asyncio.gather(*(self._boxes.delete(box) for box in boxes))
        return json_response({"deleted": len(boxes), "ids": [box.id for box in boxes]})

    def _fields(self, box: ServedBox) -> dict[str, object]:
        return box.fields(self._boxes.in_force(box))


async def _policy_of(body: Body, asked: CreateBox) -> NetworkPolicy | None:
    if asked.network_policy is None:
        return None
    return await parse_policy(body, asked.network_policy, "network_policy")


def _status(box: ServedBox) -> Response:
    return json_response({"status": box.status})


async def _not_ours(request: Request) -> Response:
    word = request.url.path.split("/")[4]
    raise service_error("not_supported", f"this service does not have {_NOT_OURS[word]}")


async def _on_file_error(request: Request, error: Exception) -> Response:
    return answered(request, file_error(error) if isinstance(error, OSError) else internal_error())


async def _on_too_many_programs(request: Request, error: Exception) -> Response:
    return answered(request, service_error("too_many_programs", str(error)))


async def _on_nobody(request: Request, error: Exception) -> Response:
    return Response()  # which nobody reads
