"""Our gate with its control, as a process: ``python -m benchmarks.rig.live.gate POLICY SOCKET RECORDS``."""

import asyncio
import gc
import socket
import sys
from pathlib import Path

from benchmarks.rig import plan
from benchmarks.rig.gate import LIMITS
from benchmarks.rig.live.plan import BOX_ID, NAME_SERVER
from box_policy.audit.sinks import Audit, JsonLines
from box_policy.control.http.address import parse_control_address
from box_policy.control.plane import ControlPlane
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Settings


async def serve(policy: Path, control: str, records: Path) -> None:
    """Serve the rig's box, under the file's policy, until the process is ended."""
    audit = Audit(JsonLines(records))
    gate = EmbeddedGate(Settings(name_servers=[NAME_SERVER], limits=LIMITS), audit)
    plane = ControlPlane(gate.gate, audit)
    plane.load_files(policy, [BOX_ID])
    plane.listen(parse_control_address(f"unix:{control}"), None)
    gate.start()
    plane.start()
    gc.freeze()  # as the commands do
    with socket.create_server(("0.0.0.0", plan.PROXY_PORT), backlog=4096) as listener:
        gate.gate.serve(BOX_ID, tcp=[listener])
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
