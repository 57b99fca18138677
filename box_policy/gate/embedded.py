"""The gate in a process of its own choosing, on a lean mitmproxy.

Only what carries plain HTTP is there: no script loader, no TLS interception, no onboarding app, no
replay. What isn't loaded can't be tricked into forwarding.
"""

import asyncio

from mitmproxy.addons.core import Core
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.options import Options

from box_policy.audit.sinks import Audit
from box_policy.gate.claim import HandedOver
from box_policy.gate.gate import Gate, Settings
from box_policy.gate.http_door import HttpDoor
from box_policy.gate.mode import mode_of


class EmbeddedGate:
    """A gate on the running loop, from :meth:`start` to :meth:`close`."""

    def __init__(self, settings: Settings, audit: Audit) -> None:
        self._master = Master(Options(), event_loop=asyncio.get_running_loop())
        self._master.addons.add(Core(), Proxyserver())
        # lazy: nothing is dialled before it is judged. mode: the gate holds all listeners itself.
        self._master.options.update(mode=[], connection_strategy="lazy")
        self.gate = Gate(settings, audit, self._take_http)
        self._door = HttpDoor(
            resolver=self.gate.resolver,
            audit=audit,
            limits=self.gate.limits,
            descriptors=self.gate.descriptors,
            egress=self.gate.egress,
        )

    def start(self) -> None:
        self.gate.start()

    async def close(self) -> None:
        """Stop serving, reset everything, and wait for what was under way."""
        await self.gate.close()
        await self._door.close()
        await self._master.done()

    def _take_http(self, handed_over: HandedOver) -> None:
        self._door.take(self._master, mode_of(handed_over.claim.box.id), handed_over)
