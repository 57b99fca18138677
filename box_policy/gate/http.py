"""Plain HTTP: every request on a connection judged by its own Host, on mitmproxy's HTTP layer.

Judging happens here, in the connection handler, not in an addon's hook: mitmproxy swallows what an
addon raises and lets the flow go on, and other addons could come after.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
)

from box_policy.audit.sinks import Audit
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import FAILED, NAME_MAY_DECIDE, Claim, HandedOver
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.dial import in_dialling_order
from box_policy.gate.egress import Egress
from box_policy.gate.failures import every
from box_policy.gate.http_dialling import DiallingHandler
from box_policy.gate.http_layer import GateHttpLayer, HttpWatch
from box_policy.gate.http_request import Refused, error_response, make_forwardable, read_target, recorded_host
from box_policy.gate.http_response import SWITCHING_PROTOCOLS
from box_policy.gate.idle_watchdog import IdleWatchdog
from box_policy.gate.limits import Limits
from box_policy.gate.readers import Turn
from box_policy.gate.reset import reset_now
from box_policy.gate.resolver import Resolver
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.mode_specs import ProxyMode

log = logging.getLogger(__name__)


class HttpHandler(DiallingHandler, HttpWatch):
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
        turn: Turn,
        roomy: bool,
        descriptors: Descriptors,
        egress: Egress,
    ) -> None:
        super().__init__(master, mode, handed_over, reader, writer, limits, turn, roomy, descriptors, egress)
        self._box: GatedBox = handed_over.claim.box
        self._resolver = resolver
        self._audit = audit
        self._refusal: bytes | None = None
        self._judging: Claim | None = None  # of the request that has no verdict yet
        self._name = ""
        self._wants_websocket = False
        self._ended: Reason | None = None
        self._rule = ""  # that ended it
        self._timer: asyncio.TimerHandle | None = None
        self.layer = GateHttpLayer(self.layer.context, self, limits.http_head)

    async def handle_client(self) -> None:
        """Serve the connection to its end. Leaves nothing open, whatever happens."""
        self.timeout_watchdog = IdleWatchdog(self._limits.http_idle_timeout, self.on_timeout)
        self._start_timer(self._limits.verdict_timeout - (time.monotonic() - self._claim.accepted))
        try:
            await super().handle_client()
            # Closed by now, but what is buffered may still be on its way to a slow client.
            async with asyncio.timeout(self._limits.http_idle_timeout):
                await self._writers[0].wait_closed()
        except (OSError, TimeoutError):
            pass
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
            self.failed()
        finally:
            every(self._stop_timer, self._abort, self._record_end)
            if self._ended is None:  # whatever is still being judged comes to nothing
                self._ended = Reason.CLIENT_GONE

    def cut(self, reason: Reason) -> None:
        """End it at once with RST on both sides. A request that is being judged is never sent."""
        recorded = self._ended or self._judging or self._allowed_claim or self._refusal is not None
        if not recorded:  # and nothing else will be
            every(lambda: self._record(self._claim, Verdict.denied(reason)))
        self._cut(reason)

    def _cut(self, reason: Reason) -> None:
        if self._ended is None:
            self._ended = reason
            self._box.record_end(self._record_end)
        self._upstreams.allowed = []
        self.client.error = reason
        self._reader.open.set()
        handlers = [io.handler for io in self.transports.values() if io.handler is not None]
        every(self._abort, *(partial(handler.cancel, reason) for handler in handlers))

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
            self._cut(Reason.POLICY_CHANGED)
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
            reason = self._ended or Reason.CLOSED
            self._audit.note(
                lambda: claim.end(
                    Verdict.denied(reason, self._rule), dialled=self._upstreams.dialled,
                    up=self._reader.count, down=self._upstreams.received,
                )
            )  # fmt: skip

    def _abort(self) -> None:
        """Drop every socket that this connection ever had: mitmproxy forgets one before it is closed."""
        steps: list[Callable[[], object]] = []
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if self._ended is not None and sock is not None:
                steps.append(partial(reset_now, sock))
            steps.append(writer.transport.abort)
        if self._ended is not None:
            steps.append(self._upstreams.stop_dialling)
        every(*steps)

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

    def refused_request(self, refused: Refused) -> bytes:
        claim, self._judging = self._judging or self._allowed_claim or self._claim, None
        self._refusal = self._refuse(claim, refused, Verdict.denied(refused.reason))
        return self._refusal

    def response_for(self, status: int, message: str) -> bytes | None:
        if self._refusal is not None:
            return self._refusal
        if not status or self._ended is not None:
            return None
        if status >= 500:
            if self._upstreams.left_before_answering():
                return None
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

    def hung_up(self) -> None:
        self._stop_timer()
        self._start_timer(self._limits.linger, over=True)

    def hold(self, on: bool) -> None:
        self._reader.hold(on)

    def failed(self) -> None:
        self.cut(Reason.INTERNAL_ERROR)

    def cancelled(self) -> None:
        if self._ended is None:
            super().cancelled()

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """mitmproxy tells in no other way that the task of a connection has raised. It would go on with what
        is left, and keep the client waiting."""
        super().log(message, level, exc_info)
        if level >= logging.ERROR:
            self.failed()

    # Judging.

    async def handle_hook(self, hook: commands.StartHook) -> None:
        try:
            await self._handle_hook(hook)
        except asyncio.CancelledError:
            self.cancelled()
            raise
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
        if self._ended is not None or self._refusal is not None:
            self._kill(flow, None)  # cut, or refused for its body, while other addons had the request
            return
        claim = dataclasses.replace(self._claim)
        verdict = FAILED
        self._box.pending += 1
        self._judging = claim
        try:
            if self._box.pending > self._limits.pending:
                raise Refused(403, Reason.LIMIT)
            target = read_target(flow.request, self._claim.destination)
            claim.name, claim.name_as_sent = target.name, target.as_sent
            verdict = claim.box.policy.judge_address(claim.destination.address)
            if verdict.reason in NAME_MAY_DECIDE:
                verdict = claim.box.policy.judge_name(target.name)
            if verdict.allowed and not verdict.addresses:
                resolution = await self._resolver.addresses(
                    target.name, partial(self._may_ask, claim), self._box.id
                )
                claim.resolved = resolution.addresses
                if self._ended is not None or self._judging is not claim:
                    raise Refused(403, self._ended or Reason.HTTP_INVALID, host=target.as_sent)
                # Judged from the start again: the policy may have changed while the answer was awaited.
                verdict = claim.box.policy.judge_address(claim.destination.address)
                if verdict.reason in NAME_MAY_DECIDE:
                    verdict = claim.box.policy.judge_resolution(target.name, resolution.addresses)
                if verdict.reason is Reason.RESOLUTION_FAILED:
                    raise Refused(502, verdict.reason, resolution.error, host=target.as_sent)
            if not verdict.allowed:
                raise Refused(403, verdict.reason, host=target.as_sent)
            if verdict.reason is not Reason.NAME_ALLOWED:
                # Its address has let it through: nobody has looked whether the Host is true.
                claim.name = None
            self._let_through(flow, claim, verdict)
        except Refused as refused:
            if refused.reason is not verdict.reason:
                verdict = Verdict.denied(refused.reason)
            # It may have been refused, and recorded, while the name was resolved: for its body, or by a cut.
            refused_before = self._judging is not claim
            self._kill(flow, None if refused_before else self._refuse(claim, refused, verdict))
        except Exception:
            log.exception("a request failed in the gate and is refused")
            self._record(claim, FAILED)
            self._kill(flow, error_response(502, Reason.INTERNAL_ERROR))
        finally:
            self._judging = None
            self._box.pending -= 1

    def _may_ask(self, claim: Claim) -> bool:
        name, policy = claim.name, claim.box.policy
        if self._ended is not None or self._judging is not claim:
            return False
        return name is not None and policy.judge_name(name).allowed

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
        response = error_response(
            refused.status,
            refused.reason,
            host=recorded_host(claim.name_as_sent),
            rule=verdict.rule,
            generation=claim.box.generation,
        )
        self._refusal = response
        self._record(claim, verdict, refused.detail)
        return response

    def _record(self, claim: Claim, verdict: Verdict, detail: str = "") -> None:
        """Record a denial. It stands, and has to be answered, even if it can't be recorded."""
        if verdict.reason is Reason.LIMIT and not self._box.may_record_limit(time.monotonic(), "requests"):
            return
        self._audit.note(lambda: claim.decision(verdict, detail=detail))

    def _kill(self, flow: http.HTTPFlow, response: bytes | None) -> None:
        if response is not None:
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
            self._ended = reason = Reason.HTTP_NOT_SUPPORTED
            host, generation = self._name or None, self._box.generation
            self._kill(flow, error_response(502, reason, host=host, generation=generation))

    # Time.

    def _start_timer(self, seconds: float, *, over: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, seconds), self._abort if over else self._overdue)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _overdue(self) -> None:
        self._record(self._claim, Verdict.denied(Reason.TIMEOUT))
        self._cut(Reason.TIMEOUT)
