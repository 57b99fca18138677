"""Whatever an upstream answers: a strict client reads one response to one request, whole or cut short."""

from itertools import pairwise

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.gate.http_forwarding import BAD_GATEWAY, Forwarding

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: allowed.test\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 3\r\n\r\na",
]
RESPONSES = [
    OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + OK,
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nxx",
    OK + OK,
]
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"\x85", b"\r\n ", b"\r\n\r\n", b"0\r\n\r\n", b";", b"-",
    b"_", b"Content-Length: 2\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n",
]  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A response with up to two things inserted or left out."""
    answer = draw(st.sampled_from(RESPONSES))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(answer)))
        end = start + draw(st.sampled_from([0, 0, 1, 3]))
        answer = answer[:start] + draw(st.sampled_from([*PIECES, b""])) + answer[end:]
    return answer


@settings(max_examples=150, deadline=None)
@given(
    request=st.sampled_from(REQUESTS),
    answer=answers(),
    cuts=st.lists(st.integers(0, 120), max_size=3),
    end=st.booleans(),
)
@example(REQUESTS[0], RESPONSES[4], [], False)
@example(REQUESTS[0], OK + OK, [len(OK)], False)
@example(REQUESTS[4], OK + OK, [len(OK)], False)
@example(
    REQUESTS[0], b"HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 5\r\nContent-Length: 2\r\n\r\nok", [], False
)
def test_a_client_reads_one_response(request: bytes, answer: bytes, cuts: list[int], end: bool) -> None:
    forwarding = Forwarding(answers=False)
    forwarding.send(request)
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    forwarding.answer(*(answer[start:stop] for start, stop in pairwise(edges)), end=end)
    if forwarding.told not in (b"", BAD_GATEWAY):
        assert_one_response(request.partition(b" ")[0], forwarding.told)


def assert_one_response(method: bytes, told: bytes) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "allowed.test")]))
    client.send(h11.EndOfMessage())
    client.receive_data(told)
    statuses = []
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            statuses.append(event.status_code)
        elif not isinstance(event, h11.Data):
            break
    assert len(statuses) <= 1
    assert not client.trailing_data[0], "more than a response"
