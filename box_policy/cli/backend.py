"""What boxes are made of: the options of ``run`` and ``serve`` for it."""

import os
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from box_policy.cli.errors import USAGE, fail

if TYPE_CHECKING:
    from box_policy.sandbox.docker import DockerLauncher
    from box_policy.sandbox.namespaces import NamespaceLauncher

    type AnyLauncher = DockerLauncher | NamespaceLauncher

BACKEND_VARIABLE: Final = "BOX_POLICY_BACKEND"
IMAGE_VARIABLE: Final = "BOX_POLICY_IMAGE"


class Backend(StrEnum):
    """A kind of boxes."""

    NAMESPACES = "namespaces"
    DOCKER = "docker"


BackendOption = Annotated[
    Backend | None,
    typer.Option(
        help=f"What boxes are made of: this machine's programs, or an image. Or set {BACKEND_VARIABLE}.",
    ),
]


def chosen_backend(
    backend: Backend | None, images: Sequence[str] | None, *, needs_image: bool = True
) -> tuple[Backend, list[str]]:
    """The backend, and the images as they were written.

    What is typed comes before what the environment says; an image alone means Docker. Ends the command if
    they don't fit together.
    """
    source = "--image"
    if not images and backend is not Backend.NAMESPACES:
        images, source = os.environ.get(IMAGE_VARIABLE, "").split(), IMAGE_VARIABLE
        if backend is None:
            backend = _from_environment()
    if backend is None:
        backend = Backend.DOCKER if images else Backend.NAMESPACES
    if backend is Backend.NAMESPACES and images:
        fail(
            f"{source}: boxes of the namespaces backend have this machine's programs; images take "
            "--backend docker",
            USAGE,
        )
    if backend is Backend.DOCKER and not images and needs_image:
        fail(f"--backend docker takes an image: --image python:3.13, or set {IMAGE_VARIABLE}", USAGE)
    return backend, list(images or ())


def chosen_image(backend: Backend | None, image: str | None) -> tuple[Backend, str | None]:
    """The same for one box, which has one image, and the programs of one machine if it has none."""
    backend, images = chosen_backend(backend, None if image is None else [image])
    if not images:
        return backend, None
    source = IMAGE_VARIABLE if image is None else "--image"
    if len(images) > 1:
        fail(f"{source} names {len(images)} images; a box has one", USAGE)
    from box_policy.service.images import InvalidImageError, check_reference

    try:
        return backend, check_reference(images[0])
    except InvalidImageError as error:
        fail(f"{source}: {error}", USAGE)


def host_tools(backend: Backend) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The caller's tools that a box is shown, and the PATH to go with them. An image has its own."""
    if backend is Backend.DOCKER:
        return (), {}
    from box_policy.sandbox.namespaces.toolchains import find_toolchains

    toolchains = find_toolchains(os.environ)
    return toolchains.read_only, {"PATH": toolchains.path}


def not_found(message: str, program: str, image: str | None) -> str:
    """What is missing, and what would help: where the host has it, if the box could be shown that."""
    is_relative = not Path(program).is_absolute() and "/" in program
    on_host = shutil.which(program)
    if is_relative and (on_host is not None or image is not None):
        return f"{message}; a box starts in /workspace, which --workdir . makes this directory"
    if image is not None:
        return f"{message}; with Docker a box has the programs of its image, {image}"
    if on_host is None:
        return message
    return f"{message}; {on_host} is in a directory that boxes don't see: --read-only shows it"


def make_launcher(backend: Backend) -> "AnyLauncher":
    """What makes boxes. Importing it takes a while."""
    if backend is Backend.DOCKER:
        from box_policy.sandbox.docker import DockerLauncher

        return DockerLauncher()
    from box_policy.sandbox.namespaces import NamespaceLauncher

    return NamespaceLauncher()


def _from_environment() -> Backend | None:
    named = os.environ.get(BACKEND_VARIABLE)
    if not named:
        return None
    try:
        return Backend(named)
    except ValueError:
        fail(f"{BACKEND_VARIABLE}: {named!r} is none of {', '.join(Backend)}", USAGE)
