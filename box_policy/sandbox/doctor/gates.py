"""What gates need: mitmproxy, name servers; beside a program in its network namespace, power over that."""

import errno
import os
import socket
from typing import Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host
from box_policy.sandbox.doctor.trial import Outcome, Trial, attempt

_IMPORT_SECONDS: Final = 30.0
"""From a cold and slow disk."""
_SECONDS: Final = 5.0
_DNS_PORT: Final = 53
_SO_MARK: Final = 36  # asm-generic/socket.h
_SERVERS_SHOWN: Final = 8


def check_mitmproxy(host: Host) -> Finding:
    """mitmproxy, and the addon on top of it."""
    return judge_mitmproxy(attempt(_import_mitmproxy, _IMPORT_SECONDS))


def _import_mitmproxy(trial: Trial) -> None:
    trial.step("import of mitmproxy")
    from mitmproxy import version

    trial.tell("version", version.VERSION)
    trial.step("import of the addon")
    import box_policy.gate.addon  # noqa: F401


def judge_mitmproxy(outcome: Outcome) -> Finding:
    """What the trial of its import says."""
    if outcome.failure is None:
        return Finding("mitmproxy", "ok", str(outcome.facts.get("version")))
    remedy = Remedy(
        "Install box-policy anew, with what it needs, in a virtual environment:",
        ("python3 -m pip install --force-reinstall box-policy",),
    )
    return Finding("mitmproxy", "missing", str(outcome.failure), (remedy,))


def check_name_servers(host: Host) -> Finding:
    """Those of resolv.conf(5), and whether there is a route to them. Nothing is sent."""
    return judge_name_servers(attempt(_find_name_servers, _SECONDS))


def _find_name_servers(trial: Trial) -> None:
    import dns.inet

    from box_policy.gate.resolver import NameServers

    trial.step("/etc/resolv.conf")
    servers = NameServers().current()
    trial.tell("servers", servers[:_SERVERS_SHOWN])
    unreachable = {}
    for server in servers[:_SERVERS_SHOWN]:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                # Of a datagram socket it is the look-up of a route, and no more.
                sock.connect(dns.inet.low_level_address_tuple((server, _DNS_PORT)))
        except OSError as error:
            unreachable[server] = os.strerror(error.errno or errno.EIO)
    trial.tell("unreachable", unreachable)


def judge_name_servers(outcome: Outcome) -> Finding:
    """What resolv.conf and the routes say."""
    name = "name servers"
    servers, unreachable = outcome.facts.get("servers"), outcome.facts.get("unreachable")
    remedy = Remedy(
        "Name one that can be reached, with --name-server ADDRESS, or put it into /etc/resolv.conf."
    )
    if outcome.failure is not None or servers is None or unreachable is None:
        return Finding(name, "limited", str(outcome.failure), (remedy,))
    if not servers:
        return Finding(name, "limited", "none in /etc/resolv.conf: no name can be resolved", (remedy,))
    found = ", ".join(
        f"{server} ({unreachable[server]})" if server in unreachable else server for server in servers
    )
    return Finding(name, "limited" if unreachable else "ok", found, (remedy,) if unreachable else ())


def check_sidecar(host: Host) -> Finding:
    """Whether a gate could set rules in the network namespace that it is in, and would do no harm there."""
    return judge_sidecar(attempt(_ask_for_power, _SECONDS))


def _ask_for_power(trial: Trial) -> None:
    from box_policy.sandbox.sidecar.errors import SidecarError
    from box_policy.sandbox.sidecar.namespace import check_namespace, is_of_the_host

    trial.step("whose network namespace this is")
    trial.tell("host's", is_of_the_host())
    try:
        check_namespace(host_network=True)
    except SidecarError as error:
        trial.tell("refused", str(error).removeprefix("--sidecar: "))
    trial.step("SO_MARK")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, 1)
    trial.step("nf_tables")
    from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
    from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETGEN, nft_gen_msg

    from box_policy.sandbox import netlink

    message = nft_gen_msg()
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN  # it changes nothing
    message["header"]["flags"] = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
    message.encode()
    netlink.transact(netlink.NETLINK_NETFILTER, bytes(message.data))


def judge_sidecar(outcome: Outcome) -> Finding:
    """What the kernel's answers come to."""
    name, failure = "network namespace", outcome.failure
    if outcome.facts.get("host's"):
        remedy = Remedy(
            "A sidecar is for the network namespace of a container, where it and the program are alone. Run"
            " box-policy doctor there, or see docs/deploy.md."
        )
        found = "the machine's own: a sidecar's rules would catch every program's traffic"
        return Finding(name, "missing", found, (remedy,))
    if failure is not None and "host's" not in outcome.facts:
        return Finding(name, "missing", str(failure))
    if failure is not None:
        remedies: tuple[Remedy, ...] = (
            Remedy("Start the gate's container, and not the program's, with:", ("--cap-add NET_ADMIN",)),
            Remedy(
                "In Kubernetes, in the gate's securityContext alone:",
                ("capabilities: {drop: [ALL], add: [NET_ADMIN]}",),
            ),
        )
        if failure.number not in (errno.EPERM, errno.EACCES):
            remedies = (Remedy("See what is said of nf_tables."),)
        return Finding(name, "missing", f"not the machine's own; {failure}", remedies)
    if "refused" in outcome.facts:
        return Finding(name, "missing", outcome.facts["refused"])
    return Finding(name, "ok", "not the machine's own, and the caller has power over it (CAP_NET_ADMIN)")
