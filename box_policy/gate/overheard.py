"""The name in a TLS hello that goes by, on a connection that its address alone has let through."""

from functools import partial
from typing import TYPE_CHECKING, Final

from box_policy.gate.claim import Claim
from box_policy.gate.resolution import Resolution
from box_policy.policy.domains import name_from_wire
from box_policy.wire.client_hello import ClientHello, ClientHelloReader
from box_policy.wire.first_bytes import Start, classify

if TYPE_CHECKING:
    from box_policy.gate.lane import Resolve

_MAX_READ: Final = 16 * 1024
"""Bytes from the client in which its hello is looked for; real ones have 2 KiB."""
_MAX_RESOLVING: Final = 16
"""Names of one box that are resolved at once. Nobody waits for them, so they must not keep others waiting."""


class Overheard:
    """Nothing waits for the name, and at first nothing depends on it: the record of the end holds it.

    But if the gate itself finds the dialled address among those of the name, the claim gets that name. The
    connection is then what the name would have come to, had it been judged by name; and a later policy that
    allows the name, no longer the address, goes on with it.
    """

    def __init__(self, claim: Claim, resolve: "Resolve") -> None:
        self._claim = claim
        self._resolve = resolve
        self._reader = ClientHelloReader()
        self.over = False
        """The connection has ended."""

    def read(self, data: bytes | memoryview) -> bool:
        """Take what the client has sent. False once there is no more to learn."""
        # One read may bring more than is looked at, and all that the reader gets it keeps.
        result = self._reader.feed(data[: _MAX_READ + 1 - len(self._reader.received)])
        start = classify(self._reader.received)
        if (
            result is None
            and len(self._reader.received) <= _MAX_READ
            and start in (Start.NEED_MORE, Start.TLS)
        ):
            return True
        self.forget()
        if isinstance(result, ClientHello):
            self._take(result)
        return False

    def forget(self) -> None:
        """Let go of what was read: the connection may stay for long."""
        self._reader = ClientHelloReader()

    def _take(self, hello: ClientHello) -> None:
        claim = self._claim
        claim.ech = hello.ech
        claim.name_as_sent = hello.server_name
        name = name_from_wire(hello.server_name) if hello.server_name is not None else None
        policy = claim.box.policy
        if name is None or (hello.ech and policy.operator.deny_ech):
            return
        # To resolve a name is to tell its zone's operator of it: only what the policy lets the box ask.
        if policy.judge_name(name).allowed and claim.box.overheard < _MAX_RESOLVING:
            claim.box.overheard += 1
            try:
                self._resolve(name, partial(self._resolved, name), partial(self._may_ask, name), claim.box.id)
            except BaseException:
                claim.box.overheard -= 1
                raise

    def _may_ask(self, name: str) -> bool:
        return not self.over and self._claim.box.policy.judge_name(name).allowed

    def _resolved(self, name: str, resolution: Resolution) -> None:
        self._claim.box.overheard -= 1
        self._claim.resolved = resolution.addresses
        if self._claim.destination.address in resolution.addresses:
            self._claim.name = name
