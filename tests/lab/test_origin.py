"""What the origin's services answer, and what they note."""

import http.client
import json
import socket
import ssl
import time
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, TextMessage
from wsproto.events import Request as WebSocketRequest

from tests.lab import Lab, plan
from tests.lab.hellos import client_hello
from tests.lab.origin.certificates import DEFAULT_NAME


def connect(lab: Lab, address: str, port: int, sni: str | None = "allowed.test") -> socket.socket:
    sock = socket.create_connection((address, port), 5)
    if port not in plan.TLS_PORTS:
        return sock
    context = ssl.create_default_context(cafile=str(lab.ca_pem))
    context.set_alpn_protocols(["http/1.1"])
    context.check_hostname = sni is not None
    return context.wrap_socket(sock, server_hostname=sni)


def get(
    sock: socket.socket, path: str = "/", method: str = "GET", body: bytes = b""
) -> tuple[http.client.HTTPResponse, bytes]:
    head = f"{method} {path} HTTP/1.1\r\nHost: Allowed.Test\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response, response.read()


@pytest.mark.parametrize("address", [plan.ALLOWED4, plan.ALLOWED6, plan.METADATA4])
@pytest.mark.parametrize("port", [*plan.HTTP_PORTS, *plan.TLS_PORTS])
def test_the_web_site_says_what_it_was_asked(lab: Lab, address: str, port: int) -> None:
    tls = port in plan.TLS_PORTS
    with connect(lab, address, port) as sock:
        response, body = get(sock, "/some/path?q=1", "POST", b"12345")
    assert response.status == 200
    assert json.loads(body) == {
        "method": "POST",
        "host": "Allowed.Test",
        "target": "/some/path?q=1",
        "address": address,
        "port": port,
        "tls": tls,
        "sni": "allowed.test" if tls else None,
        "body_length": 5,
    }
    (request,) = lab.requests(address, port)
    assert (request.method, request.target, request.tls) == ("POST", "/some/path?q=1", tls)
    assert request.headers == [
        ("Host", "Allowed.Test"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Content-Length", "5"),
    ]
    assert (request.header("x-twice"), request.header("x-none")) == ("1, 2", None)
    assert (request.body_length, request.complete) == (5, True)
    (connection,) = lab.connections(address, port)
    assert connection.id == request.connection
    assert (connection.tls, connection.sni, connection.alpn) == (
        (True, "allowed.test", "http/1.1") if tls else (False, None, None)
    )


@pytest.mark.parametrize("name", ["allowed.test", "a.b.wild.test", "xn--mnchen-3ya.test"])
def test_the_certificate_is_for_the_name_asked(lab: Lab, name: str) -> None:
    with connect(lab, plan.ALLOWED4, 443, name) as sock:
        assert get(sock)[0].status == 200


def test_without_a_name_the_certificate_is_the_default(lab: Lab) -> None:
    with connect(lab, plan.ALLOWED4, 443, None) as sock:
        assert isinstance(sock, ssl.SSLSocket)
        certificate: Any = sock.getpeercert()
    assert certificate["subjectAltName"] == (("DNS", DEFAULT_NAME),)


def test_bytes_are_noted_as_they_came(lab: Lab) -> None:
    hello = client_hello(random=b"a nonce".ljust(32, b"."), fragment=50)
    with socket.create_connection((plan.ALLOWED6, 443)) as sock:
        sock.sendall(hello)
        assert sock.recv(3) == b"\x16\x03\x03"
    (connection,) = lab.connections(plan.ALLOWED6)
    assert (connection.received, connection.sni, connection.tls) == (hello, "allowed.test", False)


def test_a_broken_hello_gets_an_alert_and_is_no_fault(lab: Lab) -> None:
    with socket.create_connection((plan.ALLOWED4, 443)) as sock:
        sock.sendall(client_hello(duplicate_sni=b"evil.test"))
        assert sock.recv(1) == b"\x15"


def test_received_bytes_are_kept_up_to_a_limit(lab: Lab) -> None:
    with socket.create_connection((plan.ALLOWED4, plan.ECHO_PORT)) as sock:
        sock.sendall(b"x" * 200_000)
        sock.shutdown(socket.SHUT_WR)
        assert len(b"".join(iter(lambda: sock.recv(65536), b""))) == 200_000
    (connection,) = lab.connections()
    assert (len(connection.received), connection.received_length) == (1 << 16, 200_000)
    assert connection.closed == "eof"


@pytest.mark.parametrize("accepted", [False, True])
def test_a_reset_is_told_from_an_end(lab: Lab, accepted: bool) -> None:
    with socket.create_connection((plan.ALLOWED4, plan.ECHO_PORT)) as sock:
        if accepted:
            lab.expect(lab.connections)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    (connection,) = lab.expect(lambda: [connection for connection in lab.connections() if connection.closed])
    assert connection.closed == "reset"


@pytest.mark.parametrize("port", [80, 443])
def test_connections_are_kept_alive(lab: Lab, port: int) -> None:
    with connect(lab, plan.ALLOWED4, port) as sock:
        for _ in range(3):
            assert get(sock)[0].status == 200
    assert len(lab.connections()) == 1
    assert len(lab.requests()) == 3


@pytest.mark.parametrize("port", [80, 443])
def test_paths(lab: Lab, port: int) -> None:
    with connect(lab, plan.ALLOWED4, port) as sock:
        assert len(get(sock, "/bytes/1000000")[1]) == 1_000_000
        assert get(sock, "/bytes/0")[1] == b""
        assert get(sock, "/slow?chunks=3&interval=0&size=2")[1] == b"......"
        assert get(sock, "/echo", "POST", b"a" * 300_000)[1] == b"a" * 300_000
        assert get(sock, "/bytes/9", "HEAD")[0].length == 0
        with pytest.raises(http.client.IncompleteRead):
            get(sock, "/close-early")


def test_a_response_of_the_clients_own(lab: Lab) -> None:
    with connect(lab, plan.ALLOWED4, 80) as sock:
        sock.sendall(b"POST /raw?%00HTTP%0D%0A HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 2\r\n\r\n")
        assert sock.recv(100) == b"\0HTTP\r\n"
        sock.sendall(b"hi")
        response, _ = get(sock)
        assert response.status == 200
        sock.sendall(b"GET /raw-end?the+end HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
        assert sock.makefile("rb").read() == b"the+end"
    assert [request.complete for request in lab.requests()] == [True, True, False]


def test_hold_never_answers(lab: Lab) -> None:
    with socket.create_connection((plan.ALLOWED4, 80)) as sock:
        sock.sendall(b"GET /hold HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
        lab.expect(lab.requests)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_a_malformed_request_is_answered_400_and_noted_in_bytes(lab: Lab) -> None:
    with socket.create_connection((plan.ALLOWED4, 80)) as sock:
        sock.sendall(b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
    lab.reset()
    with socket.create_connection((plan.ALLOWED4, 80)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert lab.requests() == []
    assert b"Host: b" in lab.connections()[0].received


@pytest.mark.parametrize("port", [80, 443])
def test_a_web_socket_echoes(lab: Lab, port: int) -> None:
    web_socket = WSConnection(ConnectionType.CLIENT)
    with connect(lab, plan.ALLOWED4, port) as sock:
        sock.sendall(web_socket.send(WebSocketRequest(host="allowed.test", target="/ws")))
        events: list[Any] = []
        while not any(isinstance(event, Message) for event in events):
            web_socket.receive_data(sock.recv(4096))
            for event in web_socket.events():
                events.append(event)
                if isinstance(event, AcceptConnection):
                    sock.sendall(web_socket.send(TextMessage("hello")))
    assert events[-1].data == "hello"


def test_the_banner_comes_unasked(lab: Lab) -> None:
    with socket.create_connection(("51.81.77.7", plan.BANNER_PORT)) as sock:
        assert sock.recv(100) == b"SSH-2.0-lab\r\n"


def ask(
    lab: Lab, name: str, kind: str = "A", *, tcp: bool = False, ipv6: bool = False
) -> tuple[str, list[str], bool]:
    """The answer's code, its data, and whether it was truncated."""
    send = dns.query.tcp if tcp else dns.query.udp
    address = lab.nameserver6 if ipv6 else lab.nameserver
    answer = send(dns.message.make_query(name, kind), address, timeout=2)
    data = [str(item) for records in answer.answer for item in records]
    return dns.rcode.to_text(answer.rcode()), data, bool(answer.flags & dns.flags.TC)


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("allowed.test", "A", [plan.ALLOWED4]),
        ("Allowed.TEST", "AAAA", [plan.ALLOWED6]),
        ("allowed.test", "MX", []),
        ("allowed.test", "TYPE65280", []),
        ("x.wild.test", "A", [plan.WILDCARD4]),
        ("x.y.wild.test", "A", [plan.WILDCARD4]),
        ("front.cdn.test", "A", [plan.SHARED4]),
        ("hidden.othercdn.test", "A", [plan.SHARED4]),
        ("evil.test", "AAAA", [plan.EVIL6]),
        ("private.test", "A", [plan.PRIVATE4]),
        ("metadata.test", "A", [plan.METADATA4]),
        ("a_10-66-0-1_x.rebind.test", "A", ["10.66.0.1"]),
        ("x_fd00000000000000000000000000000a_x.rebind.test", "AAAA", ["fd00::a"]),
        ("both_1-2-3-4_10-0-0-1_x.rebind.test", "A", ["1.2.3.4", "10.0.0.1"]),
    ],
)
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_default_zone(lab: Lab, name: str, kind: str, data: list[str], tcp: bool, ipv6: bool) -> None:
    assert ask(lab, name, kind, tcp=tcp, ipv6=ipv6) == ("NOERROR", data, False)
    (question,) = lab.dns.questions
    assert (question.name, question.type) == (name, kind)
    assert (question.transport, question.address) == (
        "tcp" if tcp else "udp",
        lab.nameserver6 if ipv6 else lab.nameserver,
    )
    assert dns.message.from_wire(question.raw).question[0].rdtype == dns.rdatatype.from_text(kind)


@pytest.mark.parametrize("name", ["nowhere.test", "wild.test", "a_nonsense.rebind.test", "."])
def test_other_names_do_not_exist(lab: Lab, name: str) -> None:
    assert ask(lab, name) == ("NXDOMAIN", [], False)


def test_a_rebinding_name_flips(lab: Lab) -> None:
    name = "flip_51-81-10-10_169-254-169-254_x.rebind.test"
    assert [ask(lab, name)[1] for _ in range(3)] == [
        ["51.81.10.10"],
        ["169.254.169.254"],
        ["169.254.169.254"],
    ]


def test_a_sequence_is_gone_through_by_type(lab: Lab) -> None:
    lab.dns.set("flip.test", sequence=[["1.1.1.1", "2600::1"], ["10.0.0.1"], ["2.2.2.2"]])
    assert [ask(lab, "flip.test", "A")[1] for _ in range(4)] == [
        ["1.1.1.1"],
        ["10.0.0.1"],
        ["2.2.2.2"],
        ["2.2.2.2"],
    ]
    assert [ask(lab, "flip.test", "AAAA")[1] for _ in range(2)] == [["2600::1"], []]


def test_what_a_name_can_have(lab: Lab) -> None:
    lab.dns.set("rich.test", A=["1.2.3.4"], HTTPS="1 . alpn=h2 ipv4hint=1.2.3.4", TXT="text", ttl=7)
    assert ask(lab, "rich.test", "HTTPS")[1] == ['1 . alpn="h2" ipv4hint="1.2.3.4"']
    assert ask(lab, "rich.test", "TXT")[1] == ['"text"']
    answer = dns.query.udp(dns.message.make_query("rich.test", "A"), lab.nameserver, 2)
    assert answer.answer[0].ttl == 7


def test_a_cname_comes_with_what_it_leads_to(lab: Lab) -> None:
    lab.dns.set("alias.test", CNAME="internal.corp.lan")
    lab.dns.set("internal.corp.lan", A=["10.66.0.1"])
    assert ask(lab, "alias.test")[1] == ["internal.corp.lan.", "10.66.0.1"]
    lab.dns.set("loop.test", CNAME="loop.test")
    assert ask(lab, "loop.test")[0] == "NOERROR"


def test_misbehaviour(lab: Lab) -> None:
    lab.dns.set("broken.test", rcode="SERVFAIL")
    assert ask(lab, "broken.test")[0] == "SERVFAIL"
    lab.dns.set("silent.test", silent=True)
    query = dns.message.make_query("silent.test", "A")
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(query, lab.nameserver, 0.1)
    lab.dns.set("slow.test", A=["1.2.3.4"], delay=0.1)
    before = time.monotonic()
    assert ask(lab, "slow.test")[1] == ["1.2.3.4"]
    assert time.monotonic() - before >= 0.1
    lab.dns.set("raw.test", raw=b"..garbage")
    with pytest.raises(dns.exception.DNSException):
        ask(lab, "raw.test", tcp=True)


@pytest.mark.parametrize("why", ["told to", "too long"])
def test_truncation(lab: Lab, why: str) -> None:
    addresses = [f"1.2.3.{n}" for n in range(100 if why == "too long" else 1)]
    lab.dns.set("long.test", A=addresses, truncate=why == "told to")
    assert ask(lab, "long.test") == ("NOERROR", [], True)
    assert ask(lab, "long.test", tcp=True) == ("NOERROR", addresses, False)


@pytest.mark.parametrize("knob", ["wrong_id_first", "wrong_question_first"])
def test_a_forged_answer_comes_first(lab: Lab, knob: str) -> None:
    forgery: dict[str, Any] = {knob: True}
    lab.dns.set("spoofed.test", A=["1.2.3.4"], **forgery)
    query = dns.message.make_query("spoofed.test", "A")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.sendto(query.to_wire(), (lab.nameserver, 53))
        answers = [dns.message.from_wire(sock.recv(4096)) for _ in range(2)]
    assert [query.is_response(answer) for answer in answers] == [False, True]


def test_what_is_no_question_is_noted_all_the_same(lab: Lab) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"tunnel!", (lab.nameserver, 53))
    (question,) = lab.expect(lambda: lab.dns.questions)
    assert (question.name, question.type, question.raw) == ("", "", b"tunnel!")
