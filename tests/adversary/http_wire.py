"""Attacks that are HTTP: requests as bytes, and responses as far as an attack has to read them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import quote_from_bytes

from box_policy.policy.reasons import Reason
from tests.adversary.attack import Act, Attack
from tests.adversary.attacker import Attacker, Line, Seen, classify
from tests.adversary.wire import sends_each
from tests.lab import plan

FRONT: Final = b"front.cdn.test"
"""Allowed; at the same address as HIDDEN, which is not."""
END: Final = b"Connection: close\r\n"
WEBSOCKET: Final = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)
"""A handshake's header lines, but for the end of the last."""
ALLOWED: Final = b"GET / HTTP/1.1\r\nHost: front.cdn.test\r\n\r\n"
"""A request that is let through, without a secret."""


def lines(*fields: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    """A request made of lines, with the secret in a header, or else where NONCE stands."""
    secret = () if b"NONCE" in b"".join(fields) + body else (b"X-Secret: NONCE",)
    return b"\r\n".join((line, *fields, *secret, b"", body))


def front(*fields: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    """The same for the allowed host."""
    return lines(b"Host: " + FRONT, *fields, line=line, body=body)


def with_nonce(box: Attacker, text: bytes) -> bytes:
    return text.replace(b"NONCE", box.nonce.encode())


def each(*texts: bytes) -> Act:
    """Texts, with the secret in the place of NONCE, each on a connection of its own."""
    return sends_each(plan.SHARED4, 80, lambda box: [with_nonce(box, text) for text in texts])


def refused(
    name: str, act: Act, reason: Reason, times: int = 1, *, status: int = 400, may_arrive: bool = False
) -> Attack:
    """An attack that is answered with an error. ``may_arrive``: another gate may make a sound request for the
    allowed host of it, and only the name of another one there would tell of a leak."""
    return Attack(name=name, act=act, sees=f"http {status}", reasons=(reason,) * times, may_arrive=may_arrive)


def pipelines(data: Callable[[Attacker], bytes]) -> Act:
    """Send requests one behind the other, and read to the end: what is seen is the last response."""

    async def act(box: Attacker) -> Seen:
        return last(await box.exchange(plan.SHARED4, 80, data(box)))

    return act


def converses(data: Callable[[Attacker], Iterable[bytes]]) -> Act:
    """Send requests, each when the one before it has been answered: what is seen is the last response."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(plan.SHARED4, 80)
        *requests, final = data(box)
        for request in requests:
            await line.send(request)
            await response(line)
        await line.send(final)
        seen = last(await line.see())
        await line.close()
        return seen

    return act


async def response(line: Line) -> Seen:
    """Read one response that says how long it is."""
    head = await line.read(until=b"\r\n\r\n")
    start, end, body = head.data.partition(b"\r\n\r\n")
    missing = _length(start) - len(body)
    if not end or missing <= 0:
        return head
    rest = await line.read(size=missing)
    return classify(head.data + rest.data, rest.ended, head.seconds + rest.seconds)


def statuses(data: bytes) -> Sequence[int]:
    """The statuses of responses that say how long they are, one behind the other."""
    found = []
    while data.startswith(b"HTTP/1.") and b"\r\n\r\n" in data:
        head, _, data = data.partition(b"\r\n\r\n")
        found.append(int(head[9:12]))
        data = data[_length(head) :]
    return found


def last(seen: Seen) -> Seen:
    """The same, with the status of the last response."""
    found = statuses(seen.data)
    return replace(seen, code=found[-1]) if found else seen


def answered_with(data: bytes, *, ends: bool = False) -> bytes:
    """The target at which the test network's web site sends these bytes in place of a response."""
    return (b"/raw-end?" if ends else b"/raw?") + quote_from_bytes(data, safe="").encode("ascii")


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n")[0]) if found else 0
