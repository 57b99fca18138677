"""The rig's origin: does what a hello asks for, and answers DNS. ``python -m benchmarks.rig.origin``

Built to cost little: one connection after the other, four system calls each. It doesn't wait for a
hello, since with TCP_DEFER_ACCEPT the kernel hands a connection over once that is there.
"""

import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import dnslib

from benchmarks.rig import plan
from benchmarks.rig.bulk import limit_stalls, payload, swallow
from tests.lab.namespace import unshare_network

_HELLO_SIZE: Final = 4096
_BACKLOG: Final = 4096


class Origin:
    """Serves one connection at a time; only idle ones stay."""

    def __init__(self) -> None:
        self._kept: list[socket.socket] = []
        self._payload, self._payload_size = payload()

    def serve(self) -> NoReturn:
        """Serve until the process ends."""
        listener = socket.create_server(("0.0.0.0", plan.PORT), backlog=_BACKLOG)
        limit_stalls(listener)  # inherited by what is accepted
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        print("ready", flush=True)
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:  # the limit has passed without any
                continue
            try:
                self._serve(sock)
            except (OSError, ValueError):
                sock.close()  # the client's loss, which the client reports

    def _serve(self, sock: socket.socket) -> None:
        received = sock.recv(_HELLO_SIZE)
        order, size = plan.order(received)
        if order == plan.ANSWER:
            sock.send(b"1")
        elif order == plan.KEEP:
            sock.send(b"1")
            self._kept.append(sock)
            return
        elif order == plan.RELEASE:
            for kept in self._kept:
                kept.close()
            self._kept.clear()
        elif order == plan.DOWN:
            while os.sendfile(sock.fileno(), self._payload, 0, self._payload_size):
                pass
        elif order == plan.UP:
            # A server speaks before its client's data comes; until then a proxy may read that as TLS.
            sock.send(b"1")
            swallow(sock, size - (len(received) - len(plan.hello(order, size))))
            sock.send(b"1")
        sock.close()


def answer(received: bytes, zone: Mapping[str, Sequence[str]], ttl: int) -> bytes:
    """The answer to a DNS question, where names have IPv4 addresses and nothing else."""
    question = dnslib.DNSRecord.parse(received)
    reply = question.reply()
    if question.q.qtype == dnslib.QTYPE.A:
        for address in zone.get(str(question.q.qname).rstrip("."), ()):
            reply.add_answer(dnslib.RR(question.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=ttl))
    return bytes(reply.pack())


def answer_questions(sock: socket.socket) -> NoReturn:
    """A name server that knows one name."""
    while True:
        received, client = sock.recvfrom(4096)
        sock.sendto(answer(received, {plan.NAME: [plan.ALLOWED]}, ttl=300), client)


def main() -> None:
    """Say when there is a namespace, wait until the cable is laid, then serve."""
    unshare_network()
    print("unshared", flush=True)
    sys.stdin.readline()
    name_server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    name_server.bind((plan.ORIGIN, 53))
    threading.Thread(target=answer_questions, args=(name_server,), daemon=True).start()
    Origin().serve()


if __name__ == "__main__":
    main()
