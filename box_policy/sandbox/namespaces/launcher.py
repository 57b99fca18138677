"""Boxes made of Linux namespaces: without privileges, and without any program beside Python.

The caller's side. It asks the zygote for boxes, and never blocks the event loop.
"""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import limits, seccomp
from box_policy.sandbox.namespaces.box import CLOSE_TIMEOUT, NamespaceBox
from box_policy.sandbox.namespaces.box_groups import remove_left_by
from box_policy.sandbox.namespaces.channel import Channel
from box_policy.sandbox.namespaces.filesystem import own_directories
from box_policy.sandbox.namespaces.messages import Message, MessageError

# With this very package, wherever it was imported from: the zygote speaks with this version of it. The
# interpreter is isolated (-I), so that neither the current directory nor PYTHON* variables hide a module;
# what the caller's path has besides comes last.
_ZYGOTE_CODE = """
import importlib.util, sys
package_parent, paths = sys.argv[1:3]
sys.path += [path for path in (package_parent, *paths.split("\\n")) if path and path not in sys.path]
spec = importlib.util.spec_from_file_location("box_policy", package_parent + "/box_policy/__init__.py")
sys.modules["box_policy"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from box_policy.sandbox.namespaces.zygote import main
main()
"""
# An interpreter with shared libraries in an odd place may need this one; none of the rest is passed on.
_ZYGOTE_VARIABLES = ("LD_LIBRARY_PATH",)


class NamespaceLauncher:
    """Starts boxes of Linux namespaces. Use it in one event loop, and close it there."""

    def __init__(self) -> None:
        self._zygote: _Zygote | None = None
        self._boxes: set[NamespaceBox] = set()
        self._watchers: set[asyncio.Task[None]] = set()
        self._closed = False

    def warm_up(self) -> None:
        """Start the zygote now, so that the first box does not wait for it. SandboxError if it can't be."""
        self._running_zygote()

    async def create(self, spec: BoxSpec) -> NamespaceBox:
        """Start a box. It runs nothing yet. SandboxError if this machine can't."""
        limits.check_host_name(spec.hostname)
        if spec.image is not None:
            raise SandboxError(
                f"a box of namespaces has the host's programs, not those of an image ({spec.image})"
            )
        request = {
            "rootfs": None if spec.rootfs is None else _absolute(spec.rootfs),
            "limits": limits.request(spec.limits),
            "workdir": None if spec.workdir is None else _absolute(spec.workdir),
            "read_only": [_absolute(path) for path in spec.read_only],
            "hostname": spec.hostname,
            "scratch_bytes": spec.scratch_bytes,
            "directories": own_directories(spec),
        }
        if spec.scratch_bytes <= 0:
            raise SandboxError(f"{spec.scratch_bytes} bytes are too few for a box's own directories")
        zygote = self._running_zygote()
        try:
            control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SandboxError(f"a box can't be made: {error.strerror}") from None
        with far_end:
            box = NamespaceBox(spec, control)
            self._boxes.add(box)
            try:
                zygote.request(request, far_end.fileno())
            except MessageError as error:
                far_end.close()
                await box.close()
                raise SandboxError(f"too many read-only directories: {error}") from None
            except OSError as error:
                far_end.close()
                await box.close()
                raise SandboxError(f"a box can't be made: {error.strerror}") from None
        watcher = asyncio.create_task(self._forget_when_gone(box))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        try:
            await box.ready()
        except SandboxError:
            if not box.was_begun:
                await zygote.raise_if_ended()
            raise
        return box

    async def close(self) -> None:
        """Close every box of this launcher and stop what serves it."""
        self._closed = True
        await asyncio.gather(*(box.close() for box in tuple(self._boxes)))
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None

    async def _forget_when_gone(self, box: NamespaceBox) -> None:
        await box.closed()
        self._boxes.discard(box)

    def _running_zygote(self) -> "_Zygote":
        if self._closed:
            raise SandboxError("the launcher is closed")
        if self._zygote is None or not self._zygote.is_running:
            self._zygote = _Zygote()
        return self._zygote


def _absolute(path: Path) -> str:
    try:
        return str(path.absolute())
    except OSError as error:  # the current directory has been removed
        raise SandboxError(f"{path}: {error.strerror}") from None


class _Zygote:
    """The process that boxes are forked from."""

    def __init__(self) -> None:
        if sys.platform != "linux" or seccomp.native_architecture() is None:
            raise SandboxError("namespace boxes need Linux on x86_64 or aarch64")
        if not sys.executable:
            raise SandboxError("namespace boxes need a Python interpreter; sys.executable is empty")
        try:
            near_end, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SandboxError(f"a box can't be made: {error.strerror}") from None
        package_parent = str(Path(__file__).parents[3])
        paths = "\n".join(path for path in sys.path if Path(path).is_absolute())
        command = [sys.executable, "-I", "-c", _ZYGOTE_CODE, package_parent, paths, str(far_end.fileno())]
        variables = {name: os.environ[name] for name in _ZYGOTE_VARIABLES if name in os.environ}
        with far_end:
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[far_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env={"LANG": "C.UTF-8", **variables},
                    start_new_session=True,
                )
            except OSError as error:
                near_end.close()
                raise SandboxError(f"{sys.executable} could not be started: {error.strerror}") from None
        self._channel = Channel(near_end, self._on_message, self._on_end)
        self._may_have_groups = False
        self._ended = asyncio.get_running_loop().create_future()

    @property
    def is_running(self) -> bool:
        """Whether requests still make sense."""
        return not self._ended.done() and self._process.poll() is None

    async def raise_if_ended(self) -> None:
        """SandboxError if the process has ended, or just ends, which nobody asked it to."""
        try:
            status = await asyncio.to_thread(self._process.wait, 1.0)
        except subprocess.TimeoutExpired:
            return
        raise SandboxError(
            f"the process that boxes are forked from has ended with status {status};"
            f" its error output says why ({sys.executable})"
        )

    def request(self, request: Message, control: int) -> None:
        """Ask for a box whose processes answer on ``control``."""
        self._may_have_groups |= bool(request["limits"])
        self._channel.send(request, [control])

    async def close(self) -> None:
        """End the process."""
        self._channel.close()
        try:
            await asyncio.to_thread(self._process.wait, CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _on_message(self, message: Message, fds: list[int]) -> None:
        pass  # it says nothing

    def _on_end(self) -> None:
        self._ended.set_result(None)
        asyncio.get_running_loop().run_in_executor(None, self._bury)

    def _bury(self) -> None:
        """Take the exit status of a zygote that was killed. This blocks."""
        try:
            self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()  # what it still does, it does for nobody
            self._process.wait()
        if self._may_have_groups:
            # Its boxes end with it, and it can't clean up after them.
            remove_left_by(self._process.pid)
