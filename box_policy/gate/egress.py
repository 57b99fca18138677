"""The sockets with which the gate itself goes out."""

import socket


class Egress:
    """Makes them, each with the mark by which firewall rules tell the gate's traffic from a box's.

    Without a mark they are like any other. Where one is asked for and the kernel refuses it (socket(7): it
    takes CAP_NET_ADMIN or, since Linux 5.17, CAP_NET_RAW) there is no socket: without the mark the rules
    would bring its packets back to the gate.
    """

    def __init__(self, mark: int | None = None) -> None:
        self.mark = mark

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """A socket that doesn't block. OSError if there is none to be had, or no mark."""
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        if self.mark is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
            except BaseException:
                sock.close()
                raise
        return sock
