"""The Docker backend: boxes that are containers, of any image."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from box_policy.sandbox.docker.launcher import DockerLauncher
    from box_policy.sandbox.docker.reaper import reap

__all__ = ["DockerLauncher", "reap"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the processes inside a box import this package too, and the engine's client
    # takes 100 ms.
    if name == "DockerLauncher":
        from box_policy.sandbox.docker.launcher import DockerLauncher

        return DockerLauncher
    if name == "reap":
        from box_policy.sandbox.docker.reaper import reap

        return reap
    raise AttributeError(name)
