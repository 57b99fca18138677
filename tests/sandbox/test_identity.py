"""Which ids a box gets: never the host's root, in no user namespace."""

import socket
from contextlib import ExitStack
from itertools import pairwise

import pytest

from box_policy.sandbox.launcher import SandboxError
from box_policy.sandbox.namespaces import id_ranges
from box_policy.sandbox.namespaces.identity import (
    RANGE_LENGTH,
    RANGE_START,
    Identity,
    choose_identity,
    parse_id_map,
)

INITIAL = "         0          0 4294967295\n"
ROOTLESS = "0 1000 1\n1 100000 65536\n"
REMAPPED = "0 100000 65536\n"
IDENTITY_OF_64K = "0 0 65536\n"
ONLY_ROOT = "0 0 1\n"
ONLY_USER = "0 1000 1\n"
KEPT_USER = "1000 1000 1\n"


def choose(uid: int, id_map: str, writes: bool = False) -> Identity:
    parsed = parse_id_map(id_map)
    return choose_identity(uid, uid, parsed, parsed, writes)


def outside(identity: Identity, id_map: str) -> set[int]:
    """All ids of the box, as the namespace around the caller's numbers them."""
    ids = range(identity.uid, identity.uid + identity.count)
    return {
        line.outside + own - line.inside
        for line in parse_id_map(id_map)
        for own in ids
        if line.inside <= own < line.inside + line.count
    }


@pytest.mark.parametrize("id_map", [INITIAL, KEPT_USER])
def test_a_normal_user_gets_its_own_id(id_map: str) -> None:
    identity = choose(1000, id_map)
    assert (identity.outer_maps, identity.inner_map) == (("0 1000 1", "0 1000 1"), "0 0 1")
    assert (identity.is_range, identity.box_root) == (False, 0)


@pytest.mark.parametrize("writes", [False, True])
def test_the_hosts_root_gets_a_range_of_unused_ids(writes: bool) -> None:
    identity = choose(0, INITIAL, writes)
    assert identity.outer_maps == ("0 2147483648 65537", "0 2147483648 65537")
    assert identity.inner_map == "0 1 65536"
    assert (identity.is_range, identity.box_root) == (True, 1)


@pytest.mark.parametrize("id_map", [INITIAL, "0 5 4000000\n"])
def test_ranges_do_not_overlap_and_end_with_the_ids(id_map: str) -> None:
    identity = choose(0, id_map)
    assert identity.ranges > 25
    chosen = [identity.choose(number) for number in range(identity.ranges)]
    assert all(one.uid == one.gid and (one.count, one.ranges) == (RANGE_LENGTH, 1) for one in chosen)
    assert all(a.uid + a.count <= b.uid for a, b in pairwise(chosen))
    [line] = parse_id_map(id_map)
    assert identity.uid <= chosen[0].uid
    assert chosen[-1].uid + RANGE_LENGTH <= line.inside + line.count
    assert 65_534 not in range(chosen[0].uid, chosen[-1].uid + RANGE_LENGTH)


def test_reserved_ranges_differ_until_let_go() -> None:
    ids = Identity(RANGE_START, RANGE_START, RANGE_LENGTH, 4)
    reserved = [id_ranges.reserve(ids) for _ in range(3)]
    held = {who.uid for who, reservation in reserved if reservation is not None}
    assert len(held) == 3
    for who, reservation in reserved:
        assert (who.uid - RANGE_START) % RANGE_LENGTH == 0
        if reservation is not None:
            reservation.close()
    again, reservation = id_ranges.reserve(ids)
    assert again.ranges == 1
    assert reservation is not None
    reservation.close()


def test_where_all_ranges_are_taken_one_is_shared() -> None:
    ids = Identity(RANGE_START, RANGE_START, RANGE_LENGTH, 2)
    with ExitStack() as stack:
        for number in range(ids.ranges):
            taken = stack.enter_context(socket.socket(socket.AF_UNIX))
            taken.bind(f"\0box-policy-ids-{ids.choose(number).uid}")
        shared, reservation = id_ranges.reserve(ids)
    assert (shared.ranges, reservation) == (1, None)


def test_the_only_range_needs_no_reservation() -> None:
    assert id_ranges.reserve(Identity(1000, 1000, 1)) == (Identity(1000, 1000, 1), None)


@pytest.mark.parametrize("id_map", [ROOTLESS, REMAPPED, IDENTITY_OF_64K, "0 0 1000\n", "0 5 4000000\n"])
@pytest.mark.parametrize("writes", [False, True])
def test_a_containers_root_never_gets_the_root_outside(id_map: str, writes: bool) -> None:
    identity = choose(0, id_map, writes)
    assert 0 not in outside(identity, id_map)
    assert len(outside(identity, id_map)) == identity.count


def test_a_containers_root_gets_a_range_apart_from_the_containers_users() -> None:
    identity = choose(0, REMAPPED)
    assert identity.is_range
    assert identity.uid >= 32768
    assert identity.uid + identity.count <= 65534


def test_a_containers_root_with_a_work_directory_is_its_owner() -> None:
    # It can't make an id-mapped mount, which takes the host's root.
    identity = choose(0, REMAPPED, writes=True)
    assert (identity.uid, identity.count) == (0, 1)


def test_a_containers_root_with_a_single_id() -> None:
    assert choose(0, ONLY_USER) == Identity(0, 0, 1)


@pytest.mark.parametrize(("uid", "id_map"), [(0, ONLY_ROOT), (1000, "1000 0 1\n"), (0, "0 0 2\n")])
def test_nothing_safe_is_refused(uid: int, id_map: str) -> None:
    with pytest.raises(SandboxError, match="no safe user id for a box"):
        choose(uid, id_map)


def test_users_and_groups_are_chosen_together() -> None:
    identity = choose_identity(0, 0, parse_id_map(REMAPPED), parse_id_map("0 100000 1000\n"), False)
    assert identity.count == 500
    assert identity.gid == 500
