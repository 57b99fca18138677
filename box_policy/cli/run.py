"""``box-policy run``: one program in a box of its own, behind a policy."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from box_policy.audit.records import Entry, Outcome, PolicyRecord
from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.cli.backend import (
    IMAGE_VARIABLE,
    Backend,
    BackendOption,
    chosen_image,
    host_tools,
    make_launcher,
    not_found,
)
from box_policy.cli.denials import Denials
from box_policy.cli.errors import FAILURE, USAGE, fail
from box_policy.cli.operator_options import chosen_limits, name_server_address
from box_policy.cli.policy_options import (
    AllowAllOption,
    AllowCidrOption,
    AllowOption,
    DenyCidrOption,
    chosen_policy,
)
from box_policy.cli.signals import Signals
from box_policy.cli.terminal import Streams, set_window_size
from box_policy.cli.work_directory import control_socket, work_directory
from box_policy.gate.limits import Limits
from box_policy.policy.addresses import InvalidCidr, canonical_cidr
from box_policy.policy.model import NetworkPolicy
from box_policy.sandbox.launcher import Box, BoxSpec, ProgramNotFoundError, ProgramSpec, SandboxError

if TYPE_CHECKING:
    from box_policy.gate.gate import Gate

_BOX = "box"


@dataclass(frozen=True)
class _Run:
    """All that was asked for, checked."""

    command: Sequence[str]
    policy: NetworkPolicy | None
    """None if there is a file to follow."""
    watch: Path | None
    control: str | None
    token_file: Path | None
    private_ranges: Sequence[str]
    name_servers: Sequence[str]
    limits: Limits
    backend: Backend
    spec: BoxSpec
    env: dict[str, str]
    log: Path | None
    verbose: bool
    quiet: bool
    json: bool


def run(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, best behind --.")],
    policy: Annotated[Path | None, typer.Option(help="A policy file, YAML or JSON.")] = None,
    watch: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same, and follow what becomes of the file.")
    ] = None,
    allow: AllowOption = None,
    allow_cidr: AllowCidrOption = None,
    deny_cidr: DenyCidrOption = None,
    allow_all: AllowAllOption = False,
    deny_all: Annotated[bool, typer.Option("--deny-all", help="Allow nothing: the default.")] = False,
    private_range: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Let the policy open a private range. Repeatable."),
    ] = None,
    name_server: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Ask this name server, not those of resolv.conf."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="What the box may cost the gate: connections=512. Repeatable."
        ),
    ] = None,
    backend: BackendOption = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help=f"A container image whose programs the box has; implies docker. Or set {IMAGE_VARIABLE}.",
        ),
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
    control: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Serve the control API, at a unix socket or 127.0.0.1:port: see box-policy policy.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What holds the token of --control.")
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
    try:
        chosen, image = chosen_image(backend, image)
        tools, path = host_tools(chosen)
        watched = _watched(watch)
        asked = _Run(
            command=command,
            policy=_policy(watched, policy, allow, allow_cidr, deny_cidr, allow_all, deny_all),
            watch=watched,
            control=control,
            token_file=token_file,
            private_ranges=[canonical_cidr(cidr) for cidr in private_range or ()],
            name_servers=[name_server_address(server) for server in name_server or ()],
            limits=chosen_limits(limit),
            backend=chosen,
            spec=BoxSpec(
                _BOX,
                image=image,
                workdir=work_directory(
                    workdir, {"--log": log, "--watch": watched, "--control": control_socket(control)}
                ),
                read_only=(*tools, *(read_only or ())),
            ),
            env=path | _environment(env or ()),
            log=log,
            verbose=verbose,
            quiet=quiet,
            json=json,
        )
    except InvalidCidr as error:
        fail(f"--private-range: {error}", USAGE)
    raise typer.Exit(asyncio.run(_run(asked)))


def _watched(name: str | None) -> Path | None:
    if name == "":
        fail("--watch: an empty name (an unset variable?)", USAGE)
    return None if name is None else Path(name)


def _policy(watch: Path | None, file: Path | None, *options: Any) -> NetworkPolicy | None:
    """The policy that was asked for; None if there is a file to follow."""
    if watch is None:
        return chosen_policy(file, *options) or NetworkPolicy.parse("deny-all")
    if file is not None or any(options):
        fail("--watch takes the place of --policy, --allow-all, --deny-all and of lists", USAGE)
    return None


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


class _ControlFailedError(Exception):
    """The policy's file, or the control endpoint, can't be used as asked."""


class _OnlyPolicies:
    """Lets records of policies through to a console that is not to show every decision."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, record: Entry) -> None:
        if not isinstance(record, PolicyRecord):
            return
        if record.generation > 1 or record.outcome is not Outcome.ACCEPTED:
            self._console(record)


async def _run(asked: _Run) -> int:
    denials = Denials()
    audit = Audit(denials)
    log: JsonLines | None = None
    if asked.log is not None:
        try:
            log = JsonLines(asked.log)
        except OSError as error:
            fail(f"--log {asked.log}: {error.strerror}", USAGE)
        audit.add_paced(log)
    console: Console | None = None
    if asked.verbose or asked.watch or asked.control:
        console = Console(sys.stderr)
        audit.add_paced(console if asked.verbose else _OnlyPolicies(console))
    with Signals() as signals:
        try:
            status = await _run_in_box(asked, audit, signals)
        except asyncio.CancelledError:
            if not signals.caught:
                raise
            return 128 + signals.caught
        except ProgramNotFoundError as error:
            fail(not_found(str(error), asked.command[0], asked.spec.image), FAILURE)
        except SandboxError as error:
            fail(str(error), FAILURE)
        except _ControlFailedError as error:
            fail(str(error), USAGE)
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


async def _run_in_box(asked: _Run, audit: Audit, signals: Signals) -> int:
    async with contextlib.AsyncExitStack() as cleanup:
        launcher = make_launcher(asked.backend)
        cleanup.push_async_callback(launcher.close)
        creating = asyncio.create_task(launcher.create(asked.spec))
        # The box is made by another process; meanwhile this one imports mitmproxy, which takes longest.
        await asyncio.sleep(0)
        from box_policy.gate.embedded import EmbeddedGate
        from box_policy.gate.gate import Settings

        box = await creating
        settings = Settings(
            private_ranges=asked.private_ranges, name_servers=asked.name_servers, limits=asked.limits
        )
        embedded = EmbeddedGate(settings, audit)
        cleanup.push_async_callback(embedded.close)
        embedded.start()
        await _control(asked, box.id, embedded.gate, audit, cleanup)
        gc.freeze()  # what is loaded stays, and need not be looked through for garbage
        sockets = box.listeners
        embedded.gate.serve(box.id, tcp=sockets.tcp, dns_udp=sockets.dns_udp, dns_tcp=sockets.dns_tcp)
        return await _run_program(asked, box, signals)


async def _control(
    asked: _Run, box_id: str, gate: "Gate", audit: Audit, cleanup: contextlib.AsyncExitStack
) -> None:
    """Put the policy in force, and let it be changed as was asked for."""
    from box_policy.control.store import PolicyStore

    if asked.policy is not None and asked.control is None:
        PolicyStore(gate, audit).create(box_id, asked.policy, source="the command line")
        return
    # Only now: what serves the endpoint takes a while to import.
    from box_policy.control.endpoint import ControlError, parse_control_address
    from box_policy.control.http.token import read_token
    from box_policy.control.plane import ControlPlane
    from box_policy.control.policy_file import PolicyFileError

    plane = ControlPlane(gate, audit)
    cleanup.push_async_callback(plane.close)
    try:
        if asked.watch is not None:
            plane.load_files(asked.watch, [box_id])
        elif asked.policy is not None:
            plane.store.create(box_id, asked.policy, source="the command line")
        if asked.control is not None:
            plane.listen(parse_control_address(asked.control), read_token(asked.token_file, os.environ))
    except PolicyFileError as error:
        raise _ControlFailedError(str(error)) from None
    except ControlError as error:
        raise _ControlFailedError(f"--control: {error}") from None
    plane.start()


async def _run_program(asked: _Run, box: Box, signals: Signals) -> int:
    streams = Streams()
    signals.hold()
    program = await box.start(
        ProgramSpec(
            asked.command,
            env=asked.env,
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
