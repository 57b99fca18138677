"""Our gate as a process: ``python -m benchmarks.rig.gate [records file]``."""

import asyncio
import socket
import sys
from pathlib import Path

from benchmarks.rig import plan
from box_policy.audit.sinks import Audit, JsonLines
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Settings
from box_policy.gate.limits import Limits
from box_policy.policy.model import NetworkPolicy

LIMITS = Limits(connections=4096, connection_rate=1_000_000)
"""What is measured is what a connection costs, not what a box may have."""


async def serve(records: Path | None) -> None:
    """Serve the rig's box until the process is ended."""
    audit = Audit(JsonLines(records)) if records is not None else Audit()
    gate = EmbeddedGate(Settings(name_servers=[plan.ORIGIN], limits=LIMITS), audit)
    policy = NetworkPolicy.parse({"mode": "custom", "allowed_domains": [plan.NAME]})
    gate.gate.put_policy("box", gate.gate.compile(policy))
    gate.start()
    with socket.create_server(("0.0.0.0", plan.PROXY_PORT), backlog=4096) as listener:
        gate.gate.serve("box", tcp=[listener])
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
