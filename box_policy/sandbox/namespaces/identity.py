"""Who a box's processes are outside it: the id maps of its two user namespaces.

U1 owns the network namespace and the mounts; U2 lies inside it and is where programs run. The
host's user 0 is in neither: as it, /proc/sys/kernel/core_pattern alone would be a way out.

The kernel counts much by user: what epoll watches, descriptors in flight, inotify instances. Boxes with the
same ids would have these in common, so where there are ids for it, each gets others.
"""

from dataclasses import dataclass, replace

from box_policy.sandbox.launcher import SandboxError

RANGE_START = 1 << 31
"""From here on ids are assigned to nobody: subordinate ids (/etc/subuid) and containers have lower ones."""
RANGE_LENGTH = 65_537
"""U1's own root, and 65,536 ids for U2."""
_OVERFLOW_ID = 65_534
_ALL_IDS = 4_294_967_295


@dataclass(frozen=True, slots=True)
class IdMapping:
    """One line of /proc/<pid>/uid_map or gid_map, user_namespaces(7)."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids that U1 maps, as the caller's own user namespace numbers them."""

    uid: int
    gid: int
    count: int
    """1: box root is the caller's own user. More: U2 has all but the first, so none of U1's root."""
    ranges: int = 1
    """How many ranges of so many ids there are to choose from; this is the first of them."""

    def choose(self, number: int) -> "Identity":
        """The range with this number, from 0."""
        first = number * self.count
        return replace(self, uid=self.uid + first, gid=self.gid + first, ranges=1)

    @property
    def is_range(self) -> bool:
        """Whether the maps must be written from outside, by one with CAP_SETUID and CAP_SETGID there."""
        return self.count > 1

    @property
    def box_root(self) -> int:
        """The box's user 0, as U1 numbers it."""
        return 1 if self.is_range else 0

    @property
    def outer_maps(self) -> tuple[str, str]:
        """uid_map and gid_map of U1."""
        return f"0 {self.uid} {self.count}", f"0 {self.gid} {self.count}"

    @property
    def inner_map(self) -> str:
        """uid_map and gid_map of U2."""
        return f"0 {self.box_root} {self.count - self.box_root}"


def parse_id_map(text: str) -> list[IdMapping]:
    """The lines of a uid_map or gid_map file."""
    return [IdMapping(*(int(field) for field in line.split())) for line in text.splitlines() if line.strip()]


def choose_identity(
    uid: int, gid: int, uid_map: list[IdMapping], gid_map: list[IdMapping], writes_host_directory: bool
) -> Identity:
    """Ids for a box of effective user ``uid`` and group ``gid``, whose own user namespace has these maps.

    Not root: the user's own id. Root: ranges that nothing else uses. SandboxError if only the
    host's root is left to choose.
    """
    if uid != 0:
        return _single(uid, gid, uid_map)
    if _is_initial(uid_map) and _is_initial(gid_map):
        return _ranges(RANGE_START, RANGE_START, _ALL_IDS - RANGE_START)
    # Root of a container. An id-mapped mount of a host directory needs the host's own root, so with
    # such a directory the box must be the user who owns it.
    uids, gids = _free_range(uid_map), _free_range(gid_map)
    if uids is not None and gids is not None and not (writes_host_directory and _outside(0, uid_map) != 0):
        return _ranges(uids[0], gids[0], min(uids[1], gids[1]))
    return _single(uid, gid, uid_map)


def _ranges(uid: int, gid: int, available: int) -> Identity:
    count = min(available, RANGE_LENGTH)
    return Identity(uid, gid, count, available // count)


def _single(uid: int, gid: int, uid_map: list[IdMapping]) -> Identity:
    if _outside(uid, uid_map) == 0:
        raise SandboxError(
            "no safe user id for a box: this user namespace maps only the user that is root outside it"
            " (/proc/self/uid_map); start it as a normal user, or map a range of subordinate ids"
        )
    return Identity(uid, gid, 1)


def _is_initial(id_map: list[IdMapping]) -> bool:
    return id_map == [IdMapping(0, 0, _ALL_IDS)]


def _outside(inside: int, id_map: list[IdMapping]) -> int | None:
    for line in id_map:
        if line.inside <= inside < line.inside + line.count:
            return line.outside + inside - line.inside
    return None


def _free_range(id_map: list[IdMapping]) -> tuple[int, int] | None:
    """First id and length of the largest run that this namespace can give away."""
    runs = []
    for line in id_map:
        end = line.inside + line.count
        # The upper half: the lower ids are those of the container's own users.
        start = max(line.inside + line.count // 2, 1)
        if start < _OVERFLOW_ID < end:
            end = _OVERFLOW_ID
        if line.outside <= 0 < line.outside + line.count and line.inside - line.outside >= start:
            start = line.inside - line.outside + 1
        if end - start >= 2:
            runs.append((end - start, start))
    if not runs:
        return None
    length, start = max(runs)
    return start, length
