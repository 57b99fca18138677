"""Fetches what the tests of containers need: a Docker engine, a base image, the compose plugin.

    python -m tests.containers.prepare

Tests have no network, so this runs before them. It takes Debian's packages, by whatever mirror apt is set up
for, and unpacks them below a cache directory: nothing is installed, no service is started. What can't be had
is said, and the tests that need it are skipped with that reason.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_BASE_PACKAGES: Final = ("python3", "python3-venv", "curl", "ca-certificates", "iproute2", "nftables")
_DEBIAN: Final = "trixie"
"""Debian 13, whose Python is new enough for the gate's image, and which has the compose plugin."""
_PATIENCE: Final = 600
_ENGINE: Final = ("dockerd", "containerd", "runc", "iptables")


class CannotPrepare(Exception):
    """What is missing, in words for whoever runs the tests."""


def cache() -> Path:
    """Where everything is, shared by all checkouts of this user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "box-policy-tests" / f"{_DEBIAN}-{platform.machine()}"


def engine_path() -> str:
    """A PATH that has the engine's programs: this machine's own, or the unpacked ones."""
    unpacked = cache() / "engine"
    directories = [unpacked / "alternatives", *(unpacked / name for name in ("usr/sbin", "usr/bin", "sbin"))]
    return ":".join([*map(str, directories), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def engine_environment() -> Mapping[str, str]:
    """What the unpacked programs find their libraries by."""
    libraries = [str(path) for path in (cache() / "engine/usr/lib").glob("*-linux-gnu")]
    plugins = [path for path in (f"{library}/xtables" for library in libraries) if Path(path).is_dir()]
    own = {"PATH": engine_path()}
    if libraries:
        own["LD_LIBRARY_PATH"] = ":".join(libraries)
    if plugins:
        own["XTABLES_LIBDIR"] = plugins[0]
    return own


def base_image() -> Path:
    """The tar of the base image's root directory."""
    return cache() / "base.tar"


def compose_plugin() -> Path:
    """The compose plugin, which runs by itself, too."""
    return cache() / "compose/usr/libexec/docker/cli-plugins/docker-compose"


def missing() -> str:
    """Why there can be no engine for the tests; empty if there can be one."""
    if os.geteuid() != 0:
        return "a Docker engine of the tests' own takes root"
    if reason := _reason_file().read_text() if _reason_file().exists() else "":
        return reason
    for program in _ENGINE:
        if shutil.which(program, path=engine_path()) is None:
            return f"{program} is missing: make test fetches it"
    if not base_image().exists():
        return "the base image is missing: make test fetches it"
    return ""


def prepare() -> None:
    """Fetch what isn't there yet. CannotPrepare with the reason."""
    cache().mkdir(parents=True, exist_ok=True)
    _once("engine", _fetch_engine)
    _once("compose", _fetch_compose)
    _once("base.tar", _make_base)
    from tests.containers import wheels  # which asks this module where its cache is

    try:
        wheels.fetch()
    except subprocess.CalledProcessError as error:
        raise CannotPrepare(f"pip can't fetch wheels: {error}") from None


def _once(name: str, make: Callable[[Path], None]) -> None:
    """Make a part under another name, and give it its own when it is whole."""
    if (cache() / name).exists():
        return
    partial = cache() / f"{name}.{os.getpid()}"
    try:
        make(partial)
        if not (cache() / name).exists():  # another run may have been faster
            partial.rename(cache() / name)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _fetch_engine(directory: Path) -> None:
    directory.mkdir()
    if all(shutil.which(program, path=engine_path()) for program in (*_ENGINE, "debootstrap")):
        return
    archives = directory / "archives"
    (archives / "partial").mkdir(parents=True)
    _apt(
        *("install", "--download-only", "--yes", "--no-install-recommends"),
        *("docker.io", "iptables", "debootstrap"),
        options={"Dir::Cache::archives": str(archives), "Debug::NoLocking": "1"},
    )
    for package in archives.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(directory)])
    shutil.rmtree(archives)
    # What the packages' scripts would have linked.
    alternatives = directory / "alternatives"
    alternatives.mkdir()
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (alternatives / f"{name}{suffix}").symlink_to("../usr/sbin/xtables-nft-multi")


def _fetch_compose(directory: Path) -> None:
    lists = directory / "apt/lists/partial"
    lists.mkdir(parents=True)
    source = directory / "apt/sources.list"
    source.write_text(f"deb [signed-by={_keyring()}] {_mirror()} {_DEBIAN} main\n")
    options = {
        "Dir::Etc::sourcelist": str(source),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": str(lists.parent),
        "Dir::Cache": str(directory / "apt"),
        "Debug::NoLocking": "1",
    }
    _apt("update", options=options)
    _apt("download", "docker-compose", options=options, cwd=directory)
    for package in directory.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(directory)])
        package.unlink()
    shutil.rmtree(directory / "apt")


def _make_base(tar: Path) -> None:
    root = tar.with_name(f"{tar.name}.root")
    unpacked = cache() / "engine"
    environment = {}
    if (unpacked / "usr/share/debootstrap").exists():
        environment["DEBOOTSTRAP_DIR"] = str(unpacked / "usr/share/debootstrap")
    include = ",".join(_BASE_PACKAGES)
    command = ["debootstrap", "--variant=minbase", f"--include={include}", f"--keyring={_keyring()}"]
    try:
        _run([*command, _DEBIAN, str(root), _mirror()], environment)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        _run(["tar", "--numeric-owner", "-C", str(root), "-cf", str(tar), "."])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _mirror() -> str:
    """Where apt has Debian from."""
    output = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    mirrors = [line for line in output.split() if "security" not in line]
    if not mirrors:
        raise CannotPrepare("apt has no package lists: run apt-get update")
    return mirrors[0]


def _keyring() -> str:
    return "/usr/share/keyrings/debian-archive-keyring.gpg"


def _apt(*arguments: str, options: Mapping[str, str], cwd: Path | None = None) -> None:
    # As root throughout: apt's own user can't pass the cache's directories.
    given = [f"{name}={value}" for name, value in {**options, "APT::Sandbox::User": "root"}.items()]
    _run(["apt-get", "-qq", *(part for option in given for part in ("-o", option)), *arguments], cwd=cwd)


def _run(command: Sequence[str], more: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PATH": engine_path(), "LC_ALL": "C.UTF-8", **(more or {})}
    try:
        done = subprocess.run(
            command, env=environment, cwd=cwd, input="", capture_output=True, text=True,
            timeout=_PATIENCE, check=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise CannotPrepare(f"{command[0]} isn't installed") from None
    except subprocess.TimeoutExpired:
        raise CannotPrepare(f"{command[0]} took longer than {_PATIENCE} seconds") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["it said nothing"]
        raise CannotPrepare(f"{command[0]} failed: {said[-1]}") from None
    return done.stdout


def _reason_file() -> Path:
    return cache() / "unavailable"


def main() -> None:
    """Prepare, or say why not; the tests run in any case."""
    if os.geteuid() != 0:
        print(f"containers: {missing()}: their tests will be skipped", file=sys.stderr)
        return
    try:
        _reason_file().unlink(missing_ok=True)
        prepare()
    except (CannotPrepare, OSError) as error:
        print(f"containers: {error}: their tests will be skipped", file=sys.stderr)
        if cache().is_dir():
            _reason_file().write_text(str(error))


if __name__ == "__main__":
    main()
