"""What listens at the origin, beside the name server: one socket a port, for all addresses."""

import socket

from tests.lab import bpf, plan
from tests.lab.origin.certificates import Certificates
from tests.lab.origin.journal import Journal
from tests.lab.origin.nameserver import NameServer
from tests.lab.origin.streams import Acceptor, Stream
from tests.lab.origin.web import Site


async def listen(
    acceptor: Acceptor, journal: Journal, certificates: Certificates, nameserver: NameServer
) -> socket.socket:
    """Open all ports. The caller keeps the socket that is returned: it is the silent port."""
    site = Site(journal)
    for port in plan.HTTP_PORTS:
        await acceptor.listen(port, site.serve)
    for port in plan.TLS_PORTS:
        await acceptor.listen(port, site.serve, certificates)
    await acceptor.listen(plan.DNS_PORT, nameserver.serve)
    await acceptor.listen(plan.BANNER_PORT, _speak_first)
    await acceptor.listen(plan.ECHO_PORT, _echo)
    return _silent_port()


async def _speak_first(stream: Stream) -> None:
    await stream.write(b"SSH-2.0-lab\r\n")
    while await stream.read():
        pass
    await stream.finish()


async def _echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)
    await stream.finish()


def _silent_port() -> socket.socket:
    # A listening socket whose filter drops the SYN: silence takes no firewall rule, hence no nftables.
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bpf.attach(sock, bpf.NOTHING)
    sock.bind(("::", plan.SILENT_PORT))
    sock.listen()
    return sock
