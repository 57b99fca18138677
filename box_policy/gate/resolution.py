"""What resolving a name came to."""

from dataclasses import dataclass

from box_policy.policy.addresses import Address


@dataclass(frozen=True, slots=True)
class Resolution:
    """The addresses of a name, of both families, in the order of the answer."""

    addresses: tuple[Address, ...] = ()
    error: str = ""
    """Why there are none, in a few words."""
    failed: bool = False
    """It is the gate itself that has failed."""
