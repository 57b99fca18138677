"""What the SDK raises: :class:`BoxError`, and what tells one failure from another."""

from collections.abc import Iterable
from typing import TypedDict


class BoxError(Exception):
    """Something about a box has failed. The message says what, and what to do where there is something."""

    def __init__(self, message: str, status_code: int | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        """The HTTP status of the service's answer; None if the failure is on this side."""
        self.code = code
        """The service's word for the failure, such as ``box_paused``; None if it gave none."""

    def __str__(self) -> str:
        return self.message


class PolicyIssueDict(TypedDict):
    """One thing that is wrong with a network policy."""

    loc: tuple[str | int, ...]
    """The way to the entry, in the author's own keys; empty for the policy as a whole."""
    msg: str
    input: object
    """What stands there; None where that can't be said."""


class PolicyValidationError(BoxError, ValueError):
    """A network policy that can't be accepted. Whatever was in force still is."""

    def __init__(
        self,
        message: str,
        status_code: int | None = None,
        *,
        code: str | None = None,
        errors: Iterable[PolicyIssueDict] = (),
    ) -> None:
        super().__init__(message, status_code, code=code)
        self.errors = list(errors)
        """Everything that is wrong with it."""


class BoxNotFoundError(BoxError):
    """There is no such box or snapshot, or it has been deleted."""


class BoxFileError(BoxError):
    """What was asked of a file in a box can't be done; ``code`` says why.

    ``file_unknown``, ``file_forbidden``, ``file_conflict`` (such as a directory where a file belongs),
    ``file_too_large``, ``not_text``, ``box_full`` (the box's size leaves no room for it).
    """


class BoxAuthError(BoxError):
    """The service doesn't accept the API key, or this user."""


class BoxTimeoutError(BoxError, TimeoutError):
    """The answer was not here in time. What was asked for may have happened all the same."""


class BoxConnectionError(BoxError):
    """The service can't be reached, or the connection to it broke."""


class BoxUnsupportedError(BoxError):
    """A part of the hosted product that this service doesn't have."""
