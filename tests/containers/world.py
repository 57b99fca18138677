"""The test network, for a Docker engine: beyond it there is the origin, and nothing else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from tests.containers.engine import Engine
from tests.lab import Lab, plan

CONTAINERS6 = "2a0f:5100:d::/48"
"""Where the containers' IPv6 addresses are; they aren't translated."""
_LOCAL_TABLE = 255


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have the calling thread, the process's first, visit a network namespace."""
    with open("/proc/self/ns/net", "rb") as home, open(namespace, "rb") as away:
        os.setns(away.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


@contextmanager
def world(engine: Engine) -> Iterator[Lab]:
    """The origin, at the end of the engine's only way out. It records all packets that take it."""
    with inside(engine.netns):
        lab = Lab.start()
    try:
        # Everything else is the origin's own, as it sees it.
        with inside(f"/proc/{lab.process_id}/ns/net"), IPRoute() as network:
            (wire,) = network.link_lookup(ifname=plan.ORIGIN_INTERFACE)
            network.route("add", table=_LOCAL_TABLE, dst=CONTAINERS6, oif=wire, scope="link")
        yield lab
    finally:
        with inside(engine.netns):
            lab.close()
