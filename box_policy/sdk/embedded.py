"""The service that this process starts for itself, when none is named.

One for each process and backend, started by the first call that needs it. It ends with the process, however
that ends: it holds the other end of a pipe (its standard input), and watches the process itself.
"""

import atexit
import fcntl
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Final

from box_policy.sdk.errors import BoxConnectionError, BoxError

ENDED: Final = "the service that this box lived in has ended"
NOT_STARTED: Final = "the service of this process could not be started"

NAMESPACES: Final = "namespaces"
DOCKER: Final = "docker"
_OPTIONS: Final = {
    NAMESPACES: ("--backend", "namespaces"),
    # Its one client is its operator, who may name any image.
    DOCKER: ("--backend", "docker", "--any-image"),
}
"""Those of ``box-policy serve``, by what its boxes are made of."""

_START: Final = """
import importlib.util, sys
_, package, paths, *arguments = sys.argv
sys.argv[1:] = arguments
sys.path += [path for path in paths.split("\\n") if path and path not in sys.path]
spec = importlib.util.spec_from_file_location("box_policy", package)
sys.modules["box_policy"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from box_policy.__main__ import main
main()
"""
"""``python -m box_policy``, with this very package, wherever it was imported from.

The interpreter is isolated: neither the current directory nor the script's may hide a module that the service
needs. What the caller's path has besides comes last.
"""

_BACKLOG: Final = 128
_TAIL: Final = 4_096
"""Bytes of the service's error output that an error repeats."""
_FAREWELL: Final = 10.0
"""Seconds that a service has to end its boxes."""
_NOT_INHERITED: Final = ("BOX_POLICY_API_KEY", "UPSTASH_BOX_API_KEY")
"""Keys of other services. This one would demand them."""


class Service:
    """A running service, or one that has ended."""

    def __init__(self, backend: str = NAMESPACES) -> None:
        if not sys.executable:
            raise BoxError(
                "no service can be started: this interpreter doesn't say where it is; give a base_url"
            )
        self.has_answered = False
        """Whether it has ever answered a request."""
        # An abstract socket: nothing lies in the file system, and once the service has ended nobody can
        # connect. The name can't be guessed, so nobody waits to take it over.
        self.address = f"\0box-policy-{secrets.token_hex(16)}"
        try:
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the service
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(self.address)
                listener.listen(_BACKLOG)  # from here on connecting works; answers come once the service runs
                self._process, self._lifeline = _spawn(listener, self._errors, backend)
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                self.end()
                raise
        except OSError as error:
            raise BoxError(f"no service can be started: {error}; give a base_url of one that runs") from None
        weakref.finalize(self, os.close, self._pidfd).atexit = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def has_ended(self, wait: float = 0) -> bool:
        """Whether it has, or does within ``wait`` seconds. Forked children may ask as well."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(wait * 1000))

    def error(self) -> BoxConnectionError:
        """What is said to whoever still has a box in it."""
        what = ENDED if self.has_answered else NOT_STARTED
        return BoxConnectionError(f"{what}{self._last_words()}")

    def end(self) -> None:
        """Let it go: it ends by itself when its lifeline is closed. May be called again, to bury it."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self._process.poll()  # takes its exit status, if it has ended already

    def _last_words(self) -> str:
        # With pread: the offset is shared with the service, and with whoever was forked.
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), _TAIL, max(0, size - _TAIL)).decode("utf-8", "replace").strip()
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in tail)
        return f"; its last words were:\n{printable}" if printable else "; it has said nothing"


def _spawn(listener: socket.socket, errors: IO[bytes], backend: str) -> tuple[subprocess.Popen[bytes], int]:
    package = str(Path(__file__).parents[1] / "__init__.py")
    paths = "\n".join(str(Path(path).absolute()) for path in sys.path if path)
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # Where the standard streams are closed the listener may have the number of one, which the service's own
    # would take from it.
    inherited_listener = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, 3)
    options = [*_OPTIONS[backend], "--inherit", str(inherited_listener), "--owner", str(os.getpid())]
    lifeline, own_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, package, paths, "serve", *options],
            pass_fds=[inherited_listener],
            stdin=lifeline,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env=inherited,
            start_new_session=True,
        )
    except BaseException:
        os.close(own_end)
        raise
    finally:
        os.close(lifeline)
        os.close(inherited_listener)
    return process, own_end


class _Embedded:
    """This process's services, by their backends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}

    def current(self, backend: str) -> Service:
        with self._lock:
            service = self._services.get(backend)
            if service is not None and service.has_ended():
                service.end()
                service = None
            if service is None:
                service = self._services[backend] = Service(backend)
            return service

    def end(self) -> list[Service]:
        with self._lock:
            services = list(self._services.values())
            self._services.clear()
        for service in services:
            service.end()
        return services

    def forget(self) -> None:
        """In a forked child: they are the parent's, and must not outlive it by the child's copy."""
        # Another thread of the parent may have held the lock: nobody here would ever release it.
        self._lock = threading.Lock()
        for service in self._services.values():
            service.end()
        self._services.clear()


_embedded = _Embedded()
atexit.register(_embedded.end)
os.register_at_fork(after_in_child=_embedded.forget)


def current(backend: str = NAMESPACES) -> Service:
    """This process's service, started if there is none that runs. Answers before it is ready for requests.

    Args:
        backend: what its boxes are made of.

    Raises:
        BoxError: it can't be started.
    """
    return _embedded.current(backend)


def end() -> None:
    """End this process's services, and every box in them. The next call that needs one starts another."""
    for service in _embedded.end():
        service.has_ended(wait=_FAREWELL)
        service.end()
