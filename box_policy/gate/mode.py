"""mitmproxy's server mode for boxes: ``box`` for the only one, ``box:ID`` for a named one.

The mode is what other addons see of a box's identity (``flow.client_conn.proxy_mode.data``). It cannot
be forged from inside the box: it comes from the listener that the connection arrived at.
"""

import logging
import re
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from mitmproxy import ctx
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_servers import ServerInstance

from box_policy.gate.listening import listen

log = logging.getLogger(__name__)

DEFAULT_BOX: Final = "default"
"""The box that a mode without an id serves."""

BOX_ID: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""What a box's id looks like, as a regular expression."""


class BoxMode(mode_specs.ProxyMode):
    """``box`` or ``box:ID``, with ``@[host:]port`` if need be. The class's name makes the mode's."""

    description = "box-policy gate"
    default_port = 8080
    transport_protocol = mode_specs.TCP

    def __post_init__(self) -> None:
        if self.data and not re.fullmatch(BOX_ID, self.data):
            raise ValueError("a box's id has letters, digits, '.', '_' and '-', 64 at most")

    @property
    def box(self) -> str:
        return self.data or DEFAULT_BOX


def mode_of(box_id: str) -> BoxMode:
    """The mode that stands for a box whose listeners the gate was given. Not by ``parse``, which keeps
    every spec for ever."""
    return BoxMode(full_spec=f"box:{box_id}", data=box_id, custom_listen_host=None, custom_listen_port=None)


class Serving(Protocol):
    """Who serves the listening sockets: the addon."""

    def serve_own_port(self, box: str, socks: Sequence[socket.socket]) -> None: ...

    def leave_own_port(self, box: str) -> None: ...


class BoxInstance(ServerInstance[BoxMode]):
    """Listens on a port of this host, to which a firewall redirects a box's traffic."""

    serving: Serving | None = None
    """Set by the addon; without it nothing listens."""

    _socks: Sequence[socket.socket] = ()

    @property
    def is_running(self) -> bool:
        return bool(self._socks)

    @property
    def listen_addrs(self) -> tuple[tuple[str, int], ...]:
        return tuple(sock.getsockname()[:2] for sock in self._socks)

    def make_top_layer(self, context: Context) -> layer.Layer:
        raise RuntimeError("no mitmproxy layer runs on this mode")

    async def _start(self) -> None:
        if BoxInstance.serving is None:
            raise RuntimeError("the box-policy addon isn't loaded")
        host = self.mode.listen_host(ctx.options.listen_host)
        port = self.mode.listen_port(ctx.options.listen_port)
        self._socks = listen(host, port or 0)
        BoxInstance.serving.serve_own_port(self.mode.box, self._socks)

    async def _stop(self) -> None:
        if BoxInstance.serving is not None:
            BoxInstance.serving.leave_own_port(self.mode.box)
        for sock in self._socks:
            sock.close()
        self._socks = ()
