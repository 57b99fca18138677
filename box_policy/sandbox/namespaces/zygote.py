"""The process that boxes are forked from: it imports everything once, so that a box need not.

It has one thread, holds nothing of any box, and ends when its socket closes.
"""

import gc
import os
import signal
import socket
import sys
from typing import NoReturn

from box_policy.sandbox.namespaces import host_files, messages, network, outer, seccomp, syscalls


def main() -> NoReturn:
    """Serve requests on the socket whose descriptor is the last argument."""
    server = socket.socket(fileno=int(sys.argv[-1]))
    # The caller's terminal sends its signals to whole groups of processes; boxes are the caller's to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    syscalls.set_process_name("box-zygote")
    architecture = seccomp.native_architecture()
    if architecture is None:
        sys.exit("box-policy: no system call filter for this processor; only x86_64 and aarch64 have one")
    program = seccomp.assemble(seccomp.box_rules(), architecture)
    network.encode_ahead()
    etc = host_files.survey_etc()
    own_pid = os.getpid()
    # A collection in a forked process would write to, and so copy, every page of this one's objects.
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        received = messages.receive(server)
        if received is None:
            os._exit(0)
        request, fds = received
        pid = os.fork()
        if pid == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            outer.run(socket.socket(fileno=fds[0]), own_pid, request, etc, program)
        messages.close_all(fds)


if __name__ == "__main__":
    main()
