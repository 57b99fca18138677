"""The gate: every box's connections and questions, judged by that box's policy.

Put together from the lane (TLS and everything else), the HTTP door and the DNS server, on one event loop.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from box_policy.audit.sinks import Audit
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import HandedOver
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.destination import Destination
from box_policy.gate.dns import DnsServer
from box_policy.gate.egress import Egress
from box_policy.gate.failures import every
from box_policy.gate.lane import Lane
from box_policy.gate.limits import Limits
from box_policy.gate.network_namespace import netns_cookie
from box_policy.gate.own_addresses import OwnAddresses
from box_policy.gate.resolver import HOSTS_FILE, NameServers, Resolver
from box_policy.policy.addresses import AddressSet
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy, Operator

log = logging.getLogger(__name__)

_SWEEP_INTERVAL = 0.25


@dataclass(frozen=True)
class Settings:
    """What the operator decides, and no policy can."""

    private_ranges: Sequence[str] = ()
    """CIDRs of special addresses that policies may open."""
    name_servers: Sequence[str] = ()
    """Addresses of the name servers to ask; none: those of resolv.conf."""
    deny_ech: bool = False
    resolve_for_cidrs: bool = False
    limits: Limits = field(default_factory=Limits)
    search_domains: Sequence[str] = ()
    """Canonical names of domains in which the box's resolvers look for every name first."""
    mark: int | None = None
    """SO_MARK of every socket with which the gate goes out."""
    follow_host_files: bool = True
    """Follow resolv.conf and the hosts file. Not where boxes share them, and may write to them: then name
    servers are those that are there at first, and no host's name is taken from a file."""

    def operator(self) -> Operator:
        """The settings in the form in which policies are compiled with them."""
        return Operator(
            private_ranges=AddressSet(self.private_ranges),
            own_addresses=OwnAddresses(),
            deny_ech=self.deny_ech,
            resolve_for_cidrs=self.resolve_for_cidrs,
        )


@dataclass
class _Served:
    """A box's sockets, as the gate holds them."""

    tcp: list[socket.socket] = field(default_factory=list)
    dns_udp: list[socket.socket] = field(default_factory=list)
    dns_tcp: list[socket.socket] = field(default_factory=list)
    paused: bool = False

    def all(self) -> tuple[socket.socket, ...]:
        return (*self.tcp, *self.dns_udp, *self.dns_tcp)


class Gate:
    """Needs a running event loop from :meth:`start` to :meth:`close`."""

    def __init__(self, settings: Settings, audit: Audit, take_http: Callable[[HandedOver], None]) -> None:
        self.settings = settings
        self.audit = audit
        self.boxes: dict[str, GatedBox] = {}
        self.limits = settings.limits
        audit.set_pace(self.limits.records, self.limits.records_burst)
        self.descriptors = Descriptors.of_process()
        self.egress = Egress(settings.mark)
        self._operator = settings.operator()
        follow = settings.follow_host_files
        # Who shares this network namespace could serve names at its addresses.
        refused = () if follow else self._operator.own_addresses
        self.resolver = Resolver(
            NameServers(settings.name_servers, follow=follow, refused=refused),
            hosts_file=HOSTS_FILE if follow else None,
            share=self._share_of_questions,
            egress=self.egress,
        )
        self.dns = DnsServer(self.resolver, audit, self.limits, self.descriptors, settings.search_domains)
        self.lane = Lane(
            resolve=self.resolver.resolve,
            audit=audit,
            hand_over=take_http,
            limits=self.limits,
            descriptors=self.descriptors,
            egress=self.egress,
        )
        self._nothing = self.compile(NetworkPolicy.parse("deny-all"))
        self._served: dict[str, _Served] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.closed = False

    def start(self) -> None:
        """Begin to serve, on the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.lane.fileno(), self.lane.run_ready)
        self._sweeper = loop.call_later(_SWEEP_INTERVAL, self._sweep)

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        """The policy in the form that judges, with what the operator sets. May be called from any thread."""
        return CompiledPolicy(policy, self._operator)

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int = 1) -> int:
        """Put a policy in force for a box, known or new, and cut what it no longer allows.

        Returns how many connections were cut. When it returns, they are.
        """
        box = self.boxes.get(box_id)
        if box is None:
            self.boxes[box_id] = GatedBox(box_id, policy, generation, self.limits)
            self.descriptors.boxes = len(self.boxes)
            return 0
        return box.put_policy(policy, generation)

    def serve(
        self,
        box_id: str,
        *,
        tcp: Sequence[socket.socket] = (),
        dns_udp: Sequence[socket.socket] = (),
        dns_tcp: Sequence[socket.socket] = (),
    ) -> None:
        """Serve a box's sockets, until :meth:`leave`. The box must have a policy: KeyError.

        The gate takes duplicates: whoever closes the originals must not pull a descriptor from under it.
        """
        box = self.boxes[box_id]
        served = self._served.setdefault(box_id, _Served())
        more = _Served(
            [sock.dup() for sock in tcp],
            [sock.dup() for sock in dns_udp],
            [sock.dup() for sock in dns_tcp],
        )
        served.tcp += more.tcp
        served.dns_udp += more.dns_udp
        served.dns_tcp += more.dns_tcp
        if not served.paused:
            self._listen(more, box)

    def pause(self, box_id: str) -> None:
        """Take nothing new from a box, until :meth:`resume`: it waits in the kernel. What is open goes on."""
        served = self._served.get(box_id)
        if served is not None and not served.paused:
            served.paused = True
            self._forget(served)

    def resume(self, box_id: str) -> None:
        """Serve the box's sockets again."""
        served = self._served.get(box_id)
        if served is not None and served.paused:
            served.paused = False
            self._listen(served, self.boxes[box_id])

    def is_in_a_box(self, cookie: int) -> bool:
        """Is that network namespace (by its SO_NETNS_COOKIE) one that a box lives in, apart from the gate?

        A box whose traffic a firewall redirects to the gate's own port can't be told like this.
        """
        with socket.socket(socket.AF_UNIX) as own:
            if cookie == netns_cookie(own):
                return False
        listening = (sock for served in self._served.values() for sock in served.all())
        return any(netns_cookie(sock) == cookie for sock in listening)

    def leave(self, box_id: str) -> None:
        """Serve a box's sockets no more. Its policy, and what is open, stay as they are."""
        served = self._served.get(box_id, _Served())
        steps: list[Callable[[], None]] = [partial(self._forget, served)]
        steps += [sock.close for sock in served.all()]
        self._served.pop(box_id, None)
        every(*steps)

    def adopt(
        self, sock: socket.socket, received: bytes, box_id: str, destination: Destination | None = None
    ) -> None:
        """Take over a connection that somebody else accepted. The box must have a policy: KeyError."""
        self.lane.adopt(sock, received, self.boxes[box_id], destination)

    def drop(self, box_id: str) -> None:
        """Forget a box: its sockets are served no more, and what is open is reset.

        To be called when a box dies: a listener that is still held keeps its network namespace alive.
        """
        every(partial(self.leave, box_id))
        box = self.boxes.pop(box_id, None)
        if box is not None:
            # Whatever still holds the box, on its way between two states, is denied from now on.
            box.policy = self._nothing
            self.descriptors.boxes = len(self.boxes)
            every(
                partial(box.cut_all, Reason.BOX_CLOSED),
                partial(self.lane.leave, box),
                partial(self.audit.forget, box_id),
            )

    def stop(self) -> None:
        """Stop serving and reset everything, at once. Repeating it does nothing."""
        if self.closed:
            return
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        every(
            *(partial(self.drop, box_id) for box_id in self.boxes),
            partial(asyncio.get_running_loop().remove_reader, self.lane.fileno()),
            self.lane.close,
        )

    async def close(self) -> None:
        """The same, and wait for what was under way."""
        self.stop()
        await self.dns.close()
        await self.resolver.close()

    def _share_of_questions(self) -> int:
        return min(self.limits.resolving, self.descriptors.questions())

    def _listen(self, served: _Served, box: GatedBox) -> None:
        for sock in served.tcp:
            self.lane.listen(sock, box)
        for sock in served.dns_udp:
            self.dns.serve_udp(sock, box)
        for sock in served.dns_tcp:
            self.dns.serve_tcp(sock, box)

    def _forget(self, served: _Served) -> None:
        every(
            *(partial(self.lane.forget, sock) for sock in served.tcp),
            *(partial(self.dns.forget, sock) for sock in (*served.dns_udp, *served.dns_tcp)),
        )

    def _sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_INTERVAL, self._sweep)
        every(self.lane.sweep, self.audit.tell)
