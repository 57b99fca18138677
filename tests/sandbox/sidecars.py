"""``box-policy gate --sidecar`` in the lab: the test process is the application beside it."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import dns.message
import dns.query
import dns.rdatatype
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from box_policy.sandbox.sidecar.rules import TABLE
from tests.lab import Lab, plan

PATIENCE: Final = 20.0
POLICY: Final = {
    "mode": "custom",
    "allowed_domains": ["allowed.test", "*.wild.test"],
    "allowed_cidrs": [plan.CIDR],
}
_CAP_NET_ADMIN = 12
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_libc = ctypes.CDLL(None, use_errno=True)
_NFPROTO_INET = 1


def keep_net_admin() -> None:
    """In a child before its exec: in a user namespace an ordinary user's capabilities end there otherwise."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, data))
    sets = list(struct.unpack("=6I", data.raw))
    sets[2] |= 1 << _CAP_NET_ADMIN  # inheritable
    _checked(_libc.capset(header, struct.pack("=6I", *sets)))
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_NET_ADMIN, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "capabilities")


class Sidecar:
    """A running gate. Its rules stay when it ends; :func:`no_rules` takes them away."""

    def __init__(self, directory: Path, *options: str, resolv_conf: Path | None = None) -> None:
        self.control = directory / "control.sock"
        command = [sys.executable, "-m", "box_policy", "gate", "--sidecar"]
        command += ["--policy", str(directory / "policy.yaml"), "--control", str(self.control)]
        command += ["--name-server", plan.NAMESERVER4]

        def prepare() -> None:
            if resolv_conf is not None:
                see_resolv_conf(resolv_conf)
            keep_net_admin()

        self.output: list[str] = []
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=prepare,
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = self.process.stdout
        for line in stream or ():
            with self._changed:
                self.output.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until lines with the text have been shown."""

        def shown() -> bool:
            return sum(text in line for line in self.output) >= times

        with self._changed:
            self._changed.wait_for(lambda: shown() or not self._reader.is_alive(), timeout=PATIENCE)
        assert shown(), self.output

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status


@contextlib.contextmanager
def no_rules_afterwards() -> Iterator[None]:
    """The test process has its network back in the end, whatever happens."""
    try:
        yield
    finally:
        delete_rules()


def delete_rules() -> None:
    with NFTables(nfgen_family=_NFPROTO_INET) as nft, contextlib.suppress(NetlinkError):
        nft.table("del", name=TABLE)


def connected(
    address: str, port: int, prepare: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        sock.settimeout(PATIENCE)
        if prepare is not None:
            prepare(sock)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def handshake(lab: Lab, address: str, name: str, port: int = 443) -> str:
    """The subject's alternative name of the certificate at the other end."""
    context = ssl.create_default_context(cafile=str(lab.ca_pem))
    with connected(address, port) as sock, context.wrap_socket(sock, server_hostname=name) as tls:
        return str(tls.version())


def http_status(address: str, host: str) -> int:
    with connected(address, 80) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return int(sock.makefile("rb").readline().split()[1])


def is_reset(address: str, port: int, data: bytes = b"hello\r\n") -> bool:
    """Is a raw TCP connection ended by RST?"""
    try:
        with connected(address, port) as sock:
            sock.sendall(data)
            return sock.recv(100) != b"" and False
    except (ConnectionResetError, ConnectionRefusedError, BrokenPipeError):
        return True


def asked(server: str, name: str, *, tcp: bool = False, kind: str = "A") -> dns.message.Message:
    """The answer of a name server, wherever it is said to be."""
    ask = dns.query.tcp if tcp else dns.query.udp
    # The reply's source has to be the address that was asked: NAT has to be undone.
    return ask(dns.message.make_query(name, kind), server, timeout=PATIENCE)


def answers(message: dns.message.Message) -> list[str]:
    return [str(item) for rrset in message.answer for item in rrset if item.rdtype != dns.rdatatype.CNAME]


def drop_capabilities() -> None:
    """Of the calling thread."""
    _checked(_libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)))


def see_resolv_conf(file: Path) -> None:
    """In a child before its exec: another /etc/resolv.conf, as a pod's containers have."""
    os.unshare(_CLONE_NEWNS)
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    _checked(_libc.mount(os.fsencode(file), b"/etc/resolv.conf", None, _MS_BIND, None))


def looked_up(names: list[str], resolv_conf: Path) -> dict[str, tuple[list[str], float]]:
    """What getaddrinfo(3) finds, and in how many seconds, in a process with that resolv.conf."""

    done = subprocess.run(
        [sys.executable, "-c", _LOOK_UP, *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        preexec_fn=lambda: see_resolv_conf(resolv_conf),
    )
    found: dict[str, tuple[list[str], float]] = json.loads(done.stdout)
    return found


_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 1 << 18
_LOOK_UP = """
import json, socket, sys, time
found = {}
for name in sys.argv[1:]:
    began = time.monotonic()
    try:
        addresses = sorted({info[4][0] for info in socket.getaddrinfo(name, 443)})
    except OSError as error:
        addresses = [str(error)]
    found[name] = addresses, time.monotonic() - began
print(json.dumps(found))
"""


def without_net_admin() -> None:
    """In a child before its exec."""
    _checked(_libc.prctl(_PR_CAPBSET_DROP, _CAP_NET_ADMIN, 0, 0, 0))


_PR_CAPBSET_DROP = 24
