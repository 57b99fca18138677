"""``box-policy run``: one program in a box of its own, behind a policy."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

import typer

from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.cli.denials import Denials
from box_policy.cli.errors import FAILURE, USAGE, fail
from box_policy.cli.terminal import Streams, set_window_size
from box_policy.policy.addresses import InvalidCidr, canonical_cidr
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.sandbox.launcher import Box, BoxSpec, Program, ProgramNotFoundError, ProgramSpec, SandboxError

_BOX = "box"
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3
"""Interrupts after which the box is closed, whatever the program makes of them."""


@dataclass(frozen=True)
class _Run:
    """All that was asked for, checked."""

    command: Sequence[str]
    policy: NetworkPolicy
    private_ranges: Sequence[str]
    name_servers: Sequence[str]
    spec: BoxSpec
    path: str
    env: dict[str, str]
    log: Path | None
    verbose: bool
    quiet: bool
    json: bool


def run(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, best behind --.")],
    policy: Annotated[Path | None, typer.Option(help="A policy file, YAML or JSON.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Allow a host name, or *.suffix. Repeatable.")
    ] = None,
    allow_cidr: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Allow a range of addresses. Repeatable.")
    ] = None,
    deny_cidr: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Deny a range, before all that is allowed.")
    ] = None,
    allow_all: Annotated[bool, typer.Option("--allow-all", help="Allow every public address.")] = False,
    deny_all: Annotated[bool, typer.Option("--deny-all", help="Allow nothing: the default.")] = False,
    private_range: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Let the policy open a private range. Repeatable."),
    ] = None,
    name_server: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Ask this name server, not those of resolv.conf."),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option(metavar="DIR", help="A directory to mount read-write as /workspace.")
    ] = None,
    read_only: Annotated[
        list[Path] | None, typer.Option(help="A directory to show read-only at its own path. Repeatable.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Set a variable, or pass on the caller's. Repeatable."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Append every decision to a file, as JSON lines.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every decision on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table of denials at the end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The table of denials as JSON lines.")] = False,
) -> None:
    """Run a program in a box that reaches only what is allowed.

    Without a policy nothing is reachable. The exit status is the program's own (128 + n after signal n);
    2 if what was typed is wrong, 1 if this machine can't run the box or has no such program or directory.
    """
    from box_policy.sandbox.namespaces.toolchains import find_toolchains

    try:
        toolchains = find_toolchains(os.environ)
        asked = _Run(
            command=command,
            policy=_policy(policy, allow, allow_cidr, deny_cidr, allow_all, deny_all),
            private_ranges=[canonical_cidr(cidr) for cidr in private_range or ()],
            name_servers=[_address(server) for server in name_server or ()],
            spec=BoxSpec(
                _BOX, workdir=_workdir(workdir, log), read_only=(*toolchains.read_only, *(read_only or ()))
            ),
            path=toolchains.path,
            env=_environment(env or ()),
            log=log,
            verbose=verbose,
            quiet=quiet,
            json=json,
        )
    except InvalidCidr as error:
        fail(f"--private-range: {error}", USAGE)
    raise typer.Exit(asyncio.run(_run(asked)))


def _policy(
    file: Path | None,
    allow: Sequence[str] | None,
    allow_cidr: Sequence[str] | None,
    deny_cidr: Sequence[str] | None,
    allow_all: bool,
    deny_all: bool,
) -> NetworkPolicy:
    lists = {"allowed_domains": allow, "allowed_cidrs": allow_cidr, "denied_cidrs": deny_cidr}
    given = {key: list(value) for key, value in lists.items() if value}
    if sum((file is not None, bool(given), allow_all, deny_all)) > 1:
        fail(
            "give one of --policy, --allow-all, --deny-all, or a list of --allow, --allow-cidr, --deny-cidr",
            USAGE,
        )
    if file is not None:
        from box_policy.control.policy_file import PolicyFileError, read_policy

        try:
            return read_policy(file)
        except PolicyFileError as error:
            fail(str(error), USAGE)
    if allow_all:
        return NetworkPolicy.parse("allow-all")
    if not given:
        return NetworkPolicy.parse("deny-all")
    try:
        return NetworkPolicy.parse({"mode": "custom", **given})
    except PolicyError as error:
        fail("\n".join(_as_option(str(issue)) for issue in error.issues), USAGE)


def _as_option(issue: str) -> str:
    """An issue with the option that was typed in place of the key that it became."""
    options = {"allowed_domains": "--allow", "allowed_cidrs": "--allow-cidr", "denied_cidrs": "--deny-cidr"}
    key, bracket, rest = issue.partition("[")
    return f"{options[key]}: {rest.partition(']: ')[2]}" if bracket and key in options else issue


def _workdir(directory: str | None, log: Path | None) -> Path | None:
    """The directory, if it is one to give away."""
    if directory is None:
        return None
    if not directory:
        fail("--workdir: an empty name (an unset variable?)", USAGE)
    real = Path(directory).resolve()
    if real == Path("/"):
        fail("--workdir /: the box would have the whole host; name a directory in it", USAGE)
    if log is not None and log.resolve().is_relative_to(real):
        fail(f"--log {log}: in the work directory the box could change its own records", USAGE)
    return real


def _address(server: str) -> str:
    try:
        return str(ip_address(server))
    except ValueError:
        fail(f"--name-server: {server!r} is not an IP address", USAGE)


def _environment(given: Sequence[str]) -> dict[str, str]:
    environment = {name: os.environ[name] for name in ("TERM", "COLORTERM", "NO_COLOR") if name in os.environ}
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            fail(f"--env: {item!r} names no variable", USAGE)
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


class _Signals:
    """Passes the caller's signals on to the program. Before there is one, they end the run; while it is
    being started they wait for it."""

    def __init__(self) -> None:
        self.caught = 0
        self.impatient = asyncio.Event()
        self._interrupts = 0
        self._forwarded: list[signal.Signals] = []
        self._starting = False
        self._waiting: list[int] = []
        self._program: Program | None = None
        self._run = asyncio.current_task()

    def __enter__(self) -> Self:
        # What the caller ignores (nohup) stays ignored.
        self._forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._forwarded:
            asyncio.get_running_loop().add_signal_handler(number, self._take, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._forwarded:
            asyncio.get_running_loop().remove_signal_handler(number)

    def hold(self) -> None:
        self._starting = True

    def send_to(self, program: Program) -> None:
        self._program = program
        for number in self._waiting:
            self._take(number)

    def _take(self, number: int) -> None:
        if self._program is None and self._starting:
            self._waiting.append(number)
        elif self._program is not None:
            self._program.send_signal(number)
            self._interrupts += number in _INTERRUPTS
            if self._interrupts >= _PATIENCE:
                self.impatient.set()
        elif self._run is not None and not self.caught:
            self.caught = number
            self._run.cancel()


async def _run(asked: _Run) -> int:
    denials = Denials()
    audit = Audit(denials)
    log: JsonLines | None = None
    if asked.log is not None:
        try:
            log = JsonLines(asked.log)
        except OSError as error:
            fail(f"--log {asked.log}: {error.strerror}", USAGE)
        audit.add(log)
    console = Console(sys.stderr) if asked.verbose else None
    if console is not None:
        audit.add(console)
    with _Signals() as signals:
        try:
            status = await _run_in_box(asked, audit, signals)
        except asyncio.CancelledError:
            if not signals.caught:
                raise
            return 128 + signals.caught
        except ProgramNotFoundError as error:
            fail(_not_found(str(error), asked), FAILURE)
        except SandboxError as error:
            fail(str(error), FAILURE)
        finally:
            for written in (log, console):
                if written is not None:
                    written.close()
    _report(asked, denials, log)
    return status


def _report(asked: _Run, denials: Denials, log: JsonLines | None) -> None:
    """What the caller should know at the end."""
    try:
        if len(denials) and not asked.quiet:
            if asked.json:
                denials.write_json(sys.stderr)
            else:
                denials.write_table(sys.stderr)
        if log is not None and log.lost:
            typer.echo(f"box-policy: {log.lost} records could not be written to {asked.log}", err=True)
        sys.stderr.flush()
    except (OSError, ValueError):
        # The status is the program's, also if nobody reads this. What is left of it would be flushed at exit,
        # fail again, and change the status.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


async def _run_in_box(asked: _Run, audit: Audit, signals: _Signals) -> int:
    from box_policy.sandbox.namespaces import NamespaceLauncher

    async with contextlib.AsyncExitStack() as cleanup:
        launcher = NamespaceLauncher()
        cleanup.push_async_callback(launcher.close)
        creating = asyncio.create_task(launcher.create(asked.spec))
        # The box is made by another process; meanwhile this one imports mitmproxy, which takes longest.
        await asyncio.sleep(0)
        from box_policy.gate.embedded import EmbeddedGate
        from box_policy.gate.gate import Settings

        box = await creating
        settings = Settings(private_ranges=asked.private_ranges, name_servers=asked.name_servers)
        embedded = EmbeddedGate(settings, audit)
        cleanup.push_async_callback(embedded.close)
        embedded.start()
        embedded.gate.put_policy(box.id, embedded.gate.compile(asked.policy))
        sockets = box.listeners
        embedded.gate.serve(box.id, tcp=sockets.tcp, dns_udp=sockets.dns_udp, dns_tcp=sockets.dns_tcp)
        return await _run_program(asked, box, signals)


async def _run_program(asked: _Run, box: Box, signals: _Signals) -> int:
    streams = Streams()
    signals.hold()
    program = await box.start(
        ProgramSpec(
            asked.command,
            env={"PATH": asked.path, **asked.env},
            stdin=streams.program[0],
            stdout=streams.program[1],
            stderr=streams.program[2],
            terminal=streams.window_size(),
        )
    )
    signals.send_to(program)
    master = program.terminal
    loop = asyncio.get_running_loop()
    with streams.raw_mode():
        if master is not None:
            loop.add_signal_handler(signal.SIGWINCH, _resize, master, streams)
        carriers = streams.carry(master)
        waiting = asyncio.create_task(program.wait())
        giving_up = asyncio.create_task(signals.impatient.wait())
        await asyncio.wait({waiting, giving_up}, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_signal_handler(signal.SIGWINCH)
        # The program's end is the box's: what it left running ends too, and with it the last output.
        await box.close()
        status = await waiting
        # The caller may be slow to read; a signal or two more, and what it hasn't read is given up.
        finishing = asyncio.create_task(asyncio.to_thread(carriers.finish))
        await asyncio.wait({finishing, giving_up}, return_when=asyncio.FIRST_COMPLETED)
        giving_up.cancel()
    if not finishing.done():
        os._exit(128 + signal.SIGKILL)  # a thread that is stuck in a write would be waited for
    return status if status >= 0 else 128 - status


def _resize(master: int, streams: Streams) -> None:
    size = streams.window_size()
    if size is not None:
        set_window_size(master, size)


def _not_found(message: str, asked: _Run) -> str:
    """What is missing, and where the host has it if it does."""
    on_host = shutil.which(asked.command[0])
    if on_host is None:
        return message
    return f"{message}; {on_host} is in a directory that boxes don't see: --read-only shows it"
