"""The proxies that are compared: how each is started, and which of its processes does the work."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.rig import plan
from benchmarks.rig.process import BenchmarkError, Program, children, python_module

NGINX_IS_MISSING: Final = (
    "nginx with its stream module is not installed, so the lane is measured alone. "
    "On Debian and Ubuntu: apt-get install nginx-light libnginx-mod-stream"
)

_START_LIMIT: Final = 15.0
_LISTEN: Final = "0A"  # the state's number in /proc/net/tcp

_NGINX: Final = """\
{load_module}
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
stream {{
    map $ssl_preread_server_name $upstream {{
        {name} {allowed}:{port};
    }}
    log_format records '$time_iso8601 $connection $remote_addr $ssl_preread_server_name $upstream_addr '
                       '$status $bytes_received $bytes_sent $session_time';
    access_log {access_log};
    server {{
        listen 0.0.0.0:{proxy_port} backlog=4096;
        ssl_preread on;
        proxy_pass $upstream;
    }}
}}
"""


@contextmanager
def lane(directory: Path, cpu: int | None, *, log: bool) -> Iterator[int]:
    """Run our gate; gives the process id. ``log``: it writes its records, two a connection."""
    records = [directory / "records.jsonl"] if log else []
    with python_module("benchmarks.rig.gate", *records, cpu=cpu) as program:
        wait_until_it_listens(program)
        yield program.pid


@contextmanager
def nginx(directory: Path, cpu: int | None, *, log: bool) -> Iterator[int]:
    """Run nginx, with its defaults; gives the process id of its worker.

    BenchmarkError if it can't be run.
    """
    binary = nginx_binary()
    if binary is None:
        raise BenchmarkError(NGINX_IS_MISSING)
    module = _stream_module(binary)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            load_module=f"load_module {module};" if module.exists() else "",
            directory=directory,
            name=plan.NAME,
            allowed=plan.ALLOWED,
            port=plan.PORT,
            access_log=f"{directory}/access.log records" if log else "off",
            proxy_port=plan.PROXY_PORT,
        )
    )
    with Program([binary, "-p", directory, "-c", configuration, "-e", "stderr"], cpu=cpu) as master:
        wait_until_it_listens(master)
        deadline = time.monotonic() + _START_LIMIT
        while not (workers := children(master.pid)):
            if time.monotonic() > deadline:
                raise BenchmarkError("nginx has started no worker")
            time.sleep(0.01)
        yield workers[0]


def nginx_binary() -> str | None:
    """Where nginx is, if it can do what is asked of it here."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/nginx/sbin")
    if binary is None:
        return None
    built = _version(binary)
    has_stream = "--with-stream " in f"{built} " or _stream_module(binary).exists()
    return binary if has_stream and "--with-stream_ssl_preread_module" in built else None


def nginx_version() -> str | None:
    """As ``nginx/1.22.1``; None if it isn't there."""
    binary = nginx_binary()
    return _version(binary).splitlines()[0].partition(": ")[2] if binary is not None else None


def _stream_module(binary: str) -> Path:
    _, _, after = _version(binary).partition("--modules-path=")
    return Path(after.split()[0] if after else "modules", "ngx_stream_module.so")


def _version(binary: str) -> str:
    return subprocess.run([binary, "-V"], stdin=subprocess.DEVNULL, capture_output=True, text=True).stderr


def wait_until_it_listens(program: Program) -> None:
    """Until the proxy's port is open. BenchmarkError if the program ends, or takes too long."""
    deadline = time.monotonic() + _START_LIMIT
    while not _listens():
        if not program.running():
            raise BenchmarkError(f"{program.name} has ended at its start")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{program.name} does not listen")
        time.sleep(0.01)


def _listens() -> bool:
    # A connection made to find out would be one more for the proxy to serve.
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(
        own.endswith(f":{plan.PROXY_PORT:04X}") and state == _LISTEN for _, own, _, state, *_ in sockets
    )
