"""Who may speak to the control endpoint. Asked as soon as the head of a request is there."""

import hmac
import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from box_policy.control.http.address import ControlError, ListeningAddress, TcpAddress
from box_policy.control.http.answers import ApiError
from box_policy.control.http.pace import Pace
from box_policy.gate.network_namespace import netns_cookie
from box_policy.policy.quoting import quoted

log = logging.getLogger(__name__)

MIN_TOKEN: Final = 16
"""Characters of a token."""

_TOKEN: Final = re.compile(rb"[!-~]{16,4096}")
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_API_KEY: Final = b"x-box-api-key"
_LOCAL_NAMES: Final = ("localhost", "box-policy")
_HTTP_PORT: Final = 80


def check_token(token: str) -> bytes:
    """The token as it is sent.

    Raises:
        ControlError: nobody should use it, or nobody can.
    """
    encoded = token.encode(errors="replace")
    if not _TOKEN.fullmatch(encoded):
        raise ControlError(
            f"a control token has {MIN_TOKEN} to 4096 printable ASCII characters, and no spaces; "
            "make one with: openssl rand -hex 32"
        )
    return encoded


def peer_refusal(sock: socket.socket, foreign: Callable[[int], bool] | None) -> str | None:
    """Why the client at the other end of a unix socket is not to be served; None if nothing is wrong with it.

    Its user id alone doesn't tell: a process in a box may run under the very user id of the gate. Nor do this
    gate's boxes: it may be in the box of another gate of the same user's, whose boxes nobody here knows.
    """
    try:
        pid, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid not in (0, os.geteuid()):
            return f"user id {uid} is neither the gate's own nor root"
        if foreign is not None and foreign(netns_cookie(sock)):
            return "it is in a box"
        # A process of no pid is in a pid namespace that this one doesn't see, as beside a sidecar.
        if uid == os.geteuid() and pid and _has_own_user_namespace(pid):
            return "it is in a user namespace of its own, as boxes are"
    except Exception as error:
        # The question stays open, and an open question is a refusal.
        return f"who it is can't be told: {error}"
    return None


def _has_own_user_namespace(pid: int) -> bool:
    """Is a process in another user namespace than this one? OSError if it has ended."""
    try:
        return not os.path.samestat(*(Path(f"/proc/{process}/ns/user").stat() for process in ("self", pid)))
    except PermissionError:
        # It doesn't let itself be traced (sshd, say, which forwards a connection). Its map is there for all.
        own, its = (Path(f"/proc/{process}/uid_map").read_text() for process in ("self", pid))
        return own != its


def host_names(address: ListeningAddress) -> frozenset[bytes] | None:
    """Every Host that a request to ``address`` may name; None stands for the local names, at any port."""
    if not isinstance(address, TcpAddress):
        return None
    names = {str(address)}
    if address.host.is_loopback:
        names.add(f"localhost:{address.port}")
    if address.port == _HTTP_PORT:
        names |= {name.removesuffix(f":{_HTTP_PORT}") for name in names}
    return frozenset(name.encode() for name in names)


class Guard:
    """Lets through what comes from a peer that may control the gate, and no browser, with the token.

    A web page can make a browser send requests to any address of this host; what it can't is to choose
    their Host, or to leave out their Origin.
    """

    def __init__(self, address: ListeningAddress, token: str | None) -> None:
        self._hosts = host_names(address)
        self._token = None if token is None else check_token(token)
        self._pace = Pace(burst=10, per_second=0.2)

    def refusal(self, peer: str | None, headers: list[tuple[bytes, bytes]]) -> ApiError | None:
        """Why a request is refused; None if it isn't.

        Args:
            peer: what is wrong with who sent it; None if nothing is.
            headers: the request's, with names in lower case.
        """
        try:
            self._check(peer, headers)
        except ApiError as error:
            self._report(error)
            # Its traceback leads to frames that lead back to it: work for the garbage collector.
            return error.with_traceback(None)
        return None

    def _check(self, peer: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        if peer is not None:
            raise ApiError("peer_refused", f"this peer may not control the gate: {peer}")
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            shown = ", ".join(quoted(host.decode("latin-1")) for host in hosts[:2]) or "none"
            raise ApiError("host_refused", f"the Host of the request is not this endpoint's: {shown}")
        if _values(headers, b"origin"):
            raise ApiError("origin_refused", "requests of web pages are refused: this one has an Origin")
        if self._token is not None and not self._has_token(headers):
            raise ApiError(
                "unauthorized",
                "send this endpoint's key, in one header: Authorization: Bearer KEY, or X-Box-Api-Key: KEY",
                headers={"www-authenticate": "Bearer"},
            )

    def _is_ours(self, host: bytes) -> bool:
        host = host.lower()
        if self._hosts is not None:
            return host in self._hosts
        name, _, port = host.partition(b":")
        return name.decode("latin-1") in _LOCAL_NAMES and (not port or port.isdigit())

    def _has_token(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Is the token there, in either header or in both, and nothing else?

        How long it takes tells nothing of the token: each that was sent is compared as a whole.
        """
        authorizations, keys = _values(headers, b"authorization"), _values(headers, _API_KEY)
        if self._token is None or len(authorizations) > 1 or len(keys) > 1:
            return False
        sent = [key for key in keys if key.strip(b" \t")]  # a client without a key may send an empty one
        right = True
        for authorization in authorizations:
            scheme, _, token = authorization.partition(b" ")
            right = right and scheme.lower() == b"bearer"
            sent.append(token)
        compared = [hmac.compare_digest(token.strip(b" "), self._token) for token in sent]
        return right and bool(compared) and all(compared)

    def _report(self, error: ApiError) -> None:
        if self._pace.allows():
            log.warning("refused a request to the control endpoint: %s%s", error, held_back(self._pace))


def held_back(pace: Pace) -> str:
    """What a log line says of those before it that were not written."""
    held = pace.take_held()
    return f" ({held} more since the last such line)" if held else ""


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]
