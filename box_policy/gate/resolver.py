"""Asks upstream name servers on behalf of the gate: cached, coalesced, never blocking the loop."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.rcode
import dns.rdatatype
import dns.resolver

from box_policy.gate.egress import Egress
from box_policy.gate.failures import every
from box_policy.gate.hosts_file import HostsFile
from box_policy.gate.name_server import ask_name_server
from box_policy.gate.resolution import Resolution
from box_policy.gate.turns import Turns, Waiting
from box_policy.policy.addresses import Address
from box_policy.wire.dns_reply import NOERROR, NXDOMAIN, Reply, write_query

log = logging.getLogger(__name__)

A: Final = int(dns.rdatatype.A)
AAAA: Final = int(dns.rdatatype.AAAA)

_ATTEMPT_TIMEOUT: Final = 2.0
_TOTAL_TIMEOUT: Final = 5.0
_MAX_TTL: Final = 300
_MIN_TTL: Final = 1
_NEGATIVE_TTL: Final = 5
_MAX_CACHED: Final = 10_000
_MAX_CACHED_SIZE: Final = 4096
"""Bytes of an answer's records; larger ones are asked for again each time."""
_SHARE: Final = 64
"""Questions upstream at once on behalf of each asker; further ones wait. Each has a socket of its own."""
_RESOLV_CONF_CHECK: Final = 5.0
HOSTS_FILE: Final = Path("/etc/hosts")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question came to. ``error`` tells a failure from an empty answer."""

    rcode: int
    records: tuple[tuple[int, bytes], ...] = ()
    """Type and data of each record at the end of the CNAME chain."""
    ttl: int = 0
    """Seconds for which it may be kept."""
    error: str = ""

    def addresses(self) -> tuple[Address, ...]:
        """The addresses among the records."""
        return tuple(ip_address(data) for kind, data in self.records if kind in (A, AAAA))


class NameServers:
    """Where to ask: the given servers, or those of resolv.conf(5), read again when it changes.

    Or, with ``follow`` false, those that it names now, but those at addresses that are ``refused``.
    """

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        follow: bool = True,
        refused: Container[Address] = (),
    ) -> None:
        self._given = tuple(servers)
        self._path = resolv_conf
        self._found: Sequence[str] = ()
        self._version: tuple[int, ...] | None = None
        self._checked = float("-inf")
        self._follow = follow
        if not servers and not follow:
            self._check()
            found: Sequence[str] = self._found
            self._found = [server for server in found if not _is_refused(server, refused)]

    def current(self) -> Sequence[str]:
        """Their addresses; empty if there are none."""
        if self._given:
            return self._given
        now = time.monotonic()
        if self._follow and now - self._checked >= _RESOLV_CONF_CHECK:
            self._checked = now
            self._check()
        return self._found

    def _check(self) -> None:
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version != self._version:
                self._found = self._read()
                self._version = version  # only of what has been read
        except OSError as error:
            log.warning("no name servers: %s", error)
            self._found = ()
            self._version = None

    def _read(self) -> tuple[str, ...]:
        resolver = dns.resolver.Resolver(configure=False)
        try:
            with self._path.open() as lines:
                resolver.read_resolv_conf(lines)
        except dns.resolver.NoResolverConfiguration:
            return ()
        return tuple(str(server) for server in resolver.nameservers)


def _is_refused(server: str, refused: Container[Address]) -> bool:
    if ip_address(server) not in refused:
        return False
    log.warning("the name server %s of resolv.conf is not asked: it could be anybody's here", server)
    return True


def _always() -> bool:
    return True


class Resolver:
    """Resolves names for the lane and answers for the DNS listener, from one cache.

    The cache holds what upstream said, not what any policy makes of it: verdicts are the caller's, on
    every use. What is asked is asked on behalf of someone, a box, and none of these waits for another's
    questions.
    """

    def __init__(
        self,
        name_servers: NameServers | None = None,
        *,
        hosts_file: Path | None = HOSTS_FILE,
        share: Callable[[], int] = lambda: _SHARE,
        egress: Egress | None = None,
    ) -> None:
        """``share`` says how many questions each asker may have under way, at this moment."""
        self._name_servers = name_servers or NameServers()
        self._hosts = HostsFile(hosts_file) if hosts_file is not None else None
        self._cache: OrderedDict[tuple[str, int], tuple[float, Answer]] = OrderedDict()
        self._asking: dict[tuple[str, int], _Asking] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = Turns(share)
        self._egress = egress or Egress()

    def resolve(
        self,
        name: str,
        done: Callable[[Resolution], None],
        wanted: Callable[[], bool] = _always,
        asker: Hashable = None,
    ) -> None:
        """Find a canonical name's addresses of both families; ``done`` is called once, maybe at once.

        ``wanted`` is asked before any message leaves: once nobody wants the answer, or is allowed to, none
        does.
        """
        cached = [self._cached(name, kind) for kind in (A, AAAA)]
        answers = [answer for answer in cached if answer is not None]
        if len(answers) == 2:
            done(_merge(answers))
            return
        task = asyncio.get_running_loop().create_task(self._resolve(name, done, wanted, asker))
        self._tasks.add(task)
        task.add_done_callback(partial(self._resolved, done))

    async def addresses(
        self, name: str, wanted: Callable[[], bool] = _always, asker: Hashable = None
    ) -> Resolution:
        """The same, awaited. Raises what has failed in the gate itself."""
        return _merge(
            await asyncio.gather(self.ask(name, A, wanted, asker), self.ask(name, AAAA, wanted, asker))
        )

    async def ask(
        self, name: str, kind: int, wanted: Callable[[], bool] = _always, asker: Hashable = None
    ) -> Answer:
        """Ask one question about a canonical name. A failure upstream is an Answer that says so; what has
        failed in the gate itself is raised."""
        cached = self._cached(name, kind)
        if cached is not None:
            return cached
        key = (name, kind)
        asking = self._asking.get(key) or _Asking()
        if not self._turns.want(asker, asking):
            return Answer(dns.rcode.SERVFAIL, error="too many questions wait already")
        asking.wanted.append(wanted)
        if key not in self._asking:
            self._asking[key] = asking
            # Under mitmproxy tasks are eager: by now it may have come as far as it can without waiting.
            asking.task = asyncio.get_running_loop().create_task(self._ask_and_keep(key, asking))
            asking.task.add_done_callback(partial(self._asked, key, asking))
        try:
            async with asyncio.timeout(_TOTAL_TIMEOUT):
                # Shielded: one who stops waiting must not take the answer from the others.
                return await asyncio.shield(asking.task)
        except TimeoutError:
            return Answer(dns.rcode.SERVFAIL, error="no name server answered in time")
        finally:
            asking.wanted.remove(wanted)
            if not asking.wanted and not asking.turn.done():
                asking.give_up()
                del self._asking[key]  # whoever comes now asks anew

    async def close(self) -> None:
        """Give up every question under way."""
        tasks: list[asyncio.Task[None] | asyncio.Task[Answer]] = [*self._tasks]
        tasks += [asking.task for asking in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(
        self, name: str, done: Callable[[Resolution], None], wanted: Callable[[], bool], asker: Hashable
    ) -> None:
        resolution = await self.addresses(name, wanted, asker)
        every(partial(done, resolution))

    def _resolved(self, done: Callable[[Resolution], None], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            every(partial(done, Resolution(error="given up", failed=True)))
        elif (error := task.exception()) is not None:
            log.error("a name could not be resolved: the gate itself has failed", exc_info=error)
            every(partial(done, Resolution(error=type(error).__name__, failed=True)))

    def _asked(self, key: tuple[str, int], asking: "_Asking", _: asyncio.Task[Answer]) -> None:
        self._turns.give_back(asking)
        if self._asking.get(key) is asking:
            del self._asking[key]

    def _cached(self, name: str, kind: int) -> Answer | None:
        if self._hosts is not None and kind in (A, AAAA) and (known := self._hosts.addresses(name)):
            version = 4 if kind == A else 6
            records = tuple((kind, address.packed) for address in known if address.version == version)
            return Answer(dns.rcode.NOERROR, records, _NEGATIVE_TTL)
        entry = self._cache.get((name, kind))
        if entry is None:
            return None
        expires, answer = entry
        if expires <= time.monotonic():
            del self._cache[(name, kind)]
            return None
        return answer

    async def _ask_and_keep(self, key: tuple[str, int], asking: "_Asking") -> Answer:
        try:
            await asking.turn
            asking.check()
            async with asyncio.timeout(_TOTAL_TIMEOUT):
                answer = await self._ask_upstream(*key, asking)
        except _Unwanted:
            answer = Answer(dns.rcode.SERVFAIL, error="given up: nobody waits for it, or may")
        except TimeoutError:
            answer = Answer(dns.rcode.SERVFAIL, error="no name server answered in time")
        finally:
            if self._asking.get(key) is asking:
                del self._asking[key]
        if not answer.error and sum(len(data) for _, data in answer.records) <= _MAX_CACHED_SIZE:
            self._cache[key] = (time.monotonic() + max(_MIN_TTL, answer.ttl), answer)
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return answer

    async def _ask_upstream(self, name: str, kind: int, asking: "_Asking") -> Answer:
        servers = self._name_servers.current()
        if not servers:
            return Answer(dns.rcode.SERVFAIL, error="no name server is configured")
        failure = ""
        for server in servers:
            # Made anew from the judged name: nothing else of the box's own packet travels on.
            query = write_query(secrets.randbelow(1 << 16), name, kind)
            try:
                reply = await ask_name_server(query, server, _ATTEMPT_TIMEOUT, asking.check, self._egress)
            except (OSError, EOFError) as error:
                failure = f"{server}: {type(error).__name__}"
                continue
            if reply.rcode in (NOERROR, NXDOMAIN):
                return _answer(reply)
            failure = f"{server}: {dns.rcode.to_text(dns.rcode.Rcode.make(reply.rcode))}"
        return Answer(dns.rcode.SERVFAIL, error=failure)


class _Unwanted(Exception):
    """Nobody waits for the answer who may have it."""


class _Asking(Waiting):
    """A question that is being asked, and who waits for the answer."""

    task: asyncio.Task[Answer]

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[Callable[[], bool]] = []
        """Each says whether the answer is still wanted, and allowed to be asked for."""

    def check(self) -> None:
        if not any(wanted() for wanted in self.wanted):
            raise _Unwanted


def _answer(reply: Reply) -> Answer:
    """For how long it may be kept is not all up to the zone."""
    most = _MAX_TTL if reply.records else _NEGATIVE_TTL
    return Answer(reply.rcode, reply.records, most if reply.ttl is None else min(most, reply.ttl))


def _merge(answers: Sequence[Answer]) -> Resolution:
    """Both families together: one of them is enough."""
    addresses = tuple(address for answer in answers for address in answer.addresses())
    if addresses:
        return Resolution(addresses)
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        return Resolution(error=errors[0])
    missing = any(answer.rcode == dns.rcode.NXDOMAIN for answer in answers)
    return Resolution(error="no such name" if missing else "the name has no addresses")
