# Written by scripts/make_sync from _async/unsupported.py: change that one.
"""The hosted product's methods of a box that are not supported here. Each raises BoxUnsupportedError."""

from collections.abc import Mapping
from typing import Any, NoReturn

from box_policy.sdk.unsupported import REASONS, unsupported

_AT_THE_START = "run the command with box.exec once the box is there"
_NO_LOGS = "what a program writes is in its run; decisions about traffic are in the service's own log"
_NO_URLS = "nothing outside can connect to a box; talk to its programs with box.exec.session"


class UnsupportedCalls:
    """They exist so that a program is told what to do instead."""

    @property
    def model_config(self) -> dict[str, str | None]:
        """No harness and no model: agents are not run for you."""
        return {"harness": None, "model": None}

    def logs(self, *, offset: int | None = None, limit: int | None = None) -> NoReturn:
        """Not supported."""
        raise unsupported("box.logs()", _NO_LOGS)

    def list_runs(self) -> NoReturn:
        """Not supported."""
        raise unsupported("box.list_runs()", _NO_LOGS)

    def get_init_command(self) -> NoReturn:
        """Not supported."""
        raise unsupported("box.get_init_command()", _AT_THE_START)

    def set_init_command(self, init_command: str) -> NoReturn:
        """Not supported."""
        raise unsupported("box.set_init_command()", _AT_THE_START)

    def delete_init_command(self) -> NoReturn:
        """Not supported."""
        raise unsupported("box.delete_init_command()", _AT_THE_START)

    def configure_model(self, model: str) -> NoReturn:
        """Not supported."""
        raise unsupported("box.configure_model()", REASONS["agent"])

    def configure_custom_harness(self, custom_harness: Mapping[str, Any]) -> NoReturn:
        """Not supported."""
        raise unsupported("box.configure_custom_harness()", REASONS["agent"])

    def get_public_url(
        self, port: int, *, bearer_token: bool | None = None, basic_auth: bool | None = None
    ) -> NoReturn:
        """Not supported."""
        raise unsupported("box.get_public_url()", _NO_URLS)

    def list_public_urls(self) -> NoReturn:
        """Not supported."""
        raise unsupported("box.list_public_urls()", _NO_URLS)

    def delete_public_url(self, port: int) -> NoReturn:
        """Not supported."""
        raise unsupported("box.delete_public_url()", _NO_URLS)
