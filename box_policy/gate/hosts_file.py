"""The host's own table of names (hosts(5))."""

import time
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from box_policy.policy.addresses import Address
from box_policy.policy.domains import name_from_wire

_CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks for a change."""


class HostsFile:
    """Looks names up in a hosts file, and reads it again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] | None = None
        self._names: dict[str, tuple[Address, ...]] = {}
        self._checked = float("-inf")

    def addresses(self, name: str) -> tuple[Address, ...]:
        """The addresses of a canonical name; empty if the file has none, or can't be read."""
        now = time.monotonic()
        if now - self._checked >= _CHECK_INTERVAL:
            self._checked = now
            self._check()
        return self._names.get(name, ())

    def _check(self) -> None:
        try:
            status = self._path.stat()
        except OSError:
            self._names = {}
            self._version = None
            return
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if version != self._version:
            try:
                self._names = self._read()
                self._version = version  # only of what has been read
            except OSError:
                self._names = {}
                self._version = None

    def _read(self) -> dict[str, tuple[Address, ...]]:
        names: dict[str, tuple[Address, ...]] = {}
        text = self._path.read_bytes()
        for line in text.splitlines():
            fields = line.partition(b"#")[0].split()
            if len(fields) < 2:
                continue
            try:
                address = ip_address(fields[0].decode("ascii"))
            except ValueError:
                continue
            for field in fields[1:]:
                name = name_from_wire(field)
                if name is not None:
                    names[name] = (*names.get(name, ()), address)
        return names
