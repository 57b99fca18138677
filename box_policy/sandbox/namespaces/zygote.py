"""The process that boxes are forked from: it imports everything once, so that a box need not.

It has one thread, holds nothing of any box, and ends when its socket closes.
"""

import gc
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from box_policy.sandbox.namespaces import host_files, messages, outer, seccomp, syscalls
from box_policy.sandbox.namespaces.box_groups import BoxGroups
from box_policy.sandbox.namespaces.box_init import Filters
from box_policy.sandbox.namespaces.cgroups import ZYGOTE
from box_policy.sandbox.namespaces.messages import DescriptorsLostError
from box_policy.sandbox.namespaces.network import NetworkMessages
from box_policy.sandbox.namespaces.outer import BoxParts


def main() -> NoReturn:
    """Serve requests on the socket whose descriptor is the last argument."""
    server = socket.socket(fileno=int(sys.argv[-1]))
    # The caller's terminal sends its signals to whole groups of processes; boxes are the caller's to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A box sees the command line of its pid 1, and with it where on this machine Python lies.
    syscalls.set_command_line("box")
    syscalls.set_process_name(ZYGOTE)
    # What serves boxes has more descriptors than their programs (see workload.limit_descriptors).
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    architecture = seccomp.native_architecture()
    if architecture is None:
        sys.exit("box-policy: no system call filter for this processor; only x86_64 and aarch64 have one")
    network = _encode_network()
    filters = Filters(
        *(seccomp.assemble(rules, architecture) for rules in (seccomp.init_rules(), seccomp.box_rules()))
    )
    etc_changed = _etc_changed()
    etc = host_files.survey_etc()
    own_pid = os.getpid()
    groups = BoxGroups()
    # A collection in a forked process would write to, and so copy, every page of this one's objects.
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        groups.remove_ended_until_readable(server.fileno())
        try:
            received = messages.receive(server)
        except DescriptorsLostError:
            continue  # the caller sees the box's control socket closed
        if received is None:
            groups.close()
            os._exit(0)
        request, fds = received
        if etc_changed != (etc_changed := _etc_changed()):
            etc = host_files.survey_etc()
        cgroups, name = groups.prepare(request["limits"])
        pid = os.fork()
        if pid == 0:
            server.close()
            groups.leave()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            outer.run(
                socket.socket(fileno=fds[0]), own_pid, request, BoxParts(network, etc, filters, cgroups, name)
            )
        groups.watch(name, pid)
        messages.close_all(fds)


def _etc_changed() -> int:
    # What package managers and administrators' tools replace (ld.so.cache above all), they rename.
    return Path("/etc").stat().st_mtime_ns


def _encode_network() -> NetworkMessages:
    """Encode the netlink messages in a child.

    Their encoder, pyroute2, triples this process's memory, and with it the time of each later fork.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            from box_policy.sandbox.namespaces import network_messages

            with open(writer, "w") as file:
                json.dump([encoded.hex() for encoded in network_messages.encode()], file)
        except Exception:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    return NetworkMessages(*(bytes.fromhex(encoded) for encoded in json.loads(text)))


if __name__ == "__main__":
    main()
