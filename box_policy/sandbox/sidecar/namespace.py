"""Whether this network namespace is one whose traffic may be taken over, and as it has to be for that."""

from pathlib import Path
from typing import Final

from box_policy.sandbox.sidecar.errors import SidecarError

_SYSCTLS: Final = Path("/proc/sys/net")
_OF_THE_HOST: Final = Path("core/netdev_max_backlog")
"""One that the kernel has in the first network namespace alone: net/core/sysctl_net_core.c."""
_HOST_INODE: Final = 0xEFFFFFF9
"""linux/nsfs.h, NET_NS_INIT_INO: the first one's since Linux 6.18. For where its sysctls are hidden."""
_OWN: Final = Path("/proc/self/ns/net")
_MARKS_FROM_OUTSIDE: Final = ("ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect")
"""With any of these the mark of a packet that came in would be that of what goes out in reply to it."""


def is_of_the_host() -> bool:
    """Is this network namespace the machine's own?"""
    return (_SYSCTLS / _OF_THE_HOST).exists() or _OWN.stat().st_ino == _HOST_INODE


def check_namespace(*, host_network: bool) -> None:
    """Raises SidecarError if the rules should not be set here, or would not hold."""
    if not host_network and is_of_the_host():
        raise SidecarError(
            "--sidecar: this is the machine's own network, and every program on it would be redirected; "
            "start it in a container's or a pod's, or add --host-network if that is meant"
        )
    for name in _MARKS_FROM_OUTSIDE:
        try:
            value = (_SYSCTLS / name).read_text().strip()
        except OSError:
            continue  # IPv6 is not there at all, or the kernel is built without it
        if value != "0":
            setting = "net." + name.replace("/", ".")
            raise SidecarError(
                f"--sidecar: {setting} is {value}, and others could have the gate's mark: set it to 0"
            )
