"""A container's network and its listeners, made from outside the container.

Where this process may enter the container's network namespace, a thread of its own does. Otherwise a
container does, which has that namespace and nothing else of the box's, and hands the listeners over.
"""

import asyncio
import contextlib
import os
import socket
import threading
from functools import cache
from pathlib import Path

from box_policy.sandbox.docker import container
from box_policy.sandbox.docker.door import Door
from box_policy.sandbox.docker.engine import Engine
from box_policy.sandbox.docker.runtime_store import StoredRuntime
from box_policy.sandbox.launcher import Listeners, SandboxError
from box_policy.sandbox.namespaces import messages, network
from box_policy.sandbox.namespaces.diagnosis import explain
from box_policy.sandbox.namespaces.network import DNS_PORT, TCP_PORT, NetworkMessages
from box_policy.sandbox.namespaces.served_box import take_listeners

HELPER_TIMEOUT = 30.0
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h; Linux 5.14
_COOKIE_SIZE = 8


@cache
def encoded() -> NetworkMessages:
    """The netlink messages. Their encoder takes 130 ms to import."""
    from box_policy.sandbox.namespaces import network_messages

    return network_messages.encode()


async def from_within(namespace: int) -> Listeners:
    """Make them from a thread in the network namespace that this descriptor leads to.

    OSError if this process may not enter it, SandboxError if it is no other than its own, or the kernel
    refuses the network.
    """
    messages_of_it = await asyncio.to_thread(encoded)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Listeners] = loop.create_future()

    own = os.dup(namespace)

    def settle(result: Listeners | Exception) -> None:
        if isinstance(result, Exception):
            if not done.cancelled():
                done.set_exception(result)
        elif done.cancelled():
            result.close()  # nobody waits any more
        else:
            done.set_result(result)

    def make() -> None:
        result: Listeners | Exception
        try:
            os.setns(own, os.CLONE_NEWNET)
        except OSError as error:
            result = error
        else:
            result = _make(messages_of_it)
        finally:
            os.close(own)
        loop.call_soon_threadsafe(settle, result)

    # Not one of a pool: a thread stays in the namespace that it has entered.
    threading.Thread(target=make, name="box-network", daemon=True).start()
    return verified(await done)


def _make(encoded_messages: NetworkMessages) -> Listeners | Exception:
    try:
        return network.make_network(encoded_messages, network.address_families())
    except OSError as error:
        return SandboxError(explain(error))
    except Exception as error:
        return error


async def by_helper(engine: Engine, of_box: str, runtime: StoredRuntime, doors: Path) -> Listeners:
    """Have a container make them that shares the network namespace of the container ``of_box``."""
    messages_of_it = await asyncio.to_thread(encoded)
    door = Door(doors, f"{of_box[:12]}-network")
    helper: str | None = None
    try:
        config = container.network_container(of_box, runtime.image, runtime.volume, door.directory)
        helper = await engine.create(config)
        await engine.start(helper)
        running = helper
        with await door.accept(HELPER_TIMEOUT, lambda: engine.is_running(running)) as sock:
            return verified(await _ask(sock, messages_of_it))
    finally:
        door.close()
        if helper is not None:
            await engine.remove(helper)


async def _ask(sock: socket.socket, messages_of_it: NetworkMessages) -> Listeners:
    sock.settimeout(HELPER_TIMEOUT)

    def ask() -> Listeners:
        messages.send(sock, {"network": [part.hex() for part in messages_of_it]})
        received = messages.receive(sock)
        if received is None:
            raise SandboxError("the container that makes the box's network has ended")
        answer, fds = received
        if answer.get("event") != "listeners":
            messages.close_all(fds)
            raise SandboxError(str(answer.get("error", "the box's network can't be made")))
        try:
            return take_listeners(fds)
        except ValueError as error:
            messages.close_all(fds)
            raise SandboxError(f"the box's network can't be made: {error}") from None

    try:
        return await asyncio.to_thread(ask)
    except OSError as error:
        raise SandboxError(f"the container that makes the box's network doesn't answer: {error}") from None


def verified(listeners: Listeners) -> Listeners:
    """The same, if they are what they should be, in one network namespace that isn't this process's."""
    try:
        kinds: list[tuple[tuple[socket.socket, ...], socket.SocketKind, int]] = [
            (listeners.tcp, socket.SOCK_STREAM, TCP_PORT),
            (listeners.dns_udp, socket.SOCK_DGRAM, DNS_PORT),
            (listeners.dns_tcp, socket.SOCK_STREAM, DNS_PORT),
        ]
        sound = all(_is_listener(sock, kind, port) for socks, kind, port in kinds for sock in socks)
        families = [[sock.family for sock in socks] for socks, _, _ in kinds]
        alike = families[0] == families[1] == families[2] and len(set(families[0])) == len(families[0])
        everything = [sock for socks, _, _ in kinds for sock in socks]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            cookies = {_namespace(sock) for sock in everything}
            elsewhere = len(cookies) == 1 and _namespace(own) not in cookies - {None}
    except OSError as error:
        listeners.close()
        raise SandboxError(f"the box's listeners can't be looked at: {error}") from None
    if not (sound and alike and elsewhere):
        listeners.close()
        raise SandboxError("what came as the box's listeners are others")
    return listeners


def _is_listener(sock: socket.socket, kind: socket.SocketKind, port: int) -> bool:
    loopback = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}.get(socket.AddressFamily(sock.family))
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    if sock.type != kind or listens != (kind == socket.SOCK_STREAM):
        return False
    return loopback is not None and sock.getsockname()[:2] == (loopback, port)


def _namespace(sock: socket.socket) -> bytes | None:
    """What the kernel calls a socket's network namespace; None if it is too old to say."""
    with contextlib.suppress(OSError):
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_SIZE)
    return None
