"""One snapshot: what is known of it, and how that is written down."""

import json
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, TypedDict

from box_policy.policy.model import NetworkPolicy, PolicyError

log = logging.getLogger(__name__)

_IMAGE: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class About(TypedDict):
    """What is known of a snapshot before it is taken."""

    name: str
    box_id: str
    policy: NetworkPolicy
    """In force for the box when the snapshot is taken."""
    runtime: str | None
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of a snapshot."""

    id: str
    name: str
    box_id: str
    size_bytes: int
    created_at: int
    """Seconds since the epoch."""
    policy: NetworkPolicy
    """In force for the box when the snapshot was taken."""
    runtime: str | None
    size: str
    image: str | None = None
    """The id of the image in the container engine that it is; None: an archive."""

    def fields(self) -> dict[str, object]:
        """As the API tells it."""
        return {
            **({} if self.image is None else {"image": self.image}),
            "id": self.id,
            "name": self.name,
            "box_id": self.box_id,
            "size_bytes": self.size_bytes,
            "status": "ready",
            "created_at": self.created_at,
            "network_policy": self.policy.canonical(),
            "runtime": self.runtime,
            "size": self.size,
        }

    def description(self) -> bytes:
        """What :func:`found` reads."""
        return json.dumps(asdict(self) | {"policy": self.policy.canonical()}).encode()


class Descriptions(Protocol):
    """Where snapshots are described."""

    def descriptions(self) -> Iterable[tuple[str, bytes]]: ...
    def images(self) -> Iterable[tuple[str, bytes]]: ...
    def unwanted_images(self) -> Iterable[tuple[str, bytes]]: ...


def new_id() -> str:
    """The id of a snapshot to come."""
    return f"snap-{secrets.token_hex(8)}"


def found(storage: Descriptions) -> dict[str, Snapshot]:
    """Those that are described, the oldest first. OSError if that can't be read."""
    described = [
        *(_described(*one, is_image=False) for one in storage.descriptions()),
        *(_described(*one, is_image=True) for one in storage.images()),
    ]
    in_order = sorted(filter(None, described), key=lambda snapshot: snapshot.created_at)
    return {snapshot.id: snapshot for snapshot in in_order}


def unwanted_images(storage: Descriptions) -> list[Snapshot]:
    """Those that were deleted, and whose images may still be there."""
    return list(filter(None, (_described(*one, is_image=True) for one in storage.unwanted_images())))


def _described(snapshot_id: str, description: bytes, *, is_image: bool) -> Snapshot | None:
    try:
        content: dict[str, Any] = json.loads(description)
        policy = NetworkPolicy.parse(content.pop("policy"))
        snapshot = Snapshot(policy=policy, **content)
        if snapshot.id != snapshot_id:
            raise ValueError("it is that of another")
        if is_image != bool(snapshot.image and _IMAGE.fullmatch(snapshot.image)):
            # Not a name either: deleting the snapshot must not take an image away that is somebody else's.
            raise ValueError("an image has an id, and an archive has none")
    except (ValueError, TypeError, KeyError, AttributeError, PolicyError) as error:
        log.warning("what should describe %s does not, and is left alone: %s", snapshot_id, error)
        return None
    return snapshot
