"""Where connections that the lane finds to be HTTP come in."""

import asyncio
import logging
from typing import TYPE_CHECKING

from box_policy.audit.sinks import Audit
from box_policy.gate.claim import HandedOver
from box_policy.gate.http import HttpHandler
from box_policy.gate.limits import Limits
from box_policy.gate.resolver import Resolver

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.mode_specs import ProxyMode

log = logging.getLogger(__name__)


class HttpDoor:
    """Takes over the connections that the lane finds to be HTTP."""

    def __init__(self, *, resolver: Resolver, audit: Audit, limits: Limits) -> None:
        self._resolver = resolver
        self._audit = audit
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, master: "Master", mode: "ProxyMode", handed_over: HandedOver) -> None:
        """Serve a connection in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._serve(master, mode, handed_over))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for connections that have been cut."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, master: "Master", mode: "ProxyMode", handed_over: HandedOver) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=handed_over.sock)
        except OSError:
            handed_over.sock.close()
            return
        try:
            handler = HttpHandler(
                master, mode, handed_over, reader, writer,
                resolver=self._resolver, audit=self._audit, limits=self._limits,
            )  # fmt: skip
            manager = master.addons.get("proxyserver")
            with manager.register_connection(handler.client.id, handler):
                await handler.handle_client()
            # Closed by now, but what is buffered may still be on its way to a slow client.
            async with asyncio.timeout(self._limits.http_idle_timeout):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
        finally:
            writer.transport.abort()
