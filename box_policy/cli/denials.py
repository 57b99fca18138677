"""What was denied during a run, and what would have allowed it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import IO, Final

from box_policy.audit.records import Entry, Event, Protocol, Record
from box_policy.policy.reasons import Reason

MAX_ROWS: Final = 500
_NOT_THE_POLICY: Final = frozenset(
    {Reason.CLIENT_GONE, Reason.BOX_CLOSED, Reason.RESOLUTION_FAILED, Reason.LIMIT, Reason.INTERNAL_ERROR}
)


@dataclass(slots=True)
class Denial:
    """One row: everything that was denied for one reason towards one target."""

    target: str
    reason: Reason
    rule: str
    remedy: str
    protocols: list[str] = field(default_factory=list)
    count: int = 0


class Denials:
    """A sink that keeps what a person wants to know at the end; bounded."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Reason], Denial] = {}
        self.left_out = 0

    def __call__(self, record: Entry) -> None:
        if not isinstance(record, Record):
            return
        if record.allowed or record.event is not Event.DECISION or record.reason in _NOT_THE_POLICY:
            return
        target = record.name or record.claimed_address or "?"
        key = (target, record.reason)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                self.left_out += 1
                return
            row = self._rows[key] = Denial(target, record.reason, record.rule, remedy(record))
        row.count += 1
        protocol = (
            record.protocol if record.protocol is Protocol.DNS else f"{record.protocol}:{record.claimed_port}"
        )
        if protocol not in row.protocols and len(row.protocols) < 4:
            row.protocols.append(protocol)

    def __iter__(self) -> Iterator[Denial]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def write_table(self, stream: IO[str]) -> None:
        """A table for people."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="box-policy: denied", title_justify="left", box=None, pad_edge=False)
        for heading in ("target", "by", "times", "why", "allowed by"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "times" else "left")
        for row in self:
            why = f"{row.reason} ({row.rule})" if row.rule else str(row.reason)
            table.add_row(row.target, " ".join(row.protocols), str(row.count), why, row.remedy)
        console = Console(
            file=stream, markup=False, highlight=False, emoji=False, width=None if stream.isatty() else 160
        )
        console.print(table)
        if self.left_out:
            console.print(f"and {self.left_out} more")

    def write_json(self, stream: IO[str]) -> None:
        """One JSON object a line."""
        for row in self:
            fields = {
                "target": row.target,
                "protocols": row.protocols,
                "times": row.count,
                "reason": row.reason,
                "rule": row.rule or None,
                "allowed_by": row.remedy or None,
            }
            stream.write(json.dumps(fields) + "\n")
        if self.left_out:
            stream.write(json.dumps({"left_out": self.left_out}) + "\n")


def remedy(record: Record) -> str:
    """The options of ``box-policy run`` that would have allowed it; empty if none would."""
    match record.reason:
        case Reason.NAME_NOT_ALLOWED | Reason.DENY_ALL if record.name:
            return f"--allow {record.name}"
        case Reason.ADDRESS_NOT_ALLOWED | Reason.NO_NAME | Reason.PROTOCOL_UNKNOWN | Reason.DENY_ALL if (
            record.claimed_address
        ):
            return f"--allow-cidr {_network(record.claimed_address)}"
        case Reason.SPECIAL_ADDRESS if (
            record.claimed_address and not ip_address(record.claimed_address).is_loopback
        ):
            network = _network(record.claimed_address)
            return f"--private-range {network} --allow-cidr {network}"
        case Reason.RESOLVED_SPECIAL:
            return " ".join(f"--private-range {_network(address)}" for address in record.resolved)
        case _:
            return ""


def _network(address: str) -> str:
    return f"{address}/{ip_address(address).max_prefixlen}"
