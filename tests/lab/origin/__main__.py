"""``python -m tests.lab.origin CONTROL NOTICES PARENT``: two inherited sockets, the parent's process id."""

import socket
import sys

from tests.lab.namespace import unshare_network

if __name__ == "__main__":
    control, notices = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    unshare_network()
    control.sendall(b"unshared\n")
    # Imported only now: the parent lays the cable meanwhile.
    from tests.lab.origin.control import run

    run(control, notices, int(sys.argv[3]))
