"""Attacks that are programs: Python that the agent runs in the box, and several attacks at once."""

import asyncio
import base64
import textwrap
from collections.abc import Callable
from typing import Final

from tests.adversary.attack import Act
from tests.adversary.attacker import Attacker, Seen

PROMPTLY: Final = 1.0
"""Seconds within which a program learns that it got nowhere, or it counts as late."""

_PRELUDE: Final = """
import errno, os, socket, struct

OPENED = []

def opened(family, kind=socket.SOCK_STREAM, protocol=0, timeout=6):
    sock = socket.socket(family, kind, protocol)
    OPENED.append(sock)
    sock.settimeout(timeout)
    return sock

def end_of(sock, data):
    # Send, and say how the other side ends it: by an alert, without a word, or not at all.
    try:
        sock.sendall(data)
        answer = sock.recv(64)
    except OSError as error:
        if isinstance(error, socket.timeout):
            raise
        answer = b""
    return "alert %d" % answer[6] if answer[:1] == b"\\x15" else "data" if answer else "the end"
"""

_EPILOGUE: Final = """
finally:
    for sock in OPENED:
        sock.close()
"""


def runs(source: str, **data: Callable[[Attacker], bytes]) -> Act:
    """Run code in the box; what it leaves in ``result``, or its error's name, is what the client has seen.

    ``NONCE`` stands for the attack's secret, and each name in ``data`` for bytes.
    """

    async def act(box: Attacker) -> Seen:
        names = {"NONCE": box.nonce.encode()} | {name: make(box) for name, make in data.items()}
        values = "".join(
            f"{name} = __import__('base64').b64decode({base64.b64encode(value)!r})\n"
            for name, value in names.items()
        )
        program = textwrap.indent(source, "    ")
        result = str(await box.python(f"{_PRELUDE}{values}try:\n{program}\n{_EPILOGUE}"))
        return Seen("silence" if result == "timeout" else result)

    return act


def sends_datagram(address: str, port: int, data: Callable[[Attacker], bytes]) -> Act:
    """Send a datagram, and wait for what comes of it."""

    async def act(box: Attacker) -> Seen:
        seen = await box.datagram(address, port, data(box))
        return seen if seen.seconds < PROMPTLY or seen.kind == "silence" else Seen(f"{seen.kind}, late")

    return act


def together(*acts: Act) -> Act:
    """All at once, and what they have seen in words; silence if that is what any of them has met."""

    async def all_acts(box: Attacker) -> Seen:
        seen = [each for each in await asyncio.gather(*(act(box) for act in acts)) if each is not None]
        silent = [each for each in seen if each.kind == "silence"]
        return silent[0] if silent else Seen(", ".join(sorted({str(each) for each in seen})))

    return all_acts
