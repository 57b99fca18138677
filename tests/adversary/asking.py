"""DNS from the box: messages byte by byte, and what came back in words."""

import struct
from collections.abc import Callable, Sequence
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from box_policy.policy.reasons import Reason
from tests.adversary.attack import CUSTOM, Act, Attack
from tests.adversary.attacker import PATIENCE, Attacker, Line, Seen
from tests.lab import plan

SERVER: Final = plan.NAMESERVER4
NOT_ALLOWED: Final = "REFUSED 17 name_not_allowed"
RECURSION: Final = 0x0100
IN: Final = 1

type Message = Callable[[Attacker], bytes]


def labels(*parts: bytes) -> bytes:
    """A name on the wire, of labels that may hold anything."""
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def wire_name(name: str) -> bytes:
    return labels(*name.encode().split(b"."))


def number_of(kind: str | int) -> int:
    return kind if isinstance(kind, int) else int(dns.rdatatype.from_text(kind))


def opt(options: bytes = b"", *, version: int = 0, size: int = 4096) -> bytes:
    """The OPT record, with options as they are."""
    return b"\0" + struct.pack("!HHBBHH", 41, size, 0, version, 0, len(options)) + options


def option(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def message(
    name: bytes,
    kind: str | int = "A",
    *,
    id: int = 0x1234,
    flags: int = RECURSION,
    class_: int = IN,
    counts: Sequence[int] | None = None,
    rest: bytes | None = None,
) -> bytes:
    """A question for a name on the wire. ``rest``: what comes after it, by default an OPT record."""
    if rest is None:
        rest, counts = opt(), counts or (1, 0, 0, 1)
    head = struct.pack("!6H", id, flags, *(counts or (1, 0, 0, 0)))
    return head + name + struct.pack("!HH", number_of(kind), class_) + rest


def question(name: str, kind: str | int = "A", **parts: object) -> Message:
    """The same, of a name in which ``NONCE`` stands for the attack's secret."""
    return lambda box: message(wire_name(name.replace("NONCE", box.nonce)), kind, **parts)  # type: ignore[arg-type]


def in_words(seen: Seen) -> Seen:
    """An answer as its response code, its Extended DNS Error, and its records' data, sorted."""
    if seen.kind != "data":
        return seen
    try:
        answer = dns.message.from_wire(seen.data)
    except dns.exception.DNSException as error:
        return Seen(type(error).__name__, data=seen.data, seconds=seen.seconds)
    words = [dns.rcode.to_text(answer.rcode())]
    if answer.flags & dns.flags.TC:
        words.append("TC")
    for extra in answer.options:
        if isinstance(extra, dns.edns.EDEOption):
            words += [str(int(extra.code)), extra.text or ""]
    for rrset in answer.answer:
        words += sorted(str(record) for record in rrset)
    if answer.authority or answer.additional:
        words.append("and more")
    return Seen(" ".join(words), data=seen.data, seconds=seen.seconds)


async def over_udp(box: Attacker, data: bytes, server: str = SERVER, patience: float = PATIENCE) -> Seen:
    return in_words(await box.datagram(server, plan.DNS_PORT, data, timeout=patience))


async def over_tcp(box: Attacker, data: bytes, server: str = SERVER) -> Seen:
    """The answer to the one message, behind its length (RFC 1035 section 4.2.2)."""
    line = await box.connect(server, plan.DNS_PORT)
    try:
        if line.error is None:
            await line.send(len(data).to_bytes(2) + data)
        else:
            return await line.see()
        return await next_answer(line)
    finally:
        await line.close()


async def next_answer(line: Line) -> Seen:
    """The next of the answers on a connection."""
    length = await line.read(size=2)
    if length.kind != "data" or len(length.data) < 2:
        return Seen(length.ended or length.kind, seconds=length.seconds)
    seen = await line.read(size=int.from_bytes(length.data))
    return in_words(Seen("data", data=seen.data, seconds=length.seconds + seen.seconds))


def asks(data: Message, *, server: str = SERVER, tcp: bool = False, patience: float = PATIENCE) -> Act:
    """Ask one question, whatever the message is."""

    async def act(box: Attacker) -> Seen:
        if tcp:
            return await over_tcp(box, data(box), server)
        return await over_udp(box, data(box), server, patience)

    return act


def denied(
    name: str,
    data: Message,
    sees: str = NOT_ALLOWED,
    reason: Reason = Reason.NAME_NOT_ALLOWED,
    *,
    policy: object = CUSTOM,
    server: str = SERVER,
    tcp: bool = False,
) -> Attack:
    """A question that is refused, with one record."""
    act = asks(data, server=server, tcp=tcp)
    return Attack(name=name, act=act, policy=policy, sees=sees, reasons=(reason,))


def malformed(name: str, data: Message, sees: str = "FORMERR") -> Attack:
    return denied(name, data, sees, Reason.QUESTION_INVALID)
