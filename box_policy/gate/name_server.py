"""One question to one name server, over UDP, and over TCP if the answer doesn't fit into a datagram."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import dns.inet

from box_policy.gate.egress import Egress
from box_policy.wire.dns_reply import Query, Reply, read_reply

_PORT: Final = 53
_MAX_MESSAGE: Final = 65535


async def ask_name_server(
    query: Query, server: str, patience: float, check: Callable[[], None], egress: Egress
) -> Reply:
    """Ask, and wait for a well-formed reply to this very question: ``patience`` seconds for each transport.

    ``check`` is called before the message leaves, with nothing awaited in between; what it raises ends this.

    Raises:
        OSError: there is no such reply, also in time (TimeoutError).
        EOFError: the connection ended before it.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    # With a link-local server's zone as a number: socket.connect() takes it for none otherwise.
    address = dns.inet.low_level_address_tuple((server, _PORT))
    with egress.socket(family, socket.SOCK_DGRAM) as sock:
        # Connected: what others send isn't received, and a server that isn't there is noticed at once. The
        # port is the kernel's choice, at random.
        sock.connect(address)
        check()
        sock.send(query.message)
        async with asyncio.timeout(patience):
            reply = await _read_datagrams(sock, query)
    if not reply.truncated:
        return reply
    with egress.socket(family, socket.SOCK_STREAM) as sock:
        async with asyncio.timeout(patience):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, address)
            check()
            await loop.sock_sendall(sock, len(query.message).to_bytes(2) + query.message)
            message = await _read(sock, int.from_bytes(await _read(sock, 2)))
    answer = read_reply(message, query)
    if answer is None or answer.truncated:
        raise OSError("not a reply to the question")
    return answer


async def _read_datagrams(sock: socket.socket, query: Query) -> Reply:
    loop = asyncio.get_running_loop()
    while True:
        reply = read_reply(await loop.sock_recv(sock, _MAX_MESSAGE), query)
        if reply is not None:
            return reply
        # Forged, or broken: the true one may still come. However many these are, others have their turn.
        await asyncio.sleep(0)


async def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
