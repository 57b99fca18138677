"""A gate as a process: from its listeners and rules to its end."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from box_policy.audit.records import Entry
from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.cli.complaints import complaining
from box_policy.cli.errors import FAILURE, USAGE, fail
from box_policy.control.http.address import ControlAddress, ControlError
from box_policy.gate.limits import Limits

if TYPE_CHECKING:
    from box_policy.gate.gate import Gate
    from box_policy.sandbox.sidecar.guard import Guard

LOOPBACK: Final = ("127.0.0.1", "::1")
"""Where a sidecar listens."""
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass(frozen=True)
class GateOptions:
    """All that was asked for, checked as far as it can be before anything is started."""

    policy: Path | None
    control: ControlAddress | None
    token: str | None
    hosts: Sequence[str]
    port: int
    dns_port: int
    sidecar: bool
    inbound: bool
    host_network: bool
    private_ranges: Sequence[str]
    name_servers: Sequence[str]
    limits: Limits
    deny_ech: bool
    resolve_for_cidrs: bool
    log: Path | None
    quiet: bool


@dataclass
class _Listeners:
    tcp: list[socket.socket] = field(default_factory=list)
    dns_udp: list[socket.socket] = field(default_factory=list)
    dns_tcp: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for sock in (*self.tcp, *self.dns_udp, *self.dns_tcp):
            sock.close()


class _JsonConsole(Console):
    """Records as JSON lines, on a stream."""

    def _line(self, record: Entry) -> str:
        return record.as_json()

    def _lost_line(self, count: int) -> str:
        return f'{{"event":"lost","records":{count}}}'


class _State:
    """Whether the gate serves everything that it should."""

    def __init__(self) -> None:
        self.serving = False
        self.guard: Guard | None = None

    def ready(self) -> bool:
        return self.serving and (self.guard is None or self.guard.ready)


async def run_gate(options: GateOptions) -> None:
    """Serve until a signal says to stop. Ends the command if that can't be."""
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.enter_context(_stopped_by_signals(stop))
        cleanup.enter_context(complaining())
        state = _State()
        # The rules come first, whatever becomes of the rest: without a gate behind them nothing passes.
        guard = _guard(options, cleanup) if options.sidecar else None
        listeners = _listeners(options)
        cleanup.callback(listeners.close)
        strangers = [] if guard is None else _try_out(guard, listeners, cleanup)
        state.guard = guard
        served = await _start(options, state, cleanup)
        from box_policy.gate.mode import DEFAULT_BOX

        served.serve(DEFAULT_BOX, tcp=listeners.tcp, dns_udp=listeners.dns_udp, dns_tcp=listeners.dns_tcp)
        for sock in strangers:
            served.adopt(sock, b"", DEFAULT_BOX)
        state.serving = True
        gc.collect()
        gc.freeze()  # what is loaded stays, and need not be looked through for garbage
        typer.echo(f"box-policy: ready: {_described(options, listeners)}", err=True)
        await stop.wait()
        state.serving = False


def _listeners(options: GateOptions) -> _Listeners:
    from box_policy.gate.listening import listen

    listeners = _Listeners()
    for host in options.hosts:
        try:
            for port, kind, socks in (
                (options.port, socket.SOCK_STREAM, listeners.tcp),
                (options.dns_port, socket.SOCK_DGRAM, listeners.dns_udp),
                (options.dns_port, socket.SOCK_STREAM, listeners.dns_tcp),
            ):
                socks += listen(host, port, kind)
        except (OSError, UnicodeError) as error:
            missing = isinstance(error, OSError) and error.errno in _NO_IPV6
            if host == LOOPBACK[1] and options.sidecar and missing:
                continue  # without IPv6, nothing listens there: what the rules bring is refused
            listeners.close()
            said = error.strerror if isinstance(error, OSError) else f"{host!r} is no address"
            fail(f"{said}; choose with --listen, --port and --dns-port", FAILURE)
    return listeners


def _guard(options: GateOptions, cleanup: contextlib.AsyncExitStack) -> "Guard":
    """Set the rules."""
    from box_policy.sandbox.sidecar.errors import SidecarError
    from box_policy.sandbox.sidecar.guard import Guard
    from box_policy.sandbox.sidecar.namespace import check_namespace
    from box_policy.sandbox.sidecar.rules import SidecarRules

    try:
        check_namespace(host_network=options.host_network)
        guard = Guard(SidecarRules(os.geteuid(), options.port, options.dns_port, inbound=options.inbound))
        cleanup.callback(guard.close)
        guard.install()
    except SidecarError as error:
        fail(str(error), FAILURE)
    return guard


def _try_out(
    guard: "Guard", listeners: _Listeners, cleanup: contextlib.AsyncExitStack
) -> list[socket.socket]:
    """See the rules work. Returns connections that came before there was a gate to serve them."""
    from box_policy.sandbox.sidecar.errors import SidecarError

    try:
        probed = guard.try_out(listeners.tcp, listeners.dns_udp)
    except SidecarError as error:
        fail(str(error), FAILURE)
    for sock in probed.strangers:
        cleanup.callback(sock.close)
    if not probed.routes:
        typer.echo("box-policy: this network namespace has no route out: nothing can be reached", err=True)
    guard.start()
    return probed.strangers


def _check_name_servers(options: GateOptions) -> None:
    """What shares the network namespace could serve names at its addresses, and say what it likes."""
    from box_policy.gate.own_addresses import OwnAddresses

    own = OwnAddresses()
    for server in options.name_servers:
        if ip_address(server) in own:
            fail(f"--name-server: {server} is in the network that is guarded: anybody's here", USAGE)
    own.close()


async def _start(options: GateOptions, state: _State, cleanup: contextlib.AsyncExitStack) -> "Gate":
    """The gate, with its policy in force. It serves nothing yet."""
    from box_policy.control.plane import ControlPlane
    from box_policy.control.policy_file import PolicyFileError
    from box_policy.gate.embedded import EmbeddedGate
    from box_policy.gate.gate import Settings
    from box_policy.gate.mode import DEFAULT_BOX
    from box_policy.gate.search_domains import search_domains
    from box_policy.policy.model import NetworkPolicy
    from box_policy.sandbox.sidecar.rules import GATE_MARK

    if options.sidecar:
        _check_name_servers(options)
    audit = Audit()
    sinks = _sinks(options)
    for sink in sinks:
        audit.add_paced(sink)
        cleanup.callback(sink.close)
    settings = Settings(
        private_ranges=options.private_ranges,
        name_servers=options.name_servers,
        deny_ech=options.deny_ech,
        resolve_for_cidrs=options.resolve_for_cidrs,
        limits=options.limits,
        search_domains=search_domains() if options.sidecar else (),
        mark=GATE_MARK if options.sidecar else None,
        follow_host_files=not options.sidecar,
    )
    embedded = EmbeddedGate(settings, audit)
    cleanup.push_async_callback(embedded.close)
    embedded.start()
    plane = ControlPlane(
        embedded.gate, audit, ready=state.ready, records_lost=lambda: sum(sink.lost for sink in sinks)
    )
    cleanup.push_async_callback(plane.close)
    try:
        if options.policy is not None:
            plane.load_files(options.policy, [DEFAULT_BOX])
        else:
            plane.store.create(DEFAULT_BOX, NetworkPolicy.parse("deny-all"), source="start")
        if options.control is not None:
            plane.listen(options.control, options.token)
    except PolicyFileError as error:
        fail(str(error), USAGE)
    except ControlError as error:
        fail(f"--control: {error}", USAGE)
    plane.start()
    return embedded.gate


def _sinks(options: GateOptions) -> list[JsonLines | Console]:
    sinks: list[JsonLines | Console] = []
    if not options.quiet:
        sinks.append(Console(sys.stderr))
    if options.log == Path("-"):
        sinks.append(_JsonConsole(sys.stdout))
    elif options.log is not None:
        try:
            sinks.append(JsonLines(options.log))
        except OSError as error:
            fail(f"--log {options.log}: {error.strerror}", USAGE)
    return sinks


@contextlib.contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _described(options: GateOptions, listeners: _Listeners) -> str:
    if options.sidecar:
        inbound = "" if options.inbound else ", and nothing comes in"
        return f"this network namespace is behind the policy{inbound}"
    hosts = ", ".join(str(sock.getsockname()[0]) for sock in listeners.tcp)
    return f"redirect TCP to port {options.port} and port 53 to port {options.dns_port} of {hosts}"
