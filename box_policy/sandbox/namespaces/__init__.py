"""The namespace backend: boxes made of Linux namespaces, unprivileged and without a container engine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from box_policy.sandbox.namespaces.launcher import NamespaceLauncher

__all__ = ["NamespaceLauncher"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the processes inside a box import this package too, and need no asyncio.
    if name == "NamespaceLauncher":
        from box_policy.sandbox.namespaces.launcher import NamespaceLauncher

        return NamespaceLauncher
    raise AttributeError(name)
