"""Which protocol the first bytes are, however they are split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.wire.first_bytes import MAX_FIRST_BYTES, Start, classify
from box_policy.wire.postgresql import SSL_REQUEST

STARTS = [
    (b"\x16\x03\x01\x02\x00\x01", Start.TLS),
    (b"\x16\x03\x04\x02\x00\x01", Start.TLS),
    (b"\x16\x03\xff\x02\x00\x01", Start.TLS),
    (b"GET / HTTP/1.1\r\n", Start.HTTP),
    (b"POST http://a.test/ HTTP/1.1\r\n", Start.HTTP),
    (b"VERSION-CONTROL /x HTTP/1.1\r\n", Start.HTTP),
    (b"PRI * HTTP/2.0\r\n", Start.HTTP),
    (b"OPTIONS * HTTP/1.1\n", Start.HTTP),
    (b"CONNECT a.test:443 HTTP/1.1\r\n", Start.HTTP),
    (b"GET HTTPS://a.test/", Start.HTTP),
    (b"GET /", Start.HTTP),
    (SSL_REQUEST, Start.POSTGRESQL),
    (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", Start.OTHER),
    (b"\r\nGET / HTTP/1.1\r\n", Start.OTHER),
    (b"get / HTTP/1.1\r\n", Start.OTHER),
    (b"GET\t/ HTTP/1.1\r\n", Start.OTHER),
    (b" GET / HTTP/1.1\r\n", Start.OTHER),
    (b"GET\r\n", Start.OTHER),
    (b"GET key\r\n", Start.OTHER),  # Redis
    (b"EHLO mail.allowed.test\r\n", Start.OTHER),  # SMTP
    (b"OPTIONS rtsp://a.test/ RTSP/1.0\r\n", Start.OTHER),
    (b"GET a\rb HTTP/1.1\r\n", Start.OTHER),
    (b"GET a\0 HTTP/1.1\r\n", Start.OTHER),
    (b"GET " + b"a" * 600, Start.OTHER),
    (b"\x16\x02\x00", Start.OTHER),
    (b"\x80\x2e\x01\x03\x01", Start.OTHER),  # an SSLv2 hello
    (b"\x15\x03\x01\x00\x02", Start.OTHER),
    (b"\x17\x03\x03\x00\x02", Start.OTHER),
    (b"\x05\x01\x00", Start.OTHER),  # SOCKS5
    (b"\x00\x00\x00\x08\x04\xd2\x16\x30", Start.OTHER),  # PostgreSQL's GSSENCRequest
    (b"\x16\xfe\xfd", Start.OTHER),  # DTLS
    (b"A" * 40, Start.OTHER),
]


@pytest.mark.parametrize(("data", "start"), STARTS)
def test_a_start_is_told(data: bytes, start: Start) -> None:
    assert classify(data) is start


@pytest.mark.parametrize(("data", "start"), STARTS)
def test_a_start_is_told_the_same_byte_by_byte(data: bytes, start: Start) -> None:
    answers = [classify(data[:size]) for size in range(len(data) + 1)]
    first = next(index for index, answer in enumerate(answers) if answer is not Start.NEED_MORE)
    assert set(answers[first:]) == {start}


def test_nothing_is_undecided() -> None:
    assert classify(b"") is Start.NEED_MORE


@given(st.binary(max_size=64), st.integers(0, 64))
def test_more_bytes_never_change_an_answer(data: bytes, cut: int) -> None:
    early = classify(data[:cut])
    if early is not Start.NEED_MORE:
        assert classify(data) is early


@given(st.sampled_from([b"", b"GET ", b"GET http"]), st.binary(min_size=1, max_size=40))
def test_enough_bytes_always_decide(start: bytes, data: bytes) -> None:
    assert classify((start + data * MAX_FIRST_BYTES)[:MAX_FIRST_BYTES]) is not Start.NEED_MORE
