"""Network policies: what a caller writes, what the service says is in force, and whether they agree."""

from collections.abc import Mapping
from typing import Any, cast

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.policy.model import PolicyError
from box_policy.sdk.errors import BoxError, PolicyIssueDict, PolicyValidationError
from box_policy.sdk.types import NetworkPolicy

_MOST_SHOWN = 2_000
"""Characters of a policy that a message repeats."""


def requested(policy: object) -> PolicyModel:
    """The policy that a caller asks for.

    Raises:
        PolicyValidationError: with everything that is wrong with it.
    """
    try:
        return PolicyModel.parse(policy)
    except PolicyError as error:
        errors = [
            PolicyIssueDict(loc=issue.location, msg=issue.message, input=_at(policy, issue.location))
            for issue in error.issues
        ]
        raise PolicyValidationError(
            f"the network policy can't be accepted:\n{error}", errors=errors
        ) from None


def in_force(answer: Mapping[str, Any]) -> PolicyModel:
    """The policy that the service says is in force, from its ``network_policy`` in an answer.

    Raises:
        BoxError: it doesn't say, or what it says is no policy.
    """
    said = answer.get("network_policy")
    if said is None:
        raise BoxError("the service doesn't say which network policy is in force")
    try:
        return PolicyModel.parse(said)
    except PolicyError as error:
        raise BoxError(f"the service says that a policy is in force which is none:\n{error}") from None


def check_agreement(wanted: PolicyModel, found: PolicyModel) -> None:
    """Accept that ``found`` is in force where ``wanted`` was asked for.

    Raises:
        BoxError: they mean different things. The order of entries means nothing.
    """
    if _meaning(wanted) != _meaning(found):
        raise BoxError(
            f"the service has put another network policy in force: {described(found)}, "
            f"where this was asked for: {described(wanted)}"
        )


def shown(policy: PolicyModel) -> NetworkPolicy:
    """A fresh copy in canonical form: ``mode``, and the lists that are set."""
    return cast(NetworkPolicy, policy.canonical())


class AsyncPolicyView:
    """What the property ``network_policy`` shows: a property can't await, so what the service last said."""

    last_said: PolicyModel

    def shown(self) -> NetworkPolicy:
        """A fresh copy of it."""
        return shown(self.last_said)


class PolicyView:
    """What the property ``network_policy`` shows: what the service says at that moment."""

    last_said: PolicyModel

    def shown(self) -> NetworkPolicy:
        """Ask, and show a fresh copy."""
        return self.refresh()

    def refresh(self) -> NetworkPolicy:
        """Ask the service."""
        raise NotImplementedError


def described(policy: PolicyModel) -> str:
    """The policy in a message."""
    text = repr(policy.canonical())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _meaning(policy: PolicyModel) -> tuple[object, ...]:
    lists = (policy.allowed_domains, policy.allowed_cidrs, policy.denied_cidrs)
    return policy.mode, *(None if entries is None else frozenset(entries) for entries in lists)


def _at(value: object, location: tuple[str | int, ...]) -> object:
    for step in location:
        try:
            value = value[step]  # type: ignore[index]
        except (LookupError, TypeError):
            return None
    return value
