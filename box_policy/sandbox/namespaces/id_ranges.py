"""Reserving a range of ids for one box, so that no two boxes of this host share one.

The reservation is an abstract unix socket with the number of the range in its name: only one process can
have it, it ends with that process, and nothing lies in the file system. It is seen in one network namespace
alone; boxes of callers in different ones (containers) differ since each begins its search at random.
"""

import os
import socket

from box_policy.sandbox.namespaces.identity import Identity

_TRIES = 32


def reserve(who: Identity) -> tuple[Identity, socket.socket | None]:
    """A box's ids out of ``who``'s ranges, and what holds them until it is closed or its process ends.

    None is held where there is but one range, for all boxes, or where so many are taken that somebody must
    be sitting on the names: the range is then one at random. Shared ids share quotas, and nothing else.
    """
    if who.ranges == 1:
        return who, None
    chosen = who
    for _ in range(_TRIES):
        chosen = who.choose(int.from_bytes(os.urandom(8)) % who.ranges)
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # not listening: nobody can connect
        try:
            reservation.bind(f"\0box-policy-ids-{chosen.uid}")
        except OSError:
            reservation.close()
            continue
        return chosen, reservation
    return chosen, None
