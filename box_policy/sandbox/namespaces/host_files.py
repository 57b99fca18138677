"""Which of the host's files a box sees: programs and libraries, and of /etc what programs need.

Directories are shown through read-only overlays, never bind mounts. A unix socket or FIFO reached
through an overlay is an object of its own that nobody listens on; through a bind mount, even a
read-only one, it is the host's, and connect(2) would lead out of the box.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH114, PTH115, PTH116, PTH118, PTH119, PTH208

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")

# Entries of /etc, by name. What is not here does not exist in a box.
_ETC_NAMES = frozenset(
    [
        "alpine-release",
        "alternatives",
        "bash.bashrc",
        "ca-certificates",
        "ca-certificates.conf",
        "crypto-policies",
        "debian_version",
        "fonts",
        "gai.conf",
        "gitconfig",
        "gnutls",
        "inputrc",
        "java",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "lsb-release",
        "magic",
        "magic.mime",
        "mailcap",
        "mime.types",
        "networks",
        "npmrc",
        "os-release",
        "perl",
        "php",
        "pip.conf",
        "pki",
        "profile",
        "profile.d",
        "protocols",
        "redhat-release",
        "rpc",
        "services",
        "shells",
        "ssl",
        "terminfo",
        "timezone",
        "vimrc",
    ]
)
_ETC_PREFIXES = ("java-", "python", "ld-musl-")
# Directories of /etc whose files are read by people and may hold what people put into them.
_ETC_SETTINGS = ("profile.d",)
# Settings of package managers, below an installation prefix such as a virtual environment.
_PREFIX_SETTINGS = (
    ".condarc", "condarc", "pip.conf", "etc/npmrc", "etc/gitconfig", ".npmrc", ".pypirc", ".netrc",
)  # fmt: skip

_COPY_LIMIT = 4 * 1024 * 1024
# Too much is left out rather than too little: a program can do without a setting.
_CREDENTIAL = re.compile(
    rb"://[^/\s\"'<>]*@"  # a URL with a user, a token or a password
    rb"|/t/[a-z]{2}-[0-9a-f-]{8,}"  # conda's way to put a token into a URL
    rb"|(pass(word|wd|phrase)?|secret|token|api_?key|access_?key|extraheader|credentials?)"
    rb"[a-z0-9_-]*[\"']?\s*[=:]\s*\S"
    rb"|_auth[a-z]*\s*=|authorization[\"']?\s*[=:]|(?<![a-z])pat[\"']?\s*[=:]"
    rb"|bearer\s+\S|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class HostTree:
    """A host directory without mounts inside it, to be overlaid at ``path``."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class HostFile:
    """A host file to be mounted at ``path``."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to make at ``path``."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """An empty directory to make at ``path``."""

    path: str


Entry = HostTree | HostFile | Link | Directory


@dataclass(slots=True)
class EtcFiles:
    """What a box has of the host's /etc."""

    trees: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    """Paths inside ``trees`` to be covered by something empty."""
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def holds_credentials(content: bytes) -> bool:
    """Whether a settings file looks as if it held a password or token."""
    return _CREDENTIAL.search(content) is not None


def expose(path: str, mount_points: Iterable[str], root: str = "") -> Iterator[Entry]:
    """What to make in a box so that ``path`` is seen as it is below the host directory ``root``.

    An overlay shows one file system, and the kernel refuses one whose mounts it would uncover. So a
    directory that has mounts inside is made anew, and each of its entries shown by itself.
    """
    source = root + path
    try:
        status = os.lstat(source)
    except OSError:
        return
    if stat.S_ISLNK(status.st_mode):
        yield Link(path, os.readlink(source))
    elif stat.S_ISREG(status.st_mode):
        yield HostFile(path, source)
    elif stat.S_ISDIR(status.st_mode):
        inside = [point for point in mount_points if point.startswith(source.rstrip("/") + "/")]
        if not inside:
            yield HostTree(path, source)
            return
        yield Directory(path)
        try:
            names = sorted(os.listdir(source))
        except OSError:
            return
        for name in names:
            yield from expose(os.path.join(path, name), inside, root)


def mount_points(mountinfo: str) -> list[str]:
    """Where things are mounted, from the text of /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    points = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            points.append(_unescape(fields[4]))
    return points


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def survey_etc(etc: str = "/etc", visible: Collection[str] = SYSTEM_DIRECTORIES) -> EtcFiles:
    """Look at the host's /etc. Left out: what is not world-readable, and settings with credentials.

    ``visible`` are the host directories that a link may point into.
    """
    result = EtcFiles()
    try:
        names = sorted(os.listdir(etc))
    except OSError:
        return result
    for name in names:
        if name in _ETC_NAMES or name.startswith(_ETC_PREFIXES):
            try:
                _survey_entry(os.path.join(etc, name), visible, result)
            except OSError:
                continue  # vanished, or not ours to read
    return result


def _survey_entry(path: str, visible: Collection[str], result: EtcFiles) -> None:
    if os.path.islink(path):
        resolved = os.path.realpath(path)
        if resolved.startswith(tuple(directory + "/" for directory in visible)):
            result.links[path] = os.readlink(path)
            return
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        if not os.path.islink(path) and _is_public(status):
            result.trees.append(path)
            result.masked.extend(_to_mask(path, os.path.basename(path) in _ETC_SETTINGS))
    elif stat.S_ISREG(status.st_mode) and _is_public(status) and status.st_size <= _COPY_LIMIT:
        with open(path, "rb") as file:
            content = file.read(_COPY_LIMIT)
        if os.path.basename(path) == "ld.so.cache" or not holds_credentials(content):
            result.files[path] = content


def _is_public(status: os.stat_result) -> bool:
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
    return status.st_mode & needed == needed


def _to_mask(directory: str, settings: bool) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink():
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                if not _is_public(status):
                    yield entry.path
                elif stat.S_ISDIR(status.st_mode):
                    yield from _to_mask(entry.path, settings)
                elif settings and stat.S_ISREG(status.st_mode):
                    with open(entry.path, "rb") as file:
                        if holds_credentials(file.read(_COPY_LIMIT)):
                            yield entry.path
            except OSError:
                continue


def settings_to_mask(prefix: str) -> list[str]:
    """The package managers' settings in an installation prefix that hold credentials or are private."""
    masked = []
    for name in _PREFIX_SETTINGS:
        path = os.path.join(prefix, name)
        try:
            path = os.path.realpath(path)  # a link is shown as it is; what it points to may lie in the prefix
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    if not _is_public(status) or holds_credentials(file.read(_COPY_LIMIT)):
                        masked.append(path)
        except FileNotFoundError:
            continue
        except OSError:
            masked.append(path)
    return masked


def survey_etc_of(root: str) -> EtcFiles:
    """The same for the /etc of another system, whose root is the host directory ``root``.

    No link is followed: its target is looked for in the box, where it is what it is in that system, and
    not on the host.
    """
    result = EtcFiles()
    etc = os.path.join(root, "etc")
    try:
        names = sorted(os.listdir(etc)) if stat.S_ISDIR(os.lstat(etc).st_mode) else []
    except OSError:
        return result
    for name in names:
        if name in _ETC_NAMES or name.startswith(_ETC_PREFIXES):
            try:
                _survey_other_entry(root, f"/etc/{name}", result)
            except OSError:
                continue  # vanished, or not ours to read
    return result


def _survey_other_entry(root: str, path: str, result: EtcFiles) -> None:
    source = root + path
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        result.links[path] = os.readlink(source)
    elif stat.S_ISDIR(status.st_mode) and _is_public(status):
        result.trees.append(path)
        masked = _to_mask(source, os.path.basename(path) in _ETC_SETTINGS)
        result.masked.extend(found.removeprefix(root) for found in masked)
    elif stat.S_ISREG(status.st_mode) and _is_public(status) and status.st_size <= _COPY_LIMIT:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            content = file.read(_COPY_LIMIT)
        if os.path.basename(path) == "ld.so.cache" or not holds_credentials(content):
            result.files[path] = content


def own_etc_files(hostname: str, address: str, nameserver: str) -> dict[str, bytes]:
    """The files of /etc that are a box's own."""
    texts = {
        "/etc/passwd": (
            "root:x:0:0:root:/home/box:/bin/sh\n"
            "daemon:x:1:1:daemon:/:/bin/false\n"
            "nobody:x:65534:65534:nobody:/:/bin/false\n"
        ),
        "/etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n",
        "/etc/hosts": (
            f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {hostname}\n"
        ),
        "/etc/hostname": f"{hostname}\n",
        "/etc/resolv.conf": f"nameserver {nameserver}\n",
        "/etc/nsswitch.conf": (
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
            "networks: files\nprotocols: files\nservices: files\n"
        ),
    }
    return {path: text.encode() for path, text in texts.items()}
