"""``box-policy serve``: boxes for others, through the API of the hosted Upstash Box service."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from box_policy.audit.sinks import Audit, Console, JsonLines
from box_policy.cli.backend import (
    IMAGE_VARIABLE,
    Backend,
    BackendOption,
    chosen_backend,
    host_tools,
    make_launcher,
)
from box_policy.cli.check import read_or_exit
from box_policy.cli.complaints import complaining
from box_policy.cli.errors import FAILURE, USAGE, fail
from box_policy.cli.operator_options import (
    LimitOption,
    NameServerOption,
    PrivateRangeOption,
    chosen_limits,
    name_server_address,
)
from box_policy.cli.remote import default_address
from box_policy.control.http.address import (
    ControlError,
    InheritedAddress,
    ListeningAddress,
    TcpAddress,
    UnixAddress,
    parse_control_address,
)
from box_policy.control.http.token import read_token
from box_policy.gate.limits import Limits
from box_policy.policy.addresses import InvalidCidr, canonical_cidr
from box_policy.policy.model import NetworkPolicy

if TYPE_CHECKING:
    from box_policy.cli.backend import AnyLauncher
    from box_policy.service.images import Images
    from box_policy.service.runtimes import ProgramSource

log = logging.getLogger(__name__)

_KEY: Final = "BOX_POLICY_API_KEY"


def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve on TCP, for clients with the key.")
    ] = None,
    uds: Annotated[
        str | None, typer.Option(metavar="PATH", help="Serve on a unix socket, for this user and root.")
    ] = None,
    inherit: Annotated[int | None, typer.Option(hidden=True)] = None,
    owner: Annotated[int | None, typer.Option(hidden=True)] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"What holds the key that clients send. Or set {_KEY}."),
    ] = None,
    default_policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The policy of boxes that are made without one. [allow-all]"),
    ] = None,
    snapshots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep snapshots here. Else they go when the service does."),
    ] = None,
    backend: BackendOption = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[RUNTIME=]IMAGE",
            help="A container image that boxes may be made of, or those of one runtime; the first without a "
            f"runtime is the default. Implies docker. Repeatable; or set {IMAGE_VARIABLE}.",
        ),
    ] = None,
    any_image: Annotated[bool, typer.Option("--any-image", hidden=True)] = False,
    rootfs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[RUNTIME=]DIR",
            help="A root directory whose programs boxes have, or those of one runtime, in place of this "
            "machine's. Repeatable.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:BOUNDS", help="What a size allows: small:memory=1GiB,disk=512MiB,cpus=1,pids=256."
        ),
    ] = None,
    max_boxes: Annotated[int, typer.Option(min=1, max=10_000, help="Boxes at once.")] = 256,
    private_range: PrivateRangeOption = None,
    name_server: NameServerOption = None,
    limit: LimitOption = None,
    log: Annotated[
        Path | None,
        typer.Option(envvar="BOX_POLICY_LOG", help="Append every decision to a file, as JSON lines."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every decision on stderr.")] = False,
) -> None:
    """Serve boxes: the API of the hosted Upstash Box service, whose clients work with this one's address.

    The control API is served at the same address: see box-policy policy, tail and status.
    """
    chosen, images = chosen_backend(backend, image, needs_image=not any_image)
    if rootfs and chosen is Backend.DOCKER:
        fail("--rootfs is for boxes of namespaces; those of Docker have the programs of an --image", USAGE)
    try:
        options = _Options(
            backend=chosen,
            images=None if chosen is Backend.NAMESPACES else _images(images, any_image),
            address=_address(listen, uds, inherit),
            key=_key(key_file),
            default_policy=None if default_policy is None else read_or_exit(default_policy),
            snapshots=snapshots,
            rootfs=rootfs or (),
            sizes=size or (),
            max_boxes=max_boxes,
            private_ranges=[canonical_cidr(cidr) for cidr in private_range or ()],
            name_servers=[name_server_address(server) for server in name_server or ()],
            limits=chosen_limits(limit),
        )
    except (ControlError, InvalidCidr) as error:
        fail(str(error), USAGE)
    if options.key is None and isinstance(options.address, TcpAddress):
        fail(
            f"--listen {listen}: on TCP whoever knows the key may make boxes: set {_KEY} to one "
            "(openssl rand -hex 32), or name a file with --key-file; a unix socket (--uds) needs none",
            USAGE,
        )
    asyncio.run(_serve(options, owner, log, verbose))


@dataclass(frozen=True)
class _Options:
    """All that was asked for, checked as far as it can be before anything is started."""

    backend: Backend
    images: "Images | None"
    """None: boxes have this machine's programs, or those of ``rootfs``."""
    address: ListeningAddress
    key: str | None
    default_policy: NetworkPolicy | None
    snapshots: Path | None
    rootfs: Sequence[str]
    sizes: Sequence[str]
    max_boxes: int
    private_ranges: Sequence[str]
    name_servers: Sequence[str]
    limits: Limits


def _address(listen: str | None, uds: str | None, inherit: int | None) -> ListeningAddress:
    if sum(option is not None for option in (listen, uds, inherit)) > 1:
        fail("give --listen or --uds, not both", USAGE)
    if inherit is not None:
        return InheritedAddress(inherit)
    if listen is not None:
        address = parse_control_address(listen)
        if isinstance(address, TcpAddress):
            return address
        fail(f"--listen {listen}: that is no HOST:PORT; --uds takes the path of a socket", USAGE)
    return parse_control_address(f"unix:{Path(uds).absolute()}" if uds else default_address())


def _key(file: Path | None) -> str | None:
    return read_token(file, os.environ, variable=_KEY, word="key")


def _images(settings: Sequence[str], allows_any: bool) -> "Images":
    from box_policy.service.images import Images, InvalidImageError

    try:
        return Images.parse(settings, allows_any=allows_any)
    except InvalidImageError as error:
        fail(f"--image: {error}", USAGE)


async def _serve(options: _Options, owner: int | None, log: Path | None, verbose: bool) -> None:
    from box_policy.sandbox.launcher import SandboxError

    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.enter_context(_stopped_by(stop, owner))
        cleanup.enter_context(complaining())
        audit = Audit()
        written: list[JsonLines | Console] = []
        try:
            if log is not None:
                written.append(JsonLines(log))
        except OSError as error:
            fail(f"--log {log}: {error.strerror}", USAGE)
        if verbose:
            written.append(Console(sys.stderr))
        for sink in written:
            audit.add_paced(sink)
            cleanup.callback(sink.close)
        launcher = make_launcher(options.backend)
        cleanup.push_async_callback(launcher.close)
        try:
            await _warm_up(launcher, options)
        except SandboxError as error:
            fail(str(error), FAILURE)
        address = await _start(options, launcher, audit, lambda: sum(sink.lost for sink in written), cleanup)
        gc.freeze()  # what is loaded stays, and need not be looked through for garbage
        if owner is None:
            _announce(address, options)
        await stop.wait()


async def _warm_up(launcher: "AnyLauncher", options: _Options) -> None:
    """Find out now whether there can be boxes. SandboxError if not."""
    from box_policy.sandbox.namespaces import NamespaceLauncher

    if isinstance(launcher, NamespaceLauncher):
        # Another process, which imports what it needs while this one imports mitmproxy.
        launcher.warm_up()
        return
    for image in sorted(options.images.allowed if options.images is not None else ()):
        if not await launcher.has_image(image):
            log.warning("image %s is not there yet: it is pulled for the first box that is made of it", image)


async def _start(
    options: _Options,
    launcher: "AnyLauncher",
    audit: Audit,
    records_lost: Callable[[], int],
    cleanup: contextlib.AsyncExitStack,
) -> ListeningAddress:
    from box_policy.gate.gate import Settings
    from box_policy.service.runtimes import InvalidRootError
    from box_policy.service.service import Service, ServiceSettings
    from box_policy.service.sizes import InvalidSizeError, parse_sizes
    from box_policy.service.snapshots import InvalidStorageError

    try:
        service = Service(
            ServiceSettings(
                gate=Settings(
                    private_ranges=options.private_ranges,
                    name_servers=options.name_servers,
                    limits=options.limits,
                ),
                programs=_programs(options),
                sizes=parse_sizes(options.sizes),
                max_boxes=options.max_boxes,
                default_policy=options.default_policy,
                snapshots=options.snapshots,
            ),
            launcher,
            audit,
            records_lost=records_lost,
        )
        cleanup.push_async_callback(service.close)
        return service.listen(options.address, options.key)
    except InvalidRootError as error:
        fail(f"--rootfs: {error}", USAGE)
    except InvalidSizeError as error:
        fail(f"--size: {error}", USAGE)
    except InvalidStorageError as error:
        fail(f"--snapshots: {error}", USAGE)
    except ControlError as error:
        fail(str(error), USAGE)


def _programs(options: _Options) -> "ProgramSource":
    """Where the programs of boxes come from. InvalidRootError if a root is none."""
    if options.images is not None:
        return options.images
    from box_policy.service.runtimes import Runtimes, parse_roots

    tools, path = host_tools(options.backend)
    return Runtimes(path["PATH"], tools, parse_roots(options.rootfs))


@contextlib.contextmanager
def _stopped_by(stop: asyncio.Event, owner: int | None) -> Iterator[None]:
    """Stop when told by a signal, or with the process that this one was started for."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, stop.set)
                stack.callback(loop.remove_signal_handler, number)
        if owner is not None:
            # Two ways: its pidfd tells of its end, whatever it has forked; the pipe's end tells of an exec().
            fds = [sys.stdin.fileno()]
            try:
                fds.append(os.pidfd_open(owner))
                stack.callback(os.close, fds[-1])
            except ProcessLookupError:
                stop.set()
            if os.getppid() != owner:
                stop.set()  # it had ended before, and the number may be another's
            for fd in fds:
                loop.add_reader(fd, stop.set)
                stack.callback(loop.remove_reader, fd)
        yield


def _announce(address: ListeningAddress, options: _Options) -> None:
    key = f" BOX_POLICY_API_KEY=${_KEY}" if options.key is not None else ""
    match address:
        case TcpAddress():
            client = f"UPSTASH_BOX_BASE_URL=http://{address} UPSTASH_BOX_API_KEY=${_KEY}"
        case UnixAddress():
            client = f"BOX_POLICY_BASE_URL=unix://{address.path}" + key
        case InheritedAddress():
            return  # whoever made the socket knows where it is
    typer.echo(f"box-policy: serving boxes at {address}; a client takes:\n  {client}", err=True)
