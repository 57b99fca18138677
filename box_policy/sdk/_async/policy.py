"""A box's network policy: asked for, changed, and changed for a while."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import answers, policies
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk.errors import BoxError, BoxNotFoundError
from box_policy.sdk.policies import AsyncPolicyView
from box_policy.sdk.types import NetworkPolicy, NetworkPolicyInput


class AsyncPolicyControl(AsyncPolicyView):
    """The policy of one box. What is believed of it is only ever what the service has said."""

    def __init__(self, transport: AsyncTransport, at: str, last_said: PolicyModel) -> None:
        self._transport = transport
        self._path = f"{at}/config/network-policy"
        self.last_said = last_said

    async def refresh(self) -> NetworkPolicy:
        """What is in force now.

        Raises:
            BoxError: the service doesn't say.
        """
        self.last_said = policies.in_force(
            answers.as_object(await self._transport.request("GET", self._path))
        )
        return policies.shown(self.last_said)

    async def update(self, policy: NetworkPolicyInput) -> NetworkPolicy:
        """Put another one in force.

        Returns:
            What is in force now.

        Raises:
            PolicyValidationError: the policy can't be accepted; the one before is still in force.
            BoxError: the change is refused, or the service doesn't say that it has been made.
        """
        return await self._put(policies.requested(policy))

    @asynccontextmanager
    async def temporary(self, policy: NetworkPolicyInput) -> AsyncIterator[NetworkPolicy]:
        """Put another one in force for a while, then the one that was in force before."""
        wanted = policies.requested(policy)
        await self.refresh()
        before = self.last_said
        try:
            yield await self._put(wanted)
        finally:
            await self._restore(before)

    async def _put(self, wanted: PolicyModel) -> NetworkPolicy:
        answer = await self._transport.request("PUT", self._path, body=wanted.canonical())
        found = policies.in_force(answers.as_object(answer))
        self.last_said = found
        policies.check_agreement(wanted, found)
        return policies.shown(found)

    async def _restore(self, before: PolicyModel) -> None:
        if self._transport.is_deleted:
            return  # and every policy with it
        try:
            await self._put(before)
        except BoxError as error:
            if isinstance(error, BoxNotFoundError) and error.code == "box_unknown":
                return  # somebody else has deleted it
            raise BoxError(
                f"the network policy could not be restored to {policies.described(before)}: {error}; "
                f"{await self._what_is()}",
                error.status_code,
                code=error.code,
            ) from error

    async def _what_is(self) -> str:
        try:
            await self.refresh()
        except BoxError:
            return f"what is in force can't be told; the last that was: {policies.described(self.last_said)}"
        return f"in force is {policies.described(self.last_said)}"
