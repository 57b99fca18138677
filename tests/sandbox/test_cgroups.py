"""Where groups for boxes are made, from what /proc says.

No machine of the project's offers cgroup v2 with controllers, so all of v2 is tested on directories that only
look like it: what is written where, not what a kernel makes of it.
"""

import os
import subprocess
from pathlib import Path

import pytest

from box_policy.sandbox.namespaces.cgroups import LEAF, PREFIX, Cgroups, Place, find_places

ALL = frozenset(("memory", "pids", "cpus"))


def mount(point: str, kind: str, options: str, root: str = "/") -> str:
    return f"32 31 0:29 {root} {point} rw,relatime shared:9 - {kind} cgroup rw,{options}\n"


def test_version_1_has_a_place_for_each_hierarchy() -> None:
    mounts = (
        mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct")
        + mount("/sys/fs/cgroup/memory", "cgroup", "memory")
        + mount("/sys/fs/cgroup/unified", "cgroup2", "")
        + "nonsense\n"
    )
    own = "9:name=systemd:/\n5:cpu,cpuacct:/a/b\n4:memory:/m\n2:pids:/\n"
    assert find_places(own, mounts) == [
        Place("/sys/fs/cgroup/cpu,cpuacct/a/b", 1, frozenset(["cpus"])),
        Place("/sys/fs/cgroup/memory/m", 1, frozenset(["memory"])),
    ]


def test_version_2_has_one() -> None:
    mounts = mount("/sys/fs/cgroup", "cgroup2", "nsdelegate")
    path = "/user.slice/run-1.scope"
    assert find_places(f"0::{path}\n", mounts) == [Place(f"/sys/fs/cgroup{path}", 2, ALL)]


@pytest.mark.parametrize(
    ("own", "root", "expected"),
    [
        ("/docker/1/x", "/docker/1", ["/cg/x"]),
        ("/docker/1", "/docker/1", ["/cg"]),
        ("/docker/12", "/docker/1", []),
        ("/", "/docker/1", []),
        ("/../other", "/", []),
        ("/x", "/..", []),
    ],
)
def test_a_part_of_a_hierarchy(own: str, root: str, expected: list[str]) -> None:
    found = find_places(f"4:memory:{own}\n", mount("/cg", "cgroup", "memory", root))
    assert [place.directory for place in found] == expected


@pytest.mark.parametrize("text", ["", "\n", "::\n", "x", "4:memory\n", "4:memory:/\n"])
def test_text_that_says_nothing(text: str) -> None:
    assert find_places(text, "") == []
    assert find_places(text, text) == []


class Group:
    """A directory that looks like a group of cgroup v2 with these processes in it."""

    def __init__(self, path: Path, pids: list[int], controllers: str = "cpu memory pids io") -> None:
        self.path = path
        self.add(path)
        (path / "cgroup.controllers").write_text(controllers)
        (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    @staticmethod
    def add(path: Path) -> None:
        path.mkdir(exist_ok=True)
        for name in (
            "cgroup.procs",
            "cgroup.subtree_control",
            "memory.max",
            "memory.swap.max",
            "pids.max",
            "cpu.max",
        ):
            (path / name).write_text("")

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def place(self) -> Place:
        return Place(str(self.path), 2, ALL)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new directory has the files of a group, as the kernel makes them."""
    make, remove = os.mkdir, os.rmdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        make(path, mode)
        if PREFIX in Path(path).name:
            Group.add(Path(path))

    def rmdir(path: str) -> None:
        for entry in Path(path).glob("*.*"):
            entry.unlink()
        remove(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rmdir", rmdir)


@pytest.mark.usefixtures("kernel")
def test_version_2_where_all_processes_are_ours(tmp_path: Path) -> None:
    own = Group(tmp_path / "own", [os.getppid(), os.getpid()])
    made = Cgroups([own.place()])
    leaf = Group(own.path / LEAF, [])
    assert own.read("cgroup.subtree_control") == "+cpu +memory +pids"
    held = made.join(PREFIX + "1-1", {"memory": 1 << 30, "pids": 50, "cpus": 1.5})
    assert held == {"memory": 2, "pids": 2, "cpus": 2}
    box = own.path / (PREFIX + "1-1")
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.procs")
    assert [(box / name).read_text() for name in files] == [str(1 << 30), "0", "50", "150000 100000", "0"]
    assert made.remove(PREFIX + "1-1")
    assert not box.exists()
    made.close()
    assert own.read("cgroup.subtree_control").startswith("-memory -pids -cpu")
    assert not leaf.path.exists()


@pytest.mark.usefixtures("kernel")
def test_version_2_with_a_process_of_somebody_elses(tmp_path: Path) -> None:
    own = Group(tmp_path / "own", [os.getppid(), 1])
    made = Cgroups([own.place()])
    assert made.join(PREFIX + "1-1", {"memory": 1 << 30}) == {}
    assert own.read("cgroup.subtree_control") == ""
    assert [path.name for path in own.path.glob(PREFIX + "*")] == []


@pytest.mark.usefixtures("kernel")
def test_version_2_with_no_controllers(tmp_path: Path) -> None:
    own = Group(tmp_path / "own", [os.getpid()], controllers="hugetlb")
    assert Cgroups([own.place()]).join(PREFIX + "1-1", {"memory": 1 << 30}) == {}
    assert [path.name for path in own.path.glob(PREFIX + "*")] == []


@pytest.mark.usefixtures("kernel")
def test_version_2_from_the_leaf_of_an_earlier_zygote(tmp_path: Path) -> None:
    own = Group(tmp_path / "own", [])
    (own.path / "cgroup.subtree_control").write_text("cpu memory pids")
    leaf = Group(own.path / LEAF, [os.getpid()])
    made = Cgroups([leaf.place()])
    assert made.join(PREFIX + "2-1", {"pids": 9}) == {"pids": 2}
    assert (own.path / (PREFIX + "2-1") / "pids.max").read_text() == "9"
    # While a box of anyone's is there, its limits are left in force.
    made.close()
    assert own.read("cgroup.subtree_control") == "cpu memory pids"


@pytest.mark.usefixtures("kernel")
def test_what_can_not_be_set_is_not_held(tmp_path: Path) -> None:
    own = Group(tmp_path / "own", [])
    (own.path / "cgroup.subtree_control").write_text("cpu memory pids")
    made = Cgroups([own.place()])
    (own.path / (PREFIX + "1-1")).mkdir()  # somebody has made it before
    assert made.join(PREFIX + "1-1", {"pids": 9}) == {}
    made = Cgroups([Place(str(tmp_path / "absent"), 1, ALL)])
    assert made.join(PREFIX + "1-1", {"pids": 9}) == {}


@pytest.mark.usefixtures("kernel")
def test_only_groups_of_ended_zygotes_are_stale(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f"{PREFIX}{ended.pid}-1", f"{PREFIX}{os.getpid()}-1", "box-policy-x", "other-1"]
    for name in names:
        Group.add(tmp_path / name)
    Cgroups([Place(str(tmp_path), 1, ALL)]).remove_stale()
    # This process is no zygote, so the second was another's with the same number.
    assert {path.name for path in tmp_path.iterdir()} == {"box-policy-x", "other-1"}
