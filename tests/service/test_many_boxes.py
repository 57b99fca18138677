"""A hundred boxes at once, each behind a policy of its own."""

import re
from concurrent.futures import ThreadPoolExecutor

from tests.lab import Lab, plan
from tests.service.conftest import Server

BOXES = 100
WORKERS = 16

# Asks for its own name, and those of the two boxes after it, over TLS and HTTP in turns.
PROGRAM = f"""
import socket, ssl, sys
own, boxes = int(sys.argv[1]), int(sys.argv[2])
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for turn in range(6):
    name = f"own{{(own + turn % 3) % boxes}}.test"
    try:
        with socket.create_connection(("{plan.ALLOWED4}", 443 if turn % 2 else 80), 10) as sock:
            if turn % 2:
                sock = context.wrap_socket(sock, server_hostname=name)
            head = f"GET /from/{{own}} HTTP/1.1\\r\\nHost: {{name}}\\r\\nConnection: close\\r\\n\\r\\n"
            sock.sendall(head.encode())
            answer = sock.recv(100)
            print(name, "yes" if answer.startswith(b"HTTP/1.1 200") else "no")
    except OSError:
        print(name, "no")
"""


def test_none_gets_another_s_verdict(service: Server, lab: Lab) -> None:
    for number in range(BOXES):
        lab.dns.set(f"own{number}.test", A=[plan.ALLOWED4])

    def create(number: int) -> str:
        policy = {"mode": "custom", "allowed_domains": [f"own{number}.test"]}
        box: str = service.create(network_policy=policy)["id"]
        service.ask("POST", f"/{box}/files/write", {"path": "p.py", "content": PROGRAM}).ok()
        return box

    def run(number: int) -> list[str]:
        ran = service.run(boxes[number], f"python3 p.py {number} {BOXES}")
        assert ran["exit_code"] == 0, ran
        return str(ran["output"]).splitlines()

    with ThreadPoolExecutor(WORKERS) as pool:
        boxes = list(pool.map(create, range(BOXES)))
        said = list(pool.map(run, range(BOXES)))
    for request in lab.requests():
        came_from = re.fullmatch(r"/from/(\d+)", request.target)
        assert came_from is not None
        assert request.header("Host") == f"own{came_from[1]}.test", "the origin saw what was not allowed"
    assert len(lab.requests()) == 2 * BOXES
    for number, lines in enumerate(said):
        names = [f"own{(number + turn % 3) % BOXES}.test" for turn in range(6)]
        assert lines == [f"{name} {'yes' if name == names[0] else 'no'}" for name in names]
