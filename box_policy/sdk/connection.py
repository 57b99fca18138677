"""Which service is spoken to, and how it is reached."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import quote

import httpx

from box_policy.policy.quoting import quoted
from box_policy.sdk import embedded, values
from box_policy.sdk.errors import BoxError

BASE_URL_VARIABLES: Final = ("BOX_POLICY_BASE_URL", "UPSTASH_BOX_BASE_URL")
API_KEY_VARIABLES: Final = ("BOX_POLICY_API_KEY", "UPSTASH_BOX_API_KEY")
BACKEND_VARIABLE: Final = "BOX_POLICY_BACKEND"
IMAGE_VARIABLE: Final = "BOX_POLICY_IMAGE"

_FORMS: Final = "write http://host:port, https://host, or unix:///path/to.sock"
_LOCAL_URL: Final = "http://localhost"


@dataclass(frozen=True, slots=True)
class Target:
    """A service's address, and what each request to it carries."""

    url: str
    """``http://...`` or ``https://...`` without a slash at the end."""
    api_key: str | None = field(default=None, repr=False)
    uds: str | None = None
    """The unix socket that the URL is spoken over; an abstract one begins with NUL."""
    is_local: bool = False
    """On this machine: no proxy lies between, whatever the environment says."""
    service: embedded.Service | None = field(default=None, repr=False)
    """The service that this process has started, if it is that one."""

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {} if self.api_key is None else {"X-Box-Api-Key": self.api_key}

    @property
    def websocket_url(self) -> str:
        """The same address for a WebSocket."""
        return "ws" + self.url.removeprefix("http")


def target(options: Mapping[str, Any]) -> Target:
    """The service that the options, or else the environment, name; else the embedded one, started if need be.

    Raises:
        BoxError: an address or a key that can't be used, no key, or a service that can't be started.
    """
    base_url = options.get("base_url") or _from_environment(BASE_URL_VARIABLES)
    if not base_url:
        service = embedded.current(_backend(options))
        # Who may speak to it is decided by the user id; a key that is meant for another service stays here.
        return Target(_LOCAL_URL, uds=service.address, is_local=True, service=service)
    if options.get("backend"):
        raise BoxError(
            "backend is for a service that this process starts; what boxes are made of at a base_url "
            "its operator has decided"
        )
    address = _address(base_url)
    api_key = options.get("api_key") or _from_environment(API_KEY_VARIABLES)
    if not api_key and address.uds is not None:
        return address  # the user id decides who may speak to it
    if not api_key:
        raise BoxError(f"api_key is required with a base_url: pass it, or set {API_KEY_VARIABLES[0]}")
    if not isinstance(api_key, str) or not all("!" <= character <= "~" for character in api_key):
        # It becomes a header. It is a secret: the message must not show it.
        raise BoxError("the api_key has printable ASCII characters alone, and no spaces; this one has others")
    return replace(address, api_key=api_key)


def segment(value: str, what: str) -> str:
    """``value`` as one segment of a path.

    Raises:
        BoxError: it is empty, or would be another path.
    """
    # A dot segment would be taken out of the path by any client, and so would name something else.
    if not isinstance(value, str) or not value.strip() or value in (".", ".."):
        raise BoxError(f"{value!r} is no {what}")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise BoxError(f"{value!r} is no {what}") from None


def _address(base_url: Any) -> Target:
    if not isinstance(base_url, str):
        raise BoxError(f"base_url is {base_url!r}; {_FORMS}")
    if base_url.startswith("unix:"):
        path = base_url.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/") or "\0" in path:
            raise BoxError(f"base_url {quoted(base_url)}: a unix socket's path is absolute; {_FORMS}")
        return Target(_LOCAL_URL, uds=path, is_local=True)
    try:
        url = httpx.URL(base_url)
        port = url.port
    except (httpx.InvalidURL, ValueError):
        raise BoxError(f"base_url {quoted(base_url)} can't be read; {_FORMS}") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (80 if port is None else port) < 65_536:
        raise BoxError(f"base_url {quoted(base_url)} can't be used; {_FORMS}")
    if url.userinfo or url.query or url.fragment:
        raise BoxError(f"a base_url has no user, query or fragment; {_FORMS}, and give the key as api_key")
    return Target(str(url).rstrip("/"), is_local=_is_loopback(url.host))


def _backend(options: Mapping[str, Any]) -> str:
    """What the boxes of this process's own service are made of."""
    chosen: str | None = options.get("backend")
    if options.get("image") is not None:
        if chosen == embedded.NAMESPACES:
            raise BoxError("image= takes backend='docker'; boxes of namespaces have this machine's programs")
        return embedded.DOCKER
    if chosen is None and os.environ.get(BACKEND_VARIABLE):
        try:
            return values.backend(os.environ[BACKEND_VARIABLE])
        except BoxError as error:
            raise BoxError(f"{BACKEND_VARIABLE}: {error}") from None
    return chosen or (embedded.DOCKER if os.environ.get(IMAGE_VARIABLE) else embedded.NAMESPACES)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _from_environment(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
