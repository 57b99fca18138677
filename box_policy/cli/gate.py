"""``box-policy gate``: the gate in a process of its own, behind a firewall redirect or beside an app."""

import asyncio
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from box_policy.cli.errors import USAGE, fail
from box_policy.cli.gate_process import LOOPBACK, GateOptions, run_gate
from box_policy.cli.operator_options import (
    LimitOption,
    NameServerOption,
    PrivateRangeOption,
    chosen_limits,
    name_server_address,
)
from box_policy.control.http.address import ControlError, TcpAddress, parse_control_address
from box_policy.control.http.token import read_token
from box_policy.policy.addresses import InvalidCidr, canonical_cidr

_PORT: Final = 8080
_DNS_PORT: Final = 5353
_SIDECAR_PORT: Final = 61001
_SIDECAR_DNS_PORT: Final = 61053
"""Not where applications listen: they share the namespace."""


class Choice(StrEnum):
    """What an operator may say of something that is neither good nor bad in itself."""

    ALLOW = "allow"
    DENY = "deny"


def gate(
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            envvar="BOX_POLICY_FILE",
            help="The policy: a YAML or JSON file, or a directory. Followed while it runs.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="BOX_POLICY_CONTROL",
            help="Serve the control API, at a unix socket or an IP address and port: see box-policy policy.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="BOX_POLICY_TOKEN_FILE",
            help="What holds the token of --control. Or set BOX_POLICY_CONTROL_TOKEN.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            envvar="BOX_POLICY_LISTEN",
            help="The address to listen on. [all; not with --sidecar]",
        ),
    ] = None,
    # Not BOX_POLICY_PORT: Kubernetes sets that in every pod next to a service that is called box-policy.
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="BOX_POLICY_LISTEN_PORT",
            help=f"Where the firewall redirects TCP to. [{_PORT}; with --sidecar {_SIDECAR_PORT}]",
        ),
    ] = None,
    dns_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            envvar="BOX_POLICY_LISTEN_DNS_PORT",
            help=f"Where it redirects port 53 to. [{_DNS_PORT}; with --sidecar {_SIDECAR_DNS_PORT}]",
        ),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar",
            envvar="BOX_POLICY_SIDECAR",
            help="Guard the network namespace it runs in: set the firewall rules too (CAP_NET_ADMIN).",
        ),
    ] = False,
    inbound: Annotated[
        Choice,
        typer.Option(
            envvar="BOX_POLICY_INBOUND", help="With --sidecar: connections from outside to what is guarded."
        ),
    ] = Choice.ALLOW,
    host_network: Annotated[
        bool,
        typer.Option(
            "--host-network",
            envvar="BOX_POLICY_HOST_NETWORK",
            help="With --sidecar: even if that is the machine's own, with all its programs.",
        ),
    ] = False,
    private_range: PrivateRangeOption = None,
    name_server: NameServerOption = None,
    limit: LimitOption = None,
    ech: Annotated[
        Choice,
        typer.Option(
            envvar="BOX_POLICY_ECH", help="TLS hellos with Encrypted Client Hello, or what looks like it."
        ),
    ] = Choice.ALLOW,
    resolve_for_cidrs: Annotated[
        bool,
        typer.Option(
            "--resolve-for-cidrs",
            envvar="BOX_POLICY_RESOLVE_FOR_CIDRS",
            help="Resolve names under a policy that has CIDRs alone, to addresses inside them.",
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="BOX_POLICY_LOG",
            help="Append every decision to a file, as JSON lines; - for stdout.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", envvar="BOX_POLICY_QUIET", help="Don't show decisions on stderr.")
    ] = False,
) -> None:
    """Enforce a policy on the traffic that a firewall redirects here, or with --sidecar that of a whole pod.

    Runs until it gets SIGTERM or SIGINT. The rules of --sidecar stay: without the gate there is no network.
    Exits with 2 if what was typed is wrong, or the policy; with 1 if this machine can't do it.
    """
    if policy is None and control is None:
        fail("no policy to enforce: name a file with --policy, or add --control to be told one", USAGE)
    if sidecar and listen is not None:
        fail("--listen: a sidecar listens on the loopback addresses alone; leave it out", USAGE)
    if not sidecar and (inbound is Choice.DENY or host_network):
        fail("--inbound and --host-network go with --sidecar", USAGE)
    try:
        address = None if control is None else parse_control_address(control)
        if sidecar and isinstance(address, TcpAddress):
            fail("--control: a sidecar's is a unix socket: a port could be taken by what it guards", USAGE)
        options = GateOptions(
            policy=policy,
            control=address,
            token=None if control is None else read_token(token_file, os.environ),
            hosts=LOOPBACK if sidecar else (listen or "",),
            port=port or (_SIDECAR_PORT if sidecar else _PORT),
            dns_port=dns_port or (_SIDECAR_DNS_PORT if sidecar else _DNS_PORT),
            sidecar=sidecar,
            inbound=inbound is Choice.ALLOW,
            host_network=host_network,
            private_ranges=[canonical_cidr(cidr) for cidr in private_range or ()],
            name_servers=[name_server_address(server) for server in name_server or ()],
            limits=chosen_limits(limit),
            deny_ech=ech is Choice.DENY,
            resolve_for_cidrs=resolve_for_cidrs,
            log=log,
            quiet=quiet,
        )
    except InvalidCidr as error:
        fail(f"--private-range: {error}", USAGE)
    except ControlError as error:
        fail(f"--control: {error}", USAGE)
    asyncio.run(run_gate(options))
