"""What the routes of the service have in common."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import HTTPConnection, Request

from box_policy.control.http.answers import issues
from box_policy.control.http.bodies import Bodies, Body
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.policy.quoting import quoted
from box_policy.service.box import ServedBox
from box_policy.service.boxes import Boxes
from box_policy.service.budget import Budget
from box_policy.service.errors import service_error
from box_policy.service.requests import RequestBody

MAX_KEPT: Final = 512 << 20
"""Bytes of answers that all clients together may have held for them."""
MAX_SPOOLED: Final = 8 << 30
"""Bytes of uploads that lie on this machine's disk at one time."""
MAX_WRITTEN_BODY: Final = 16 << 20
"""Bytes of a request to write a file: 12 MiB of content in base64. Larger ones are uploaded."""


@dataclass(frozen=True)
class Context:
    """The boxes, and how requests are read."""

    boxes: Boxes
    kept: Budget = field(default_factory=lambda: Budget(MAX_KEPT))
    """For what programs have written, and files hold, until it has been sent."""
    spooled: Budget = field(default_factory=lambda: Budget(MAX_SPOOLED))
    """For uploads until they are in their boxes."""
    bodies: Bodies = field(default_factory=lambda: Bodies(within=60, max_string=MAX_WRITTEN_BODY))

    def box(self, request: HTTPConnection) -> ServedBox:
        """The box that the path names, by id or name. Raises ApiError."""
        return self.boxes.get(request.path_params["box"])

    async def asked[Kind: RequestBody](self, request: Request, kind: type[Kind]) -> Kind:
        """What the body of a request asks for. Raises ApiError."""
        async with self.bodies.read(request) as body:
            return await body.work(kind.parse, body.value)


def parameters(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query's parameters. Raises ApiError for one that is unknown, or given twice."""
    found: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if key not in known:
            what = f"it knows {', '.join(sorted(known))}" if known else "it takes none"
            raise service_error("request_invalid", f"unknown parameter {quoted(key)} of the query: {what}")
        if key in found:
            raise service_error("request_invalid", f"{key} stands twice in the query")
        if "\0" in value:
            raise service_error("request_invalid", f"{key} holds a NUL character")
        found[key] = value
    return found


async def parse_policy(body: Body, value: object, *under: str) -> NetworkPolicy:
    """The policy in a body, or at the key ``under`` of one. Raises ApiError with every issue."""
    try:
        return await body.work(NetworkPolicy.parse, value)
    except PolicyError as error:
        found = issues(error.issues, under=under)
        more = f" (and {len(error.issues) - 1} more)" if len(error.issues) > 1 else ""
        raise service_error(
            "policy_invalid", f"the network policy is not acceptable: {error.issues[0]}{more}", issues=found
        ) from None
