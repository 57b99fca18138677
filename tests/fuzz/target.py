"""What a fuzz target is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

type Mutate = Callable[[bytes], bytes]
"""Changes some bytes, with no idea of what they mean."""


@dataclass(frozen=True)
class Target:
    """One parser that strangers feed, and what must hold whatever they feed it."""

    one: Callable[[bytes], None]
    """Raises AssertionError if this input breaks a rule; nothing else may be raised at all."""
    seeds: Sequence[bytes]
    """Inputs to start from."""
    dictionary: Sequence[bytes] = ()
    """Pieces that inputs are made of."""
    max_length: int = 4096
    """Longest input in bytes."""
    mutate: Callable[[bytes, Random, Mutate], bytes] | None = None
    """Changes an input without breaking what holds it together; None: bytes are as good as any structure."""
