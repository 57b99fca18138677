"""The mitmproxy addon that brings policies to the gate: from files, and through the control endpoint."""

import os
from pathlib import Path
from typing import Final

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

from box_policy.control.endpoint import ControlError, parse_control_address
from box_policy.control.http.token import read_token
from box_policy.control.plane import ControlPlane
from box_policy.control.policy_file import PolicyFileError
from box_policy.gate.addon import EgressPolicy
from box_policy.policy.model import NetworkPolicy

_OPTIONS: Final = ("box_policy_file", "box_policy_control", "box_policy_control_token_file")


class PolicyControl:
    """Where the gate of :class:`EgressPolicy` has its policies from. No readable policy, no start."""

    def __init__(self, egress: EgressPolicy) -> None:
        self._egress = egress
        self._plane: ControlPlane | None = None
        self._values: list[object] = []

    def load(self, loader: Loader) -> None:
        loader.add_option(
            "box_policy_file",
            str,
            "",
            "The policy to enforce: a YAML or JSON file, or a directory with one for each box and a default. "
            "Followed while it runs.",
        )
        loader.add_option(
            "box_policy_control",
            str,
            "",
            "Where to serve the control API: a unix socket's path, or an IP address and port with a token.",
        )
        loader.add_option(
            "box_policy_control_token_file",
            str,
            "",
            "A file with the token of the control API. Or set BOX_POLICY_CONTROL_TOKEN.",
        )

    def configure(self, updated: set[str]) -> None:
        values = [getattr(ctx.options, name) for name in _OPTIONS]
        if self._plane is None:
            self._values = values
            self._make_plane()
        elif values != self._values:
            self._egress.refuse("where policies come from can't change while it runs: restart")

    def _make_plane(self) -> None:
        egress, options = self._egress, ctx.options
        if egress.gate is None:
            raise RuntimeError("the gate isn't configured yet")
        if not options.box_policy_file and not options.box_policy_control:
            egress.refuse(
                "no policy to enforce: add --set box_policy_file=policy.yaml, or box_policy_control=... "
                "to be told one"
            )
        self._plane = plane = ControlPlane(
            egress.gate, egress.audit, ready=lambda: egress.serving, records_lost=lambda: egress.records_lost
        )
        try:
            if options.box_policy_file:
                plane.load_files(Path(options.box_policy_file).expanduser(), egress.box_ids())
            else:
                for box in egress.box_ids():
                    plane.store.create(box, NetworkPolicy.parse("deny-all"), source="start")
            if options.box_policy_control:
                address = parse_control_address(options.box_policy_control)
                plane.listen(address, read_token(options.box_policy_control_token_file, os.environ))
        except PolicyFileError as error:
            egress.refuse(str(error))
        except ControlError as error:
            egress.refuse(f"box_policy_control: {error}")

    def running(self) -> None:
        if self._plane is not None:
            self._plane.start()

    async def done(self) -> None:
        if self._plane is not None:
            await self._plane.close()
