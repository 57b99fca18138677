"""Where connections that the lane finds to be HTTP come in."""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from box_policy.audit.sinks import Audit
from box_policy.gate.claim import FAILED, HandedOver
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.egress import Egress
from box_policy.gate.http import HttpHandler
from box_policy.gate.limits import Limits
from box_policy.gate.reset import reset, reset_now
from box_policy.gate.resolver import Resolver
from box_policy.gate.rounds import Rounds
from box_policy.gate.socket_memory import keep_small
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.mode_specs import ProxyMode

log = logging.getLogger(__name__)


class HttpDoor:
    """Takes over the connections that the lane finds to be HTTP."""

    def __init__(
        self, *, resolver: Resolver, audit: Audit, limits: Limits, descriptors: Descriptors, egress: Egress
    ) -> None:
        self._resolver = resolver
        self._descriptors = descriptors
        self._egress = egress
        self._audit = audit
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._rounds = Rounds()

    def take(self, master: "Master", mode: "ProxyMode", handed_over: HandedOver) -> None:
        """Serve a connection in a task of its own. From now on the box's list of live ones has it."""
        box = handed_over.claim.box
        visit = _Visit(handed_over, self._audit, roomy=box.roomy < self._limits.roomy)
        visit.task = asyncio.get_running_loop().create_task(self._serve(master, mode, visit))
        box.live.add(visit)
        box.http_connections += 1
        box.roomy += visit.roomy
        self._tasks.add(visit.task)
        visit.task.add_done_callback(visit.leave)
        visit.task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for connections that have been cut."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, master: "Master", mode: "ProxyMode", visit: "_Visit") -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            turn = partial(self._rounds.turn, visit.handed_over.claim.box.id)
            if not visit.roomy:
                keep_small(visit.handed_over.sock)
            await turn()
            reader, writer = await asyncio.open_connection(sock=visit.handed_over.sock)
            visit.handler = handler = HttpHandler(
                master, mode, visit.handed_over, reader, writer,
                resolver=self._resolver, audit=self._audit, limits=self._limits, turn=turn, roomy=visit.roomy,
                descriptors=self._descriptors, egress=self._egress,
            )  # fmt: skip
            manager = master.addons.get("proxyserver")
            with manager.register_connection(handler.client.id, handler):
                await handler.handle_client()
        except Exception as error:
            log.exception("an HTTP connection failed in the gate and is closed")
            visit.failed(error)
        finally:
            if writer is not None:
                writer.transport.abort()


class _Visit:
    """A connection from hand-over until nothing of it is left."""

    task: asyncio.Task[None]

    def __init__(self, handed_over: HandedOver, audit: Audit, *, roomy: bool) -> None:
        self.handed_over = handed_over
        self.roomy = roomy
        self.handler: HttpHandler | None = None
        self._audit = audit
        self._ended = False

    def cut(self, reason: Reason) -> None:
        if self.handler is not None:
            self.handler.cut(reason)
        else:
            self._end(Verdict.denied(reason))

    def judge_again(self) -> bool:
        if self.handler is not None:
            return self.handler.judge_again()
        denial = self.handed_over.claim.final_denial()
        if denial is None:
            return False
        return self._end(Verdict.denied(Reason.POLICY_CHANGED, denial.rule))

    def buffered(self) -> int:
        return self.handler.buffered() if self.handler is not None else len(self.handed_over.received)

    def failed(self, error: BaseException) -> None:
        """The gate has failed, maybe before it could begin."""
        if self.handler is not None:
            self.handler.failed()
            return
        reset_now(self.handed_over.sock)
        if not self._ended:
            self._ended = True
            self._record(FAILED)

    def _end(self, verdict: Verdict) -> bool:
        """End it before it could begin. False if that was done before."""
        if self._ended or not self.task.cancel(verdict.reason):
            return False
        self._ended = True
        reset_now(self.handed_over.sock)
        self._record(verdict)
        return True

    def _record(self, verdict: Verdict) -> None:
        self._audit.note(lambda: self.handed_over.claim.decision(verdict))

    def leave(self, task: asyncio.Task[None]) -> None:
        self.handed_over.claim.box.live.discard(self)
        self.handed_over.claim.box.http_connections -= 1
        self.handed_over.claim.box.roomy -= self.roomy
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)
        if self.handler is None:
            # The task may have been cancelled before it could begin, and so before it owned the socket.
            reset(self.handed_over.sock)
