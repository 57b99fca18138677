"""Keeps the rules of a shared network namespace in force while the gate lives, and leaves them there."""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Sequence
from typing import Final

from box_policy.sandbox.netlink import NETLINK_NETFILTER
from box_policy.sandbox.sidecar.errors import SidecarError
from box_policy.sandbox.sidecar.probe import Probed, probe
from box_policy.sandbox.sidecar.rules import SidecarRules
from box_policy.sandbox.sidecar.table import Table

log = logging.getLogger(__name__)

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_GROUP_NFTABLES: Final = 7  # linux/netfilter/nfnetlink.h
_RECEIVE_SIZE: Final = 64 * 1024
_NOTICES: Final = 32 * 1024
"""Bytes of notices that wait. What is lost past that is told by an error, which is a notice too."""
_MAX_NOTICES: Final = 1000
"""How many are read at once; more than ever wait, unless somebody sends them without end."""
_REST: Final = 10
"""How many times as long as a look at the rules took there is none after it."""
_MIN_REST: Final = 0.01
_RETRY: Final = 1.0


class Guard:
    """Installs the rules, and puts them back if somebody changes them.

    Nothing here takes them away: if the gate ends, whatever shares the namespace has no network.
    """

    def __init__(self, rules: SidecarRules) -> None:
        self.ready = False
        """The rules are in force, and have been seen to work."""
        self._table = Table(rules)
        self._notices: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def install(self) -> None:
        """Put the rules in force: SidecarError if that can't be done."""
        try:
            self._notices = _subscribe()
            self._table.install()
        except PermissionError:
            raise SidecarError("--sidecar: needs CAP_NET_ADMIN in its network namespace") from None
        except OSError as error:
            hint = "; is nf_tables in the kernel?" if error.errno in _MISSING else ""
            raise SidecarError(f"--sidecar: the kernel refuses the rules: {error.strerror}{hint}") from None

    def try_out(self, tcp: Sequence[socket.socket], dns_udp: Sequence[socket.socket]) -> Probed:
        """See the rules work, on listening sockets that nobody serves yet. SidecarError if they don't."""
        try:
            probed = probe(tcp, dns_udp)
        except OSError as error:
            raise SidecarError(f"--sidecar: can't try the rules: {error}") from None
        self.ready = True
        return probed

    def start(self) -> None:
        """Watch the rules, on the running loop, until :meth:`close`."""
        self._look()

    def close(self) -> None:
        """Watch no more."""
        self.ready = False
        if self._timer is not None:
            self._timer.cancel()
        if self._notices is not None:
            asyncio.get_running_loop().remove_reader(self._notices)
            self._notices.close()
            self._notices = None

    def _look(self) -> None:
        """Somebody has changed rules in this network namespace: see whether ours are as they were."""
        if self._notices is None:
            return
        loop = asyncio.get_running_loop()
        # While it rests, further notices wait or get lost; either way it looks again.
        loop.remove_reader(self._notices)
        self._forget_notices(self._notices)
        began = time.monotonic()
        rest = self._restore()
        self._timer = loop.call_later(max(rest, (time.monotonic() - began) * _REST), self._listen)

    def _listen(self) -> None:
        if self._notices is not None and self.ready:
            asyncio.get_running_loop().add_reader(self._notices, self._look)
        else:
            self._look()

    def _restore(self) -> float:
        """Returns after how many seconds to look again, at the earliest."""
        try:
            if not self._table.is_intact():
                self.ready = False
                self._table.install()
                log.warning("somebody has changed the sidecar's firewall rules: put back")
            self.ready = True
        except Exception as error:
            self.ready = False
            log.error("the sidecar's firewall rules may not be in force: %s", error)
            return _RETRY
        return _MIN_REST

    def _forget_notices(self, notices: socket.socket) -> None:
        for _ in range(_MAX_NOTICES):
            try:
                notices.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


_MISSING: Final = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT)


def _subscribe() -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
    )
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NOTICES)
        sock.bind((0, 0))
        sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
    except BaseException:
        sock.close()
        raise
    return sock
