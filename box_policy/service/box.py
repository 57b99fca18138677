"""One box of the service: what is known of it, beside its policy."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from box_policy.control.http.answers import ApiError
from box_policy.control.store import InForce
from box_policy.sandbox.launcher import Box
from box_policy.service.errors import service_error

HOME: Final = "/workspace/home"
"""Where a box's programs start, and their HOME."""

type Status = Literal["idle", "running", "paused"]


@dataclass(slots=True, kw_only=True, eq=False)
class ServedBox:
    """A box that runs. Times in seconds since the epoch."""

    id: str
    name: str | None
    labels: list[str]
    size: str
    runtime: str | None
    keep_alive: bool
    ephemeral: bool
    environment: dict[str, str]
    """What its programs get, unless a request says otherwise."""
    snapshot_id: str | None
    sandbox: Box
    image: str | None = None
    """The container image that it was made from, where boxes are made from images."""
    created_at: float = field(default_factory=time.time)
    updated_at: float = field(default_factory=time.time)
    last_activity_at: float = field(default_factory=time.time)
    expires_at: float | None = None
    paused: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever pauses or resumes it."""
    running: int = 0
    """Programs that somebody waits for."""

    @property
    def status(self) -> Status:
        """In the hosted service's words."""
        if self.paused:
            return "paused"
        return "running" if self.running else "idle"

    def check_awake(self) -> None:
        """Raises ApiError if it is paused."""
        if self.paused:
            raise service_error("box_paused", f"box {self.id} is paused: resume it first")

    @contextmanager
    def used(self) -> Iterator[None]:
        """Files are read or written. Raises ApiError if the box is paused."""
        self.check_awake()
        self.last_activity_at = time.time()
        yield
        self.last_activity_at = time.time()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A program runs. Raises ApiError if the box is paused."""
        with self.used():
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1

    def changed(self) -> None:
        """Something about it has."""
        self.updated_at = time.time()

    def resolve(self, path: str | None) -> str:
        """The absolute path of one that is given as absolute, or relative to home."""
        if not path:
            return HOME
        return path if path.startswith("/") else f"{HOME}/{path}"

    def fields(self, in_force: InForce) -> dict[str, object]:
        """As the API tells it, with the policy that is in force."""
        fields: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "size": self.size,
            "runtime": self.runtime,
            "keep_alive": self.keep_alive,
            "ephemeral": self.ephemeral,
            "labels": list(self.labels),
            "created_at": int(self.created_at),
            "updated_at": int(self.updated_at),
            "last_activity_at": int(self.last_activity_at),
            "network_policy": in_force.policy.canonical(),
            "network_policy_generation": in_force.generation,
            "limits": dict(self.sandbox.limits),
            "snapshot_id": self.snapshot_id,
        }
        if self.image is not None:
            fields["image"] = self.image
        if self.expires_at is not None:
            fields["expires_at"] = int(self.expires_at)
        return fields


def box_unknown(key: str, why: str | None) -> ApiError:
    """There is no such box; ``why`` says what became of it."""
    return service_error("box_unknown", f"there is no box {key!r}" + (f": {why}" if why else ""))
