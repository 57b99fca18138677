"""The parts of the hosted product that a service of one's own doesn't have."""

from typing import NoReturn

from box_policy.sdk.errors import BoxUnsupportedError

REASONS = {
    "agent": "agents are not run for you; run one in the box with box.exec",
    "browser": "there are no hosted browsers; run one in the box with box.exec",
    "git": "there is no git integration; run git in the box with box.exec",
    "schedule": "nothing is run on a schedule; call box.exec from a scheduler of yours",
    "skills": "skills belong to hosted agents",
}
"""Each namespace that is not ours, and what to do instead."""

NOT_SENT = "a box can't be sent to another process: send its id, and use Box.get(id, base_url=...) there"
"""Why a box is neither pickled nor copied: its connections belong to this process."""


class UnsupportedNamespace:
    """A namespace whose every use raises BoxUnsupportedError."""

    def __init__(self, path: str, reason: str) -> None:
        self._path = path
        self._reason = reason

    def __getattr__(self, name: str) -> "UnsupportedNamespace":
        if name.startswith("_"):
            # Asked for by pickle, copy, inspect and their like: they expect an AttributeError.
            raise AttributeError(name)
        return UnsupportedNamespace(f"{self._path}.{name}", self._reason)

    def __call__(self, *_args: object, **_options: object) -> NoReturn:
        raise unsupported(f"{self._path}()", self._reason)

    def __repr__(self) -> str:
        return f"<{self._path}: not supported>"


def namespace(name: str) -> UnsupportedNamespace:
    """The namespace ``box.<name>``."""
    return UnsupportedNamespace(f"box.{name}", REASONS[name])


def unsupported(what: str, reason: str) -> BoxUnsupportedError:
    """The error for one thing that is not supported."""
    return BoxUnsupportedError(f"{what} is not supported: {reason}", code="not_supported")
