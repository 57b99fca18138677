"""``box.labels``: words by which boxes are found again."""

import builtins

from box_policy.sdk import answers
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk.connection import segment


class AsyncLabelsNamespace:
    """The labels of a box. ``Box.list(label=...)`` finds the boxes that have one."""

    def __init__(self, transport: AsyncTransport, at: str) -> None:
        self._transport = transport
        self._at = at

    async def add(self, label: str) -> builtins.list[str]:
        """Add one. Returns all that the box then has."""
        answer = await self._transport.request("POST", f"{self._at}/config/labels", body={"label": label})
        return answers.texts(answers.as_object(answer), "labels")

    async def remove(self, label: str) -> builtins.list[str]:
        """Remove one. Returns all that the box then has."""
        path = f"{self._at}/config/labels/{segment(label, 'label')}"
        return answers.texts(answers.as_object(await self._transport.request("DELETE", path)), "labels")

    async def list(self) -> builtins.list[str]:
        """All that the box has."""
        return answers.texts(answers.as_object(await self._transport.request("GET", self._at)), "labels")
