"""The network of a box's container, made by a container that shares it for a moment.

For launchers that may not enter the box's network namespace. The container is of the runtime's own image
and has CAP_NET_ADMIN; it connects to the launcher's socket, hands over the listeners, and ends.
"""

import os
from typing import NoReturn

from box_policy.sandbox.docker.container_init import connect
from box_policy.sandbox.namespaces import messages, network
from box_policy.sandbox.namespaces.diagnosis import explain
from box_policy.sandbox.namespaces.network import NetworkMessages


def main() -> NoReturn:
    """Make it, as the launcher says."""
    control = connect()
    try:
        received = messages.receive(control)
        if received is None:
            os._exit(1)
        encoded = NetworkMessages(*(bytes.fromhex(part) for part in received[0]["network"]))
        listeners = network.make_network(encoded, network.address_families())
        fds = [sock.fileno() for sock in (*listeners.tcp, *listeners.dns_udp, *listeners.dns_tcp)]
        messages.send(control, {"event": "listeners"}, fds)
        os._exit(0)
    except OSError as error:
        messages.send_last(control, {"event": "failed", "error": explain(error)})
    finally:
        os._exit(1)
