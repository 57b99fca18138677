"""The mitmproxy addon: options, hooks, and the wiring between mitmproxy and the gate."""

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NoReturn

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.gate.claim import HandedOver
from box_policy.gate.gate import Gate, Settings
from box_policy.gate.http import HttpHandler
from box_policy.gate.http_door import HttpDoor
from box_policy.gate.limits import Limits
from box_policy.gate.listening import listen
from box_policy.gate.mode import DEFAULT_BOX, BoxInstance, BoxMode, mode_of
from box_policy.policy.addresses import InvalidCidr

log = logging.getLogger(__name__)

_OPERATOR_OPTIONS: Final = (
    "box_policy_private_ranges",
    "box_policy_name_servers",
    "box_policy_ech",
    "box_policy_resolve_for_cidrs",
    "box_policy_limits",
    "box_policy_log",
    "box_policy_dns_port",
    "box_policy_boxes",
)
_STOCK_MODE: Final = "regular"
_STOCK_OPTIONS: Final = {
    # An eager mitmproxy dials where the client wants to go before anything has been decided.
    "connection_strategy": "lazy",
    # Against open proxies; here it would cut boxes whose addresses look public, and only those that speak
    # HTTP. Who connects to the gate itself, from wherever, has no destination that could be allowed.
    "block_global": False,
    # All that a box sends and gets by HTTP would be kept in memory.
    "store_streamed_bodies": False,
    # What one server takes for a mistake, another may take for a second opinion.
    "validate_inbound_headers": True,
}
"""mitmproxy's own options that would undo or disturb the gate, whoever sets them otherwise: on the command
line, in its ``config.yaml``, while it runs."""


class EgressPolicy:
    """Enforces a policy on everything that mitmproxy is connected to.

    Fails closed: it refuses to start where it could not enforce, and if it is taken out of a running
    mitmproxy (an addon file that is edited or deleted) it ends the process.
    """

    def __init__(self, *, exit_process: Callable[[int], object] = os._exit) -> None:
        self.gate: Gate | None = None
        self._exit_process = exit_process
        self._running = False
        self._door: HttpDoor | None = None
        self.audit = Audit()
        self.serving = False
        """Every listener is there."""
        self._log: JsonLines | None = None
        self._console: Console | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._values: list[object] = []

    # Options.

    def load(self, loader: Loader) -> None:
        loader.add_option(
            "box_policy_private_ranges",
            Sequence[str],
            [],
            "CIDRs of private or otherwise special addresses that policies may open. Policies alone can't.",
        )
        loader.add_option(
            "box_policy_name_servers",
            Sequence[str],
            [],
            "Addresses of the name servers to ask. Default: those of /etc/resolv.conf.",
        )
        loader.add_option(
            "box_policy_ech",
            str,
            "allow",
            "TLS hellos with Encrypted Client Hello, which hide the name behind an outer one.",
            choices=("allow", "deny"),
        )
        loader.add_option(
            "box_policy_resolve_for_cidrs",
            bool,
            False,
            "Resolve names under a policy that has CIDRs alone, to addresses inside them.",
        )
        loader.add_option(
            "box_policy_limits",
            Sequence[str],
            [],
            "What each box may cost, as NAME=VALUE: see docs/boxes.md.",
        )
        loader.add_option(
            "box_policy_boxes",
            Sequence[str],
            [],
            "Several boxes, each with its own port: ID@port or ID@host:port. Default: one, called default.",
        )
        loader.add_option("box_policy_log", str, "", "A file to append decisions to, as JSON lines.")
        loader.add_option(
            "box_policy_dns_port",
            int,
            0,
            "A port to answer redirected DNS questions on, UDP and TCP. 0: none.",
        )

    def configure(self, updated: set[str]) -> None:
        if self.gate is None or updated & _STOCK_OPTIONS.keys():
            self._set_stock_options()
        if "mode" in updated or self.gate is None:
            self._check_modes()
        if self.gate is None:
            self._make_gate()
        elif self._operator_values() != self._values:
            self.refuse("what the operator sets can't change while it runs: restart")

    def _set_stock_options(self) -> None:
        for name, value in _STOCK_OPTIONS.items():
            if name in ctx.options and getattr(ctx.options, name) != value:
                ctx.options.update(**{name: value})
                if getattr(ctx.options, name) != value:
                    self.refuse(f"needs {name}={value}")

    def _check_modes(self) -> None:
        boxes = ctx.options.box_policy_boxes
        if ctx.options.mode == [_STOCK_MODE]:
            # Not --mode box:ID: mitmproxy reads that before it has loaded what knows the mode.
            modes = [f"box:{box}" for box in boxes] or ["box"]
            try:
                for spec in modes:
                    mode_specs.ProxyMode.parse(spec)
                ctx.options.update(mode=modes)
            except (ValueError, exceptions.OptionsError) as error:
                self.refuse(f"box_policy_boxes: {error}")
            return
        if boxes and not all(spec.startswith("box:") for spec in ctx.options.mode):
            self.refuse("box_policy_boxes listens itself: leave --mode out")
        for spec in ctx.options.mode:
            mode = mode_specs.ProxyMode.parse(spec)
            if not isinstance(mode, BoxMode | mode_specs.TransparentMode):
                self.refuse(
                    f"mode '{spec}' can't be enforced: leave --mode out (box-policy then listens itself, "
                    "behind a firewall redirect) or use --mode transparent"
                )

    def _make_gate(self) -> None:
        options = ctx.options
        for server in options.box_policy_name_servers:
            try:
                ip_address(server)
            except ValueError:
                self.refuse(f"box_policy_name_servers: {server!r} is not an IP address")
        try:
            limits = Limits.parse(options.box_policy_limits)
        except ValueError as error:
            self.refuse(f"box_policy_limits: {error}")
        try:
            settings = Settings(
                private_ranges=tuple(options.box_policy_private_ranges),
                name_servers=tuple(options.box_policy_name_servers),
                deny_ech=options.box_policy_ech == "deny",
                resolve_for_cidrs=options.box_policy_resolve_for_cidrs,
                limits=limits,
            )
            if options.box_policy_log:
                self._log = JsonLines(Path(options.box_policy_log))
                self.audit.add_paced(self._log)
            self._console = Console(sys.stderr)
            self.audit.add_paced(self._console)
            self.gate = Gate(settings, self.audit, self._take_http)
        except InvalidCidr as error:
            self.refuse(f"box_policy_private_ranges: {error}")
        except OSError as error:
            self.refuse(f"box_policy_log: {error.filename}: {error.strerror}")
        self._door = HttpDoor(
            resolver=self.gate.resolver,
            audit=self.audit,
            limits=self.gate.limits,
            descriptors=self.gate.descriptors,
            egress=self.gate.egress,
        )
        self.gate.start()
        self._values = self._operator_values()
        BoxInstance.serving = self

    def _operator_values(self) -> list[object]:
        return [getattr(ctx.options, name) for name in _OPERATOR_OPTIONS]

    def box_ids(self) -> set[str]:
        """The boxes that are served here; each needs a policy before anything runs."""
        modes = [mode_specs.ProxyMode.parse(spec) for spec in ctx.options.mode]
        boxes = {mode.box if isinstance(mode, BoxMode) else DEFAULT_BOX for mode in modes}
        return boxes | {DEFAULT_BOX} if ctx.options.box_policy_dns_port else boxes

    @property
    def records_lost(self) -> int:
        """Records that could not be written."""
        return sum(sink.lost for sink in (self._log, self._console) if sink is not None)

    # Serving.

    def serve_own_port(self, box: str, socks: Sequence[socket.socket]) -> None:
        if self.gate is None or box not in self.gate.boxes:
            raise RuntimeError(f"no policy for box '{box}'")
        self.gate.serve(box, tcp=socks)

    def leave_own_port(self, box: str) -> None:
        if self.gate is not None:
            self.gate.leave(box)

    def running(self) -> None:
        self._running = True
        # What is loaded stays. Looking through it for garbage would hold up everything for 60 ms at a time.
        gc.collect()
        gc.freeze()
        if self.gate is None or not self.box_ids() <= self.gate.boxes.keys():
            self._stop_process("no policy is in force")
        # Depending on how fast the script was loaded, mitmproxy may be listening in its own mode already.
        task = asyncio.get_running_loop().create_task(self._replace_servers())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if ctx.options.box_policy_dns_port and self.gate is not None:
            self._serve_dns(self.gate, ctx.options.listen_host, ctx.options.box_policy_dns_port)

    def _serve_dns(self, gate: Gate, host: str, port: int) -> None:
        socks: list[socket.socket] = []
        try:
            socks += (udp := listen(host, port, socket.SOCK_DGRAM))
            socks += (tcp := listen(host, port))
            gate.serve(DEFAULT_BOX, dns_udp=udp, dns_tcp=tcp)
            log.info("box-policy gate answering DNS questions at port %d.", port)
        except OSError as error:
            self._stop_process(f"box_policy_dns_port: {error.strerror}")
        finally:
            for sock in socks:
                sock.close()

    async def _replace_servers(self) -> None:
        servers = self._proxyserver().servers
        wanted = [mode_specs.ProxyMode.parse(spec) for spec in ctx.options.mode]
        if {server.mode for server in servers} != set(wanted):
            await servers.update(wanted)
        if not all(server.is_running for server in servers):
            self._stop_process("can't listen")
        self.serving = True

    async def client_connected(self, client: Client) -> None:
        """The first hook of a connection, before any layer or dial: here the gate takes it over."""
        # Whatever happens next, mitmproxy serves it no further.
        before, client.error = client.error, "box-policy: taken over"
        handler = self._proxyserver().connections.get(client.id)
        if isinstance(handler, HttpHandler):
            client.error = before
            return
        if (
            self.gate is None
            or handler is None
            or not isinstance(client.proxy_mode, mode_specs.TransparentMode)
        ):
            log.warning("box-policy: refused a connection in mode %s", client.proxy_mode.full_spec)
            return
        io = handler.transports[client]
        if not isinstance(io.writer, asyncio.StreamWriter) or not isinstance(io.reader, asyncio.StreamReader):
            return
        transport = io.writer.transport
        if isinstance(transport, asyncio.ReadTransport) and transport.is_reading():
            transport.pause_reading()
        # What mitmproxy's reader holds already. There is no public way to ask for it without waiting.
        received = bytes(io.reader._buffer)  # type: ignore[attr-defined]
        own = io.writer.get_extra_info("socket")
        self.gate.adopt(socket.socket(fileno=os.dup(own.fileno())), received, DEFAULT_BOX)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """No dial without a verdict: only the gate's own HTTP connections may ask for one."""
        before, data.server.error = data.server.error, "box-policy: no verdict"
        handler = self._proxyserver().connections.get(data.client.id)
        if isinstance(handler, HttpHandler):
            data.server.error = before

    def _take_http(self, handed_over: HandedOver) -> None:
        if self._door is None:
            handed_over.sock.close()
            return
        self._door.take(ctx.master, mode_of(handed_over.claim.box.id), handed_over)

    def _proxyserver(self) -> Proxyserver:
        proxyserver = ctx.master.addons.get("proxyserver")
        if not isinstance(proxyserver, Proxyserver):
            raise RuntimeError("box-policy needs mitmproxy's proxyserver addon")
        return proxyserver

    # The end.

    def done(self) -> None:
        """Called at shutdown; and when mitmproxy takes the addon out while it goes on without it."""
        if not ctx.master.should_exit.is_set():
            self._stop_process("the addon was removed from a running mitmproxy: stopping, or all would pass")
        BoxInstance.serving = None
        if self.gate is not None:
            self.gate.stop()
        self._close_sinks()

    def _close_sinks(self) -> None:
        for sink in (self._log, self._console):
            if sink is not None:
                sink.close()

    def refuse(self, why: str) -> NoReturn:
        """Refuse a configuration: at start by not starting, later by keeping the old one (OptionsError)."""
        if not self._running:
            self._stop_process(f"{why}; not started")
        raise exceptions.OptionsError(f"box-policy: {why}")

    def _stop_process(self, why: str) -> None:
        """Without the addon mitmproxy would forward everything, so the process ends: at once, not by way
        of the event loop, on which connections are waiting."""
        sys.stderr.write(f"box-policy: {why}\n")
        sys.stderr.flush()
        self._close_sinks()
        self._exit_process(1)
