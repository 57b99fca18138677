"""Which container images the programs of boxes come from, and how images are written.

The operator names them. A client picks one of those, and no other: an image decides what runs in a box before
anything of the client's does, and having an engine fetch one is a connection that no policy judges.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from box_policy.policy.quoting import quoted
from box_policy.service.errors import service_error
from box_policy.service.runtimes import RUNTIMES, Programs

MAX_LENGTH: Final = 512
"""Characters of a reference: 255 of the name, 128 of the tag, and the longest digest."""
_MAX_NAME: Final = 255
# The grammar of references of the distribution project, which Docker reads them by
# (github.com/distribution/reference, reference.go and regexp.go).
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])"
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?P<name>(?:{_HOST}(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::\w[\w.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,128})?",
    re.ASCII,
)


class InvalidImageError(ValueError):
    """What names no image. The message says why."""


def check_reference(text: str) -> str:
    """``text``, if it is written as images are: ``python:3.13``, ``ghcr.io/owner/name@sha256:...``, an id.

    Raises:
        InvalidImageError: it is not.
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None or len(match["name"]) > _MAX_NAME:
        raise InvalidImageError(f"{quoted(text)} is no image: write NAME[:TAG], as in python:3.13")
    return text


@dataclass(frozen=True)
class Images:
    """Which image a box gets that asks for a runtime, for an image, or for neither."""

    by_runtime: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    """The image of boxes that ask for neither."""
    allowed: frozenset[str] = frozenset()
    """What may be asked for, as it is written here."""
    allows_any: bool = False
    """Whether clients may name others: where the only client is the operator."""

    @classmethod
    def parse(cls, settings: Iterable[str], *, allows_any: bool = False) -> Self:
        """From images as they are written: ``IMAGE``, the first being the default, or ``RUNTIME=IMAGE``.

        Raises:
            InvalidImageError: one of them is none, or a runtime has two.
        """
        by_runtime: dict[str, str] = {}
        plain: list[str] = []
        for setting in settings:
            runtime, equals, image = setting.partition("=")
            if not equals:
                plain.append(check_reference(setting))
                continue
            if runtime not in RUNTIMES:
                raise InvalidImageError(f"{quoted(setting)}: {_no_runtime(runtime)}")
            if by_runtime.setdefault(runtime, check_reference(image)) != image:
                raise InvalidImageError(f"runtime {runtime!r}: {by_runtime[runtime]} and {image}: give one")
        allowed = frozenset((*by_runtime.values(), *plain))
        return cls(by_runtime, plain[0] if plain else None, allowed, allows_any)

    def programs(self, runtime: str | None, image: str | None) -> Programs:
        """Where the programs come from.

        Raises:
            ApiError: there is no such runtime or image here.
        """
        if image is not None and runtime is not None:
            raise service_error(
                "request_invalid", "give runtime or image: each says where the programs come from"
            )
        if image is not None:
            if not self.allows_any and image not in self.allowed:
                raise service_error(
                    "image_refused",
                    f"image {quoted(image)} is none of those that the operator has named with --image: "
                    f"there are {', '.join(sorted(self.allowed))}",
                )
            return Programs(image=image)
        if runtime is not None:
            return Programs(image=self._of_runtime(runtime))
        if self.default is None:
            instead = f", or a runtime: there are {', '.join(self.by_runtime)}" if self.by_runtime else ""
            raise service_error("request_invalid", f"no image is the default here: name one{instead}")
        return Programs(image=self.default)

    def _of_runtime(self, runtime: str) -> str:
        if runtime not in RUNTIMES:
            raise service_error("runtime_missing", _no_runtime(runtime))
        if runtime not in self.by_runtime:
            raise service_error(
                "runtime_missing",
                f"runtime {runtime!r}: this service has no image for it; serve with --image {runtime}=IMAGE",
            )
        return self.by_runtime[runtime]


def _no_runtime(runtime: str) -> str:
    return f"there is no runtime {quoted(runtime)}: there are {', '.join(sorted(RUNTIMES))}"
