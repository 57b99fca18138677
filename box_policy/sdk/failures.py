"""What goes wrong between this side and the service, as the errors of the SDK."""

import contextlib
import socket
from collections.abc import Iterator

import httpx

from box_policy.sdk.connection import Target
from box_policy.sdk.errors import BoxConnectionError, BoxError, BoxTimeoutError

_LAST_BREATH = 0.2
"""Seconds between the end of a service's connections and that of its process."""


@contextlib.contextmanager
def failures(target: Target, timeout_ms: float | None) -> Iterator[None]:
    """Around what speaks to the service: whatever a library raises becomes a BoxError."""
    try:
        yield
    except BoxError:
        raise
    except httpx.TimeoutException:
        raise timed_out(timeout_ms) from None
    except Exception as error:
        raise connection_error(target, error) from error


def check_running(target: Target) -> None:
    """Accept a service that runs, as far as can be known.

    Raises:
        BoxConnectionError: it has ended. Somebody else might answer at its address by now.
    """
    if target.service is not None and target.service.has_ended():
        raise target.service.error()


def connection_error(target: Target, error: Exception) -> BoxConnectionError:
    """The error for a connection that can't be made, or broke."""
    if target.service is not None:
        if target.service.has_ended(wait=_LAST_BREATH):
            return target.service.error()
        where = "the service of this process"
    else:
        where = f"the service at {target.uds or target.url}"
    detail = str(error) or type(error).__name__
    return BoxConnectionError(f"{where} can't be reached, or the connection to it broke: {detail}")


def timed_out(timeout_ms: float | None) -> BoxTimeoutError:
    """The error for an answer that was not here in time."""
    within = "" if timeout_ms is None else f" within {timeout_ms:g} ms"
    return BoxTimeoutError(f"Request timeout: there was no answer{within}; a larger timeout= waits longer")


def cut(response: httpx.Response) -> None:
    """End a response that somebody else may be reading at this moment, in another thread even.

    Closing its socket would not wake that thread up.
    """
    with contextlib.suppress(Exception):
        connection = response.extensions["network_stream"].get_extra_info("socket")
        connection.shutdown(socket.SHUT_RDWR)
