# Written by scripts/make_sync from _async/policy.py: change that one.
"""A box's network policy: asked for, changed, and changed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import answers, policies
from box_policy.sdk._sync.transport import Transport
from box_policy.sdk.errors import BoxError, BoxNotFoundError
from box_policy.sdk.policies import PolicyView
from box_policy.sdk.types import NetworkPolicy, NetworkPolicyInput


class PolicyControl(PolicyView):
    """The policy of one box. What is believed of it is only ever what the service has said."""

    def __init__(self, transport: Transport, at: str, last_said: PolicyModel) -> None:
        self._transport = transport
        self._path = f"{at}/config/network-policy"
        self.last_said = last_said

    def refresh(self) -> NetworkPolicy:
        """What is in force now.

        Raises:
            BoxError: the service doesn't say.
        """
        self.last_said = policies.in_force(answers.as_object(self._transport.request("GET", self._path)))
        return policies.shown(self.last_said)

    def update(self, policy: NetworkPolicyInput) -> NetworkPolicy:
        """Put another one in force.

        Returns:
            What is in force now.

        Raises:
            PolicyValidationError: the policy can't be accepted; the one before is still in force.
            BoxError: the change is refused, or the service doesn't say that it has been made.
        """
        return self._put(policies.requested(policy))

    @contextmanager
    def temporary(self, policy: NetworkPolicyInput) -> Iterator[NetworkPolicy]:
        """Put another one in force for a while, then the one that was in force before."""
        wanted = policies.requested(policy)
        self.refresh()
        before = self.last_said
        try:
            yield self._put(wanted)
        finally:
            self._restore(before)

    def _put(self, wanted: PolicyModel) -> NetworkPolicy:
        answer = self._transport.request("PUT", self._path, body=wanted.canonical())
        found = policies.in_force(answers.as_object(answer))
        self.last_said = found
        policies.check_agreement(wanted, found)
        return policies.shown(found)

    def _restore(self, before: PolicyModel) -> None:
        if self._transport.is_deleted:
            return  # and every policy with it
        try:
            self._put(before)
        except BoxError as error:
            if isinstance(error, BoxNotFoundError) and error.code == "box_unknown":
                return  # somebody else has deleted it
            raise BoxError(
                f"the network policy could not be restored to {policies.described(before)}: {error}; "
                f"{self._what_is()}",
                error.status_code,
                code=error.code,
            ) from error

    def _what_is(self) -> str:
        try:
            self.refresh()
        except BoxError:
            return f"what is in force can't be told; the last that was: {policies.described(self.last_said)}"
        return f"in force is {policies.described(self.last_said)}"
