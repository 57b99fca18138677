"""Plain HTTP: every request on a connection judged by its own Host, on mitmproxy's HTTP layer.

Judging happens here, in the connection handler, not in an addon's hook: mitmproxy swallows what an
addon raises and lets the flow go on, and other addons could come after.
"""

import asyncio
import dataclasses
import logging
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
)
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionIO

from box_policy.audit.sinks import Audit
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import NAME_MAY_DECIDE, Claim, HandedOver
from box_policy.gate.dial import in_dialling_order
from box_policy.gate.http_layer import SWITCHING_PROTOCOLS, GateHttpLayer, HttpWatch
from box_policy.gate.http_request import Refused, error_response, make_forwardable, read_target, recorded_host
from box_policy.gate.http_upstreams import Upstreams
from box_policy.gate.limits import Limits
from box_policy.gate.readers import CountingReader, GatedReader
from box_policy.gate.reset import reset_now
from box_policy.gate.resolver import Resolver
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.mode_specs import ProxyMode

log = logging.getLogger(__name__)


class HttpHandler(ProxyConnectionHandler, HttpWatch):
    """One connection of a box that speaks HTTP."""

    def __init__(
        self,
        master: "Master",
        mode: "ProxyMode",
        handed_over: HandedOver,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        resolver: Resolver,
        audit: Audit,
        limits: Limits,
    ) -> None:
        super().__init__(master, reader, writer, master.options, mode)  # type: ignore[no-untyped-call]
        self._claim = handed_over.claim
        self._box: GatedBox = handed_over.claim.box
        self._resolver = resolver
        self._audit = audit
        self._limits = limits
        self._refusal: bytes | None = None
        self._judging: Claim | None = None  # of the request that has no verdict yet
        self._name = ""
        self._wants_websocket = False
        self._ended: Reason | None = None
        self._rule = ""  # that ended it
        self._allowed_claim: Claim | None = None  # of the last request that was let through
        self._upstreams = Upstreams()
        self._timer: asyncio.TimerHandle | None = None
        self._writers = [writer]
        self._reader = GatedReader(reader, handed_over.received)
        self.transports[self.client].reader = self._reader  # type: ignore[assignment]
        destination = handed_over.claim.destination
        context = self.layer.context
        context.client.sockname = context.server.address = (str(destination.address), destination.port)
        self.layer = GateHttpLayer(context, self, limits.http_head)

    async def handle_client(self) -> None:
        """Serve the connection to its end. Leaves nothing open, whatever happens."""
        self.timeout_watchdog.timeout = self._limits.http_idle_timeout
        self._start_timer(self._limits.verdict_timeout - (time.monotonic() - self._claim.accepted))
        try:
            await super().handle_client()
            # Closed by now, but what is buffered may still be on its way to a slow client.
            async with asyncio.timeout(self._limits.http_idle_timeout):
                await self._writers[0].wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._stop_timer()
            self._abort()
            self._record_end()
            if self._ended is None:  # whatever is still being judged comes to nothing
                self._ended = Reason.CLIENT_GONE

    def cut(self, reason: Reason) -> None:
        """End it at once with RST on both sides. A request that is being judged is never sent."""
        if self._ended is None:
            self._ended = reason
            self._box.record_end(self._record_end)
        self._upstreams.allowed = []
        self.client.error = reason
        self._reader.open.set()
        handlers = [io.handler for io in self.transports.values()]
        self._abort()
        for handler in handlers:
            if handler is not None:
                handler.cancel(reason)

    def judge_again(self) -> bool:
        """The box has a new policy. What it no longer allows ends; the rest goes on."""
        if self._ended is not None or self._refusal is not None:
            self._upstreams.judge_again()
            return False
        claim = self._allowed_claim
        if claim is not None:
            self._upstreams.narrow(claim)
        denial = self._denial()
        if denial is not None and self._upstreams.dials_on():
            denial = None
        if denial is not None:
            verdict = Verdict.denied(Reason.POLICY_CHANGED, denial.rule)
            judging, self._judging = self._judging, None
            if judging is not None or claim is None:
                self._record(judging or self._claim, verdict)
            self._rule = denial.rule
            self.cut(Reason.POLICY_CHANGED)
            return True
        self._upstreams.judge_again()  # of earlier requests, and kept for others
        return False

    def _denial(self) -> Verdict | None:
        """What the policy in force has against the request under way, or else against the last one."""
        if self._judging is not None:
            return self._judging.final_denial()
        if self._allowed_claim is None or self._upstreams.dialled is None:
            return self._claim.final_denial()
        verdict = self._allowed_claim.judge_again(self._upstreams.dialled)
        return None if verdict.allowed else verdict

    def _record_end(self) -> None:
        """Record how the last request that was let through has ended, once."""
        claim, self._allowed_claim = self._allowed_claim, None
        if claim is not None:
            end = Verdict.denied(self._ended or Reason.CLOSED, self._rule)
            up, down = self._reader.count, self._upstreams.received
            try:
                self._audit(claim.end(end, dialled=self._upstreams.dialled, up=up, down=down))
            except Exception:
                log.exception("the end of a connection could not be recorded")

    def _abort(self) -> None:
        """Drop every socket that this connection ever had: mitmproxy forgets one before it is closed."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if self._ended is not None and sock is not None:
                reset_now(sock)
            writer.transport.abort()
        if self._ended is not None:
            self._upstreams.stop_dialling()

    # What the layer tells.

    def head_started(self) -> None:
        if self._timer is None:
            self._start_timer(self._limits.verdict_timeout)

    def head_complete(self) -> None:
        self._stop_timer()

    def head_abandoned(self) -> None:
        if self._ended is not None:
            return
        self._ended = Reason.CLIENT_GONE
        self._record(self._claim, Verdict.denied(Reason.CLIENT_GONE), "in the middle of a request head")

    def refused_head(self, refused: Refused) -> bytes:
        self._linger()
        self._refusal = self._refuse(self._claim, refused, Verdict.denied(refused.reason))
        return self._refusal

    def response_for(self, status: int, message: str) -> bytes | None:
        self._linger()
        if self._refusal is not None:
            return self._refusal
        if not status or self._ended is not None:
            return None
        if status >= 500:
            reason = Reason.UPSTREAM_FAILED
            self._ended = reason
        else:
            reason = Reason.HTTP_INVALID
            self._record(self._claim, Verdict.denied(reason), message)
        self._refusal = error_response(
            status, reason, host=self._name or None, generation=self._box.generation
        )
        return self._refusal

    def is_usable(self, server: Server) -> bool:
        return self._upstreams.has(server)

    # Judging.

    async def handle_hook(self, hook: commands.StartHook) -> None:
        try:
            await self._handle_hook(hook)
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
            self.cut(Reason.INTERNAL_ERROR)

    async def _handle_hook(self, hook: commands.StartHook) -> None:
        if isinstance(hook, HttpRequestHeadersHook):
            self._reader.open.clear()  # until there is a way to send what follows
            await super().handle_hook(hook)
            await self._judge(hook.flow)
            if hook.flow.error or hook.flow.response or not self._must_dial(hook.flow):
                self._reader.open.set()
        elif isinstance(hook, HttpRequestHook):
            await super().handle_hook(hook)
            if hook.flow.error or hook.flow.response:
                self._reader.open.set()
        elif isinstance(hook, HttpResponseHeadersHook):
            await super().handle_hook(hook)
            self._check_response(hook.flow)
        else:
            await super().handle_hook(hook)

    async def _judge(self, flow: http.HTTPFlow) -> None:
        """Let the flow go on to judged addresses, or kill it with an answer. Comes after every addon."""
        if self._ended is not None:  # cut while other addons had the request
            self._kill(flow, b"")
            return
        claim = dataclasses.replace(self._claim)
        verdict = Verdict.denied(Reason.INTERNAL_ERROR)
        self._box.pending += 1
        try:
            if self._box.pending > self._limits.pending:
                raise Refused(403, Reason.LIMIT)
            target = read_target(flow.request, self._claim.destination)
            claim.name, claim.name_as_sent = target.name, target.as_sent
            self._judging = claim
            verdict = claim.box.policy.judge_address(claim.destination.address)
            if verdict.reason in NAME_MAY_DECIDE:
                verdict = claim.box.policy.judge_name(target.name)
            if verdict.allowed and not verdict.addresses:
                resolution = await self._resolver.addresses(target.name, partial(self._may_ask, claim))
                claim.resolved = resolution.addresses
                # Judged from the start again: the policy may have changed while the answer was awaited.
                verdict = claim.box.policy.judge_address(claim.destination.address)
                if verdict.reason in NAME_MAY_DECIDE:
                    verdict = claim.box.policy.judge_resolution(target.name, resolution.addresses)
                if verdict.reason is Reason.RESOLUTION_FAILED:
                    raise Refused(502, verdict.reason, resolution.error, host=target.as_sent)
            if not verdict.allowed:
                raise Refused(403, verdict.reason, host=target.as_sent)
            if self._ended is not None:
                raise Refused(403, self._ended, host=target.as_sent)
            if verdict.reason is not Reason.NAME_ALLOWED:
                # Its address has let it through: nobody has looked whether the Host is true.
                claim.name = None
            self._let_through(flow, claim, verdict)
        except Refused as refused:
            if refused.reason is not verdict.reason:
                verdict = Verdict.denied(refused.reason)
            cut = self._ended is not None and self._judging is not claim
            self._kill(flow, b"" if cut else self._refuse(claim, refused, verdict))
        except Exception:
            log.exception("a request failed in the gate and is refused")
            self._record(claim, Verdict.denied(Reason.INTERNAL_ERROR))
            self._kill(flow, error_response(502, Reason.INTERNAL_ERROR))
        finally:
            self._judging = None
            self._box.pending -= 1

    def _may_ask(self, claim: Claim) -> bool:
        name, policy = claim.name, claim.box.policy
        return self._ended is None and name is not None and policy.judge_name(name).allowed

    def _let_through(self, flow: http.HTTPFlow, claim: Claim, verdict: Verdict) -> None:
        addresses = in_dialling_order(verdict.addresses, claim.destination.address)
        port = claim.destination.port
        chosen = next((found for found in addresses if self._upstreams.find(found, port)), addresses[0])
        self._audit(claim.decision(verdict, dialled=chosen))
        if (upstream := self._upstreams.find(chosen, port)) is not None:
            self._upstreams.use(upstream, claim)
        self._allowed_claim = claim
        self._upstreams.dialled = chosen
        self._upstreams.allowed = addresses
        self._name = recorded_host(claim.name_as_sent) or ""
        self._wants_websocket = make_forwardable(flow.request)
        # Through .data: the property would rewrite the Host header as well.
        flow.request.data.host = str(chosen)
        flow.request.data.port = port
        if flow.response is None:
            flow.request.stream = True

    def _refuse(self, claim: Claim, refused: Refused, verdict: Verdict) -> bytes:
        if refused.host is not None:
            claim = dataclasses.replace(claim, name_as_sent=refused.host)
        self._record(claim, verdict, refused.detail)
        return error_response(
            refused.status,
            refused.reason,
            host=recorded_host(claim.name_as_sent),
            rule=verdict.rule,
            generation=claim.box.generation,
        )

    def _record(self, claim: Claim, verdict: Verdict, detail: str = "") -> None:
        """Record a denial. It stands, and has to be answered, even if it can't be recorded."""
        try:
            self._audit(claim.decision(verdict, detail=detail))
        except Exception:
            log.exception("a denial could not be recorded")

    def _kill(self, flow: http.HTTPFlow, response: bytes) -> None:
        self._refusal = response
        self._upstreams.allowed = []
        if flow.killable:
            flow.kill()
        else:
            self.cut(Reason.INTERNAL_ERROR)

    def _check_response(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        if response is None:
            return
        response.stream = True
        if response.status_code == SWITCHING_PROTOCOLS and not (
            self._wants_websocket and response.headers.get("upgrade", "").lower() == "websocket"
        ):
            self._kill(flow, error_response(502, Reason.HTTP_NOT_SUPPORTED, host=self._name))

    # Dialling.

    def _must_dial(self, flow: http.HTTPFlow) -> bool:
        data = flow.request.data
        return not any(
            str(address) == data.host and self._upstreams.find(address, data.port)
            for address in self._upstreams.allowed
        )

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dial a judged address; any other is refused, whoever asks for it."""
        server = command.connection
        hook = server_hooks.ServerConnectionHookData(client=self.client, server=server)
        try:
            await self.handle_hook(server_hooks.ServerConnectHook(hook))
            sock, error = (None, server.error) if server.error else await self._dial(server)
        finally:
            self._reader.open.set()
        if sock is None:
            server.error = error or "no verdict"
            await self.handle_hook(server_hooks.ServerConnectErrorHook(hook))
            await self.server_event(events.OpenConnectionCompleted(command, server.error))
            return
        reader, writer = await asyncio.open_connection(sock=sock)
        server.timestamp_tcp_setup = time.time()
        server.state = ConnectionState.OPEN
        server.peername = writer.get_extra_info("peername")
        server.sockname = writer.get_extra_info("sockname")
        self._writers.append(writer)
        upstream = CountingReader(reader)
        self.transports[server] = ConnectionIO(asyncio.current_task(), upstream, writer)  # type: ignore[arg-type]
        self._upstreams.add(server, self._allowed_claim or self._claim, writer, upstream)
        await self.handle_hook(server_hooks.ServerConnectedHook(hook))
        await self.server_event(events.OpenConnectionCompleted(command, None))
        try:
            await self.handle_connection(server)
        finally:
            self._upstreams.remove(server)
            server.timestamp_end = time.time()
            await self.handle_hook(server_hooks.ServerDisconnectedHook(hook))

    async def _dial(self, server: Server) -> tuple[socket.socket | None, str]:
        """Connect to the address that the layer asks for, or another of the same verdict."""
        wanted, port = (server.address or ("", 0))[:2]
        if port != self._claim.destination.port:
            return None, "no verdict"
        server.timestamp_start = time.time()
        sock, error = await self._upstreams.dial(wanted, port, self._limits.connect_timeout)
        if sock is not None:
            server.address = (str(self._upstreams.dialled), port)
        return sock, error

    # Time.

    def _linger(self) -> None:
        """A refused client gets a short while to read the answer."""
        self._stop_timer()
        self._start_timer(self._limits.linger, over=True)

    def _start_timer(self, seconds: float, *, over: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, seconds), self._abort if over else self._overdue)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._record(self._claim, Verdict.denied(Reason.TIMEOUT))
        self.cut(Reason.TIMEOUT)
