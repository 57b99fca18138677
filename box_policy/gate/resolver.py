"""Asks upstream name servers on behalf of the gate: cached, coalesced, never blocking the loop."""

import asyncio
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from box_policy.gate.hosts_file import HostsFile
from box_policy.gate.resolution import Resolution
from box_policy.policy.addresses import Address

log = logging.getLogger(__name__)

A: Final = int(dns.rdatatype.A)
AAAA: Final = int(dns.rdatatype.AAAA)

_ATTEMPT_TIMEOUT: Final = 2.0
_TOTAL_TIMEOUT: Final = 5.0
_UDP_SIZE: Final = 1232  # no fragments on any usual path (DNS flag day 2020)
_MAX_TTL: Final = 300
_MIN_TTL: Final = 1
_NEGATIVE_TTL: Final = 5
_MAX_CACHED: Final = 10_000
_MAX_CACHED_SIZE: Final = 4096
"""Bytes of an answer's records; larger ones are asked for again each time."""
_MAX_ASKING: Final = 200
"""Questions upstream at once; further ones wait. Each has a socket of its own."""
_MAX_RECORDS: Final = 64
_RESOLV_CONF_CHECK: Final = 5.0
_DNS_PORT: Final = 53


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
    """Where to ask: the given servers, or those of resolv.conf(5), read again when it changes."""

    def __init__(self, servers: Sequence[str] = (), *, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._given = tuple(servers)
        self._path = resolv_conf
        self._found: tuple[str, ...] = ()
        self._version: tuple[int, ...] | None = None
        self._checked = float("-inf")

    def current(self) -> tuple[str, ...]:
        """Their addresses; empty if there are none."""
        if self._given:
            return self._given
        now = time.monotonic()
        if now - self._checked >= _RESOLV_CONF_CHECK:
            self._checked = now
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
        return self._found

    def _read(self) -> tuple[str, ...]:
        resolver = dns.resolver.Resolver(configure=False)
        try:
            with self._path.open() as lines:
                resolver.read_resolv_conf(lines)
        except dns.resolver.NoResolverConfiguration:
            return ()
        return tuple(str(server) for server in resolver.nameservers)


def _always() -> bool:
    return True


class Resolver:
    """Resolves names for the lane and answers for the DNS listener, from one cache.

    The cache holds what upstream said, not what any policy makes of it: verdicts are the caller's, on
    every use.
    """

    def __init__(
        self, name_servers: NameServers | None = None, *, hosts_file: Path | None = Path("/etc/hosts")
    ) -> None:
        self._name_servers = name_servers or NameServers()
        self._hosts = HostsFile(hosts_file) if hosts_file is not None else None
        self._cache: OrderedDict[tuple[str, int], tuple[float, Answer]] = OrderedDict()
        self._asking: dict[tuple[str, int], _Asking] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_MAX_ASKING)

    def resolve(
        self, name: str, done: Callable[[Resolution], None], wanted: Callable[[], bool] = _always
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
        task = asyncio.get_running_loop().create_task(self._resolve(name, done, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def addresses(self, name: str, wanted: Callable[[], bool] = _always) -> Resolution:
        """The same, awaited."""
        return _merge(await asyncio.gather(self.ask(name, A, wanted), self.ask(name, AAAA, wanted)))

    async def ask(self, name: str, kind: int, wanted: Callable[[], bool] = _always) -> Answer:
        """Ask one question about a canonical name. Never raises; a failure is an Answer that says so."""
        cached = self._cached(name, kind)
        if cached is not None:
            return cached
        key = (name, kind)
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = _Asking(wanted)
            # Under mitmproxy tasks are eager: by now it may have come as far as it can without waiting.
            asking.task = asyncio.get_running_loop().create_task(self._ask_and_keep(key, asking))
        else:
            asking.waiting.append(wanted)
        try:
            # Shielded: one who stops waiting must not take the answer from the others.
            return await asyncio.shield(asking.task)
        finally:
            asking.waiting.remove(wanted)

    async def close(self) -> None:
        """Give up every question under way."""
        tasks: list[asyncio.Task[None] | asyncio.Task[Answer]] = [*self._tasks]
        tasks += [asking.task for asking in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(
        self, name: str, done: Callable[[Resolution], None], wanted: Callable[[], bool]
    ) -> None:
        done(await self.addresses(name, wanted))

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
            async with asyncio.timeout(_TOTAL_TIMEOUT), self._turns:
                answer = await self._ask_upstream(*key, asking)
        except TimeoutError:
            answer = Answer(dns.rcode.SERVFAIL, error="no name server answered in time")
        except Exception as error:
            log.exception("a question failed in the gate")
            answer = Answer(dns.rcode.SERVFAIL, error=type(error).__name__)
        finally:
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
        # Made anew from the judged name: nothing else of the box's own packet travels on.
        question = dns.message.make_query(
            dns.name.from_text(name), dns.rdatatype.RdataType.make(kind), use_edns=0, payload=_UDP_SIZE
        )
        failure = ""
        for server in servers:
            question.id = secrets.randbelow(1 << 16)
            try:
                response = await _exchange(question, server, asking)
            except _Unwanted:
                return Answer(dns.rcode.SERVFAIL, error="given up: nobody waits for it, or may")
            except (dns.exception.DNSException, OSError, EOFError) as error:
                failure = f"{server}: {type(error).__name__}"
                continue
            rcode = response.rcode()
            if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return _answer(response)
            failure = f"{server}: {dns.rcode.to_text(rcode)}"
        return Answer(dns.rcode.SERVFAIL, error=failure)


class _Unwanted(Exception):
    """Nobody waits for the answer who may have it."""


class _Asking:
    """A question that is being asked, and who waits for the answer."""

    task: asyncio.Task[Answer]

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.waiting = [wanted]
        """Each says whether the answer is still wanted, and allowed to be asked for."""

    def check(self) -> None:
        if not any(wanted() for wanted in self.waiting):
            raise _Unwanted


async def _exchange(question: dns.message.Message, server: str, asking: _Asking) -> dns.message.Message:
    """Ask one server, by TCP if its answer doesn't fit into a datagram."""
    backend = dns.asyncbackend.get_default_backend()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        # The sockets are made here, so that nothing is waited for between the check and the sending.
        async with await backend.make_socket(family, socket.SOCK_DGRAM) as sock:
            asking.check()
            # A random port and id, and only an answer from there to this very question counts.
            return await dns.asyncquery.udp(
                question, server, timeout=_ATTEMPT_TIMEOUT, port=_DNS_PORT, ignore_unexpected=True,
                ignore_errors=True, raise_on_truncation=True, sock=sock,
            )  # fmt: skip
    except dns.message.Truncated:
        address = (server, _DNS_PORT)
        async with await backend.make_socket(
            family, socket.SOCK_STREAM, destination=address, timeout=_ATTEMPT_TIMEOUT
        ) as sock:
            asking.check()
            return await dns.asyncquery.tcp(question, server, timeout=_ATTEMPT_TIMEOUT, sock=sock)


def _answer(response: dns.message.Message) -> Answer:
    """The records at the end of the CNAME chain."""
    if not isinstance(response, dns.message.QueryMessage):
        return Answer(dns.rcode.SERVFAIL, error="not an answer to a question")
    try:
        chain = response.resolve_chaining()
    except dns.exception.DNSException as error:
        return Answer(dns.rcode.SERVFAIL, error=f"unusable answer: {type(error).__name__}")
    if chain.answer is None:
        return Answer(response.rcode(), ttl=min(_NEGATIVE_TTL, chain.minimum_ttl))
    records = tuple((int(rdata.rdtype), rdata.to_digestable()) for rdata in list(chain.answer)[:_MAX_RECORDS])
    return Answer(dns.rcode.NOERROR, records, min(_MAX_TTL, chain.minimum_ttl))


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
