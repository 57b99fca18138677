"""The Docker engine, by its API: calls in threads, failures in one sentence."""

import asyncio
import base64
import contextlib
import json
import posixpath
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import docker
import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from box_policy.sandbox.launcher import SandboxError

TIMEOUT = 60
"""Seconds until the engine must have answered, or said more."""
_CONFLICT = 409
_ID_PREFIX = "sha256:"
LONG_TIMEOUT = 900
"""The same where it copies files."""
_SETTLING = 25
_SETTLING_CHECK = 0.02
_REMOVAL_CHECK = 0.02
_REMOVAL_TIMEOUT = 20.0
_TEXT_SIZE = 500


class NoSuchObjectError(SandboxError):
    """The engine has no such container, image or volume."""


class ConflictError(SandboxError):
    """The state of what was named, or its name, doesn't allow it."""


class Engine:
    """A connection to an engine on this machine."""

    def __init__(self, client: APIClient, patient: APIClient, info: Mapping[str, Any]) -> None:
        self._client = client
        self._patient = patient
        self.info = info
        """What the engine says of itself (GET /info)."""

    @classmethod
    async def connect(cls, address: str | None = None) -> "Engine":
        """Connect to the engine at ``address``, or where the environment (DOCKER_HOST, ...) or Docker's
        current context says. SandboxError if there is none."""

        def client(timeout: int) -> APIClient:
            if address is None:
                return docker.from_env(timeout=timeout).api
            return APIClient(base_url=address, version="auto", timeout=timeout)

        def connect() -> Engine:
            first = client(TIMEOUT)
            return cls(first, client(LONG_TIMEOUT), first.info())

        return await _in_thread("the Docker engine can't be reached", connect)

    @property
    def socket(self) -> str | None:
        """The path of the engine's own socket; None if it is reached by other means."""
        path = getattr(self._client.get_adapter(self._client.base_url), "socket_path", None)
        return path if isinstance(path, str) else None

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._client, self._patient):
            await asyncio.to_thread(client.close)

    async def call[Result](self, what: str, method: Callable[[APIClient], Result]) -> Result:
        """Have ``method`` called in a thread. SandboxError if it fails; ``what`` says what then is not."""
        return await _in_thread(what, lambda: method(self._client))

    async def commit(self, container: str, repository: str, tag: str, config: Mapping[str, Any]) -> str:
        """Make an image of a container's file system, which is paused meanwhile; return the image's id."""

        def commit() -> str:
            made = self._patient.commit(container, repository, tag, pause=True, conf=dict(config))
            return str(made["Id"])

        return await _in_thread("the box's file system can't be made an image", commit)

    async def settle(self, what: str, method: Callable[[APIClient], object]) -> None:
        """Have ``method`` pause a container, or let it go on.

        The engine takes in late what became of the order before: for some milliseconds it says that a
        container is in the state that is asked for, though it has just left it. Longer: it is.
        """
        for _ in range(_SETTLING):
            try:
                await self.call(what, method)
                return
            except ConflictError:
                await asyncio.sleep(_SETTLING_CHECK)

    async def image(self, name: str, *, pull: bool) -> dict[str, Any]:
        """What an image is (GET /images/{name}/json); it is pulled first where it isn't there."""
        try:
            return await self._inspect_image(name)
        except NoSuchObjectError:
            if not pull or name.startswith(_ID_PREFIX):
                raise
        hint = f"there is no image {name!r}, and it can't be pulled (docker pull {name})"
        repository, tag = _split(name)
        await self.call(hint, lambda client: _pull(client, repository, tag))
        return await self._inspect_image(name)

    async def _inspect_image(self, name: str) -> dict[str, Any]:
        what = f"the image {name!r} can't be used"

        def inspect(client: APIClient) -> dict[str, Any]:
            found: dict[str, Any] = client.inspect_image(name)  # type: ignore[no-untyped-call]
            return found

        return await self.call(what, inspect)

    async def real_path(self, container: str, path: str) -> str:
        """Where a path leads in a container that isn't started, all links resolved."""

        def resolve(client: APIClient) -> str:
            real, left = "", path.strip("/").split("/")
            while left:
                real = f"{real}/{left.pop(0)}"
                url = client._url("/containers/{0}/archive", container)  # type: ignore[attr-defined]
                answer = client.head(url, params={"path": real}, timeout=TIMEOUT)
                if answer.status_code == HTTPStatus.NOT_FOUND:
                    break
                client._raise_for_status(answer)  # type: ignore[attr-defined]
                stat = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
                real = posixpath.normpath(stat["linkTarget"] or real)
            return posixpath.join(real, *left)

        return await self.call("the image's file system can't be looked at", resolve)

    async def create(self, config: Mapping[str, Any], name: str | None = None) -> str:
        """Create a container; return its id."""

        def create(client: APIClient) -> str:
            made = client.create_container_from_config(dict(config), name)  # type: ignore[no-untyped-call]
            return str(made["Id"])

        return await self.call("the container can't be made", create)

    async def start(self, container: str) -> None:
        """Start a container."""
        await self.call("the container can't be started", lambda client: client.start(container))

    async def remove_volume(self, name: str) -> None:
        """Remove a volume. ConflictError if a container has it."""
        await self.call("the volume can't be removed", lambda client: client.remove_volume(name))

    async def is_running(self, container: str) -> bool:
        """Whether it runs, or is paused."""
        try:
            state = await self.call("", lambda client: client.inspect_container(container)["State"])
        except NoSuchObjectError:
            return False
        return bool(state["Running"])

    async def remove(self, container: str) -> None:
        """Kill and remove a container, its anonymous volumes too; return once it is gone, or was."""

        def remove(client: APIClient) -> None:
            client.remove_container(container, v=True, force=True)

        what = "the container can't be removed"
        try:
            async with asyncio.timeout(_REMOVAL_TIMEOUT):
                while True:
                    try:
                        await self.call(what, remove)
                    except NoSuchObjectError:
                        return
                    except ConflictError:
                        pass  # the engine is at it, as auto_remove has it
                    await asyncio.sleep(_REMOVAL_CHECK)
        except TimeoutError:
            raise SandboxError(f"{what} within {_REMOVAL_TIMEOUT:.0f} seconds") from None


def _pull(client: APIClient, repository: str, tag: str) -> None:
    # In the answer errors are one of many lines.
    for line in client.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in line:
            raise DockerException(line["error"])


def _split(name: str) -> tuple[str, str]:
    """A repository, and a tag or digest: with none, the engine would pull all of them."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "latest")


async def _in_thread[Result](what: str, call: Callable[[], Result]) -> Result:
    try:
        # Not one of asyncio's executor: it has few, a slow engine would hold them all, and the process's end
        # would wait for them.
        return await _in_own_thread(call)
    except NotFound as error:
        raise NoSuchObjectError(_sentence(what, error.explanation or error)) from None
    except APIError as error:
        kind = ConflictError if error.status_code == _CONFLICT else SandboxError
        raise kind(_sentence(what, error.explanation or error)) from None
    except (DockerException, requests.RequestException, OSError) as error:
        raise SandboxError(_sentence(what, _reason(error))) from None


async def _in_own_thread[Result](call: Callable[[], Result]) -> Result:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(Result, result))

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="box-policy engine", daemon=True).start()
    return await done


def _sentence(what: str, reason: object) -> str:
    text = " ".join(str(reason).split())[:_TEXT_SIZE]
    return f"{what}: {text}" if what else text


def _reason(error: BaseException) -> str:
    """Why an engine doesn't answer, told by what lies at the bottom of the client's own errors."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, PermissionError):
            return "permission denied on its socket; add yourself to the group docker, or run as root"
        if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
            return "none is running there; start Docker, or say where it is with DOCKER_HOST"
        if isinstance(cause, requests.Timeout):
            return "it doesn't answer"
        nested = [inner for inner in cause.args if isinstance(inner, BaseException)]
        cause = cause.__cause__ or (nested[0] if nested else cause.__context__)
    return str(error)
