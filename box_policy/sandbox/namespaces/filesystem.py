"""A box's file system, made by its pid 1: an empty root into which only what a box needs is put.

Everything of the host's is opened first, as the caller (``open_host_files``); it is mounted later, as
the box's own unprivileged user, from those descriptors and not by path again.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH110, PTH112, PTH116, PTH120, PTH211

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import host_files, syscalls
from box_policy.sandbox.namespaces.host_files import Directory, Entry, EtcFiles, HostFile, HostTree, Link

HOME = "/home/box"
WORKSPACE = "/workspace"
_NEW_ROOT = "/tmp"  # noqa: S108  # any directory that every host has; the mount is this box's alone
_STAGE = "/.stage"
_EMPTY = "/var/empty"
_SCRATCH = {
    WORKSPACE: 0o755,
    HOME: 0o755,
    "/tmp": 0o1777,  # noqa: S108
    "/var/tmp": 0o1777,  # noqa: S108
    "/dev/shm": 0o1777,  # noqa: S108
}
"""The box's writable directories, one tmpfs behind them all: its size bounds their sum."""
_SCRATCH_FILES = 1_000_000
_TERMINALS = 256
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
# What container runtimes shut in /proc (runtime-tools' default masked and read-only paths).
_PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_PROC_MASKED_FILES = (
    "kallsyms",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "timer_list",
    "timer_stats",
)
_PROC_MASKED_DIRECTORIES = ("acpi", "asound", "scsi")
# A box keeps its own directories here; a host directory over one of them would hide it.
_RESERVED = ("/proc", "/dev", "/sys", "/run", "/etc", WORKSPACE)

_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV
_READ_ONLY = _PLAIN | syscalls.MS_RDONLY


@dataclass(slots=True)
class OpenedTree:
    """A detached mount of a host directory or file."""

    path: str
    mount: int
    no_exec: bool


@dataclass(slots=True)
class HostFiles:
    """What of the host's goes into a box."""

    made: list[Directory | Link]
    trees: list[OpenedTree]
    files: list[OpenedTree]
    masked: list[str]
    etc: EtcFiles
    workdir: int | None
    """Detached mount of the host directory that becomes /workspace."""

    def close(self) -> None:
        """Close the mounts."""
        for opened in (*self.trees, *self.files):
            os.close(opened.mount)
        if self.workdir is not None:
            os.close(self.workdir)


class Workdir:
    """The host directory that becomes /workspace. Its path is resolved once, when this is made."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxError(f"work directory {path}: {error.strerror}") from None
        status = os.fstat(self._fd)
        self.uid = status.st_uid
        self.gid = status.st_gid

    def mount(self, id_map: int | None = None) -> int:
        """A detached mount of it; ``id_map`` is a user namespace that maps its owner.

        To be called once, in the mount namespace that this was made in. SandboxError if the kernel or
        the file system refuses.
        """
        mount = -1
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        try:
            mount = syscalls.clone_mount(self._fd, recursive=True)
            if id_map is None:
                syscalls.set_mount_attributes(mount, attributes, recursive=True)
            else:
                attributes |= syscalls.MOUNT_ATTR_IDMAP
                syscalls.set_mount_attributes(mount, attributes, recursive=True, user_namespace=id_map)
            return mount
        except OSError as error:
            if mount >= 0:
                os.close(mount)
            remedy = (
                "; its file system or this kernel can't map its owner into the box: start the box as the user"
                " who owns it instead of root, or use a directory on ext4, xfs, btrfs or tmpfs"
            )
            raise SandboxError(
                f"work directory {self._path}: it can't be mounted ({error.filename}: {error.strerror})"
                + (remedy if id_map is not None else "")
            ) from None
        finally:
            os.close(self._fd)


def open_host_files(
    read_only: Sequence[str], etc: EtcFiles, workdir: int | None, rootfs: str | None
) -> HostFiles:
    """Open what a box shows of the host. Call it in the box's mount namespace, as the caller's user.

    ``rootfs`` is a host directory from which the system's directories come in place of the host's.
    """
    root = "" if rootfs is None else _root_of_a_system(rootfs)
    if root:
        etc = host_files.survey_etc_of(root)
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        points = host_files.mount_points(file.read())
    entries: list[Entry] = []
    for path in host_files.SYSTEM_DIRECTORIES:
        entries.extend(host_files.expose(path, points, root))
    masked = list(etc.masked)
    for path in _outermost(read_only, beside=() if root else host_files.SYSTEM_DIRECTORIES):
        check_read_only(path, has_own_system=bool(root))
        entries.extend(host_files.expose(path, points))
        masked.extend(host_files.settings_to_mask(path))
    entries.extend(entry for path in etc.trees for entry in host_files.expose(path, points, root))
    opened = HostFiles([], [], [], masked, etc, workdir)
    for entry in entries:
        if isinstance(entry, HostTree):
            opened.trees.append(_open(entry, root))
        elif isinstance(entry, HostFile):
            opened.files.append(_open(entry, root))
        else:
            opened.made.append(entry)
    return opened


def _root_of_a_system(path: str) -> str:
    """The real path of a directory, "" for the host's own root. SandboxError if it is none."""
    try:
        real = os.path.realpath(path, strict=True)
        if not stat.S_ISDIR(os.stat(real).st_mode):
            raise SandboxError(f"root file system {path}: not a directory")
    except OSError as error:
        raise SandboxError(f"root file system {path}: {error.strerror}") from None
    return real.rstrip("/")


def own_directories(spec: BoxSpec) -> list[str]:
    """The directories to make in a box. SandboxError for one that isn't in the box's own writable ones."""
    own = [path for path in _SCRATCH if path != WORKSPACE or spec.workdir is None]
    for path in spec.directories:
        if os.path.normpath(path) != path or not path.startswith(tuple(f"{top}/" for top in own)):
            raise SandboxError(f"{path} can't be made in a box: it isn't in one of {', '.join(own)}")
    return list(spec.directories)


def _outermost(paths: Iterable[str], beside: Sequence[str]) -> list[str]:
    """Paths in order, without those that lie inside another of them or of ``beside``."""
    kept: list[str] = []
    for path in sorted(os.path.normpath(path) for path in paths):
        if not any(path == outer or path.startswith(outer + "/") for outer in (*kept, *beside)):
            kept.append(path)
    return kept


def check_read_only(path: str, *, has_own_system: bool) -> None:
    """SandboxError for a host directory or file that can't be shown in a box at its own path."""
    own = (*_RESERVED, *host_files.SYSTEM_DIRECTORIES) if has_own_system else _RESERVED
    hides = any(path == held or held.startswith(path.rstrip("/") + "/") for held in (*_SCRATCH, *own))
    if hides or any(path.startswith(held + "/") for held in own):
        raise SandboxError(f"{path} can't be shown in a box: the box has its own directory there")
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise SandboxError(f"{path} can't be shown in a box: {error.strerror}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise SandboxError(f"{path} can't be shown in a box: neither a directory nor a file")


def _open(entry: HostTree | HostFile, root: str) -> OpenedTree:
    try:
        if root and entry.source == root + entry.path:
            fd = _open_beneath(root, entry.path)
        else:
            fd = os.open(entry.source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            wanted = stat.S_ISDIR if isinstance(entry, HostTree) else stat.S_ISREG
            if not wanted(os.fstat(fd).st_mode):
                # Replaced meanwhile. A host's socket, mounted as a file, could be connected to.
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            mount = syscalls.clone_mount(fd)
            # The box's mount is a new one and would lose what the host's forbids.
            no_exec = bool(os.fstatvfs(fd).f_flag & os.ST_NOEXEC)
        finally:
            os.close(fd)
    except OSError as error:
        raise SandboxError(f"{entry.source} can't be shown in a box: {error.strerror}") from None
    return OpenedTree(entry.path, mount, no_exec)


def _open_beneath(root: str, path: str) -> int:
    """Open ``path`` below ``root`` without following any link: who changes one just now shows nothing."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.strip("/").split("/"):
        above = fd
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    return fd


class RootBuilder:
    """Builds the file system and enters it. ``root_id`` is the box's root, as pid 1 numbers it."""

    def __init__(
        self,
        host: HostFiles,
        own_files: dict[str, bytes],
        root_id: int,
        scratch_bytes: int,
        directories: Sequence[str],
    ) -> None:
        self._host = host
        self._own_files = own_files
        self._root_id = root_id
        self._scratch_bytes = scratch_bytes
        self._directories = directories

    @property
    def proc(self) -> str:
        """The /proc of this pid namespace, once built and until entered."""
        return self._at("/proc")

    def build(self) -> None:
        """Make the file system, out of sight of everyone. OSError if the kernel refuses a step."""
        owner = f"uid={self._root_id},gid={self._root_id}"
        syscalls.mount("box", _NEW_ROOT, "tmpfs", _PLAIN, f"mode=755,{owner}")
        for directory in ("/proc", "/dev", "/etc", "/home", _STAGE, _EMPTY):
            os.makedirs(self._at(directory), exist_ok=True)
        self._make_etc()
        self._make_devices()
        self._make_scratch(owner)
        self._make_host_files()
        self._make_proc()
        os.rmdir(self._at(_STAGE))
        self._host.close()

    def enter(self) -> None:
        """Make it this process's root directory, and leave nothing of the host's."""
        # Not only these mounts but what lies behind them: the empty directory is mounted elsewhere too.
        remount = syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NOSUID
        syscalls.mount("none", self._at("/dev"), None, remount | syscalls.MS_NOEXEC)
        syscalls.mount("none", _NEW_ROOT, None, remount | syscalls.MS_NODEV)
        syscalls.pivot_root(_NEW_ROOT)

    def _at(self, path: str) -> str:
        return f"{_NEW_ROOT}/{path.lstrip('/')}"

    def _make_etc(self) -> None:
        for path, content in (self._host.etc.files | self._own_files).items():
            self._write(path, content)
        for path, target in self._host.etc.links.items():
            os.symlink(target, self._at(path))

    def _write(self, path: str, content: bytes) -> None:
        fd = os.open(self._at(path), os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)

    def _make_devices(self) -> None:
        dev = self._at("dev")
        syscalls.mount("dev", dev, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=755,size=64k")
        for name in _DEVICES:
            self._write(f"dev/{name}", b"")
            syscalls.mount(f"/dev/{name}", f"{dev}/{name}", None, syscalls.MS_BIND)
        for name, target in _DEVICE_LINKS.items():
            os.symlink(target, f"{dev}/{name}")
        os.mkdir(f"{dev}/pts")
        owner = f"uid={self._root_id},gid={self._root_id}"
        # Else one box could have all that the host has (kernel.pty.max).
        options = f"newinstance,max={_TERMINALS},ptmxmode=0666,mode=620,{owner}"
        syscalls.mount("devpts", f"{dev}/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, options)

    def _make_scratch(self, owner: str) -> None:
        stage = self._at(_STAGE)
        limits = f"size={self._scratch_bytes},nr_inodes={_SCRATCH_FILES}"
        syscalls.mount("scratch", stage, "tmpfs", _PLAIN, f"mode=755,{limits},{owner}")
        for number, (path, mode) in enumerate(_SCRATCH.items()):
            os.makedirs(self._at(path), exist_ok=True)
            if path == WORKSPACE and self._host.workdir is not None:
                syscalls.attach_mount(self._host.workdir, self._at(path))
                continue
            source = f"{stage}/{number}"
            os.mkdir(source)
            os.chmod(source, mode)
            os.chown(source, self._root_id, self._root_id)
            syscalls.mount(source, self._at(path), None, syscalls.MS_BIND)
        syscalls.detach(stage)
        for path in self._directories:
            self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        if not os.path.isdir(self._at(path)):
            self._make_directory(os.path.dirname(path))
            os.mkdir(self._at(path))
            os.chown(self._at(path), self._root_id, self._root_id)

    def _make_host_files(self) -> None:
        for made in self._host.made:
            if isinstance(made, Link):
                os.symlink(made.target, self._at(made.path))
            else:
                os.makedirs(self._at(made.path), exist_ok=True)
        stage, empty = self._at(_STAGE), self._at(_EMPTY)
        for tree in self._host.trees:
            os.makedirs(self._at(tree.path), exist_ok=True)
            syscalls.attach_mount(tree.mount, stage)
            no_exec = syscalls.MS_NOEXEC if tree.no_exec else 0
            # An overlay has at least two layers, or one that can be written to.
            layers = f"lowerdir={stage}:{empty}"
            syscalls.mount("host", self._at(tree.path), "overlay", _READ_ONLY | no_exec, layers)
            syscalls.detach(stage)
        for file in self._host.files:
            os.makedirs(os.path.dirname(self._at(file.path)), exist_ok=True)
            self._write(file.path, b"")
            attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
            syscalls.set_mount_attributes(file.mount, attributes)
            syscalls.attach_mount(file.mount, self._at(file.path))
        for path in self._host.masked:
            self._mask(self._at(path))

    def _make_proc(self) -> None:
        proc = self._at("proc")
        syscalls.mount("proc", proc, "proc", _PLAIN | syscalls.MS_NOEXEC)
        for name in _PROC_READ_ONLY:
            path = f"{proc}/{name}"
            if os.path.exists(path):
                syscalls.mount(path, path, None, syscalls.MS_BIND | syscalls.MS_REC)
                flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | _READ_ONLY | syscalls.MS_NOEXEC
                syscalls.mount("none", path, None, flags)
        for name in (*_PROC_MASKED_FILES, *_PROC_MASKED_DIRECTORIES):
            self._mask(f"{proc}/{name}")

    def _mask(self, path: str) -> None:
        try:
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        except OSError:
            return
        cover = self._at(_EMPTY) if is_directory else self._at("dev/null")
        syscalls.mount(cover, path, None, syscalls.MS_BIND)
