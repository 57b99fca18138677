"""Inputs with a structure: sound ones, and ones that are wrong in one place or several."""

import json
from dataclasses import replace

import yaml
from hypothesis import strategies as st

from tests.fuzz.dns_question import OPT, message
from tests.fuzz.dns_reply import answer
from tests.fuzz.hello_shape import KINDS, NAMES, Shape
from tests.lab.hellos import HOST_NAME, SERVER_NAME, Extension, server_name
from tests.policy.strategies import policies, vercel_policies

tails = st.sampled_from((b"", b"\0", b"\0\0\0\0")) | st.binary(max_size=4)
names = st.sampled_from(NAMES) | st.binary(min_size=1, max_size=20)
name_lists = st.lists(st.tuples(st.sampled_from((HOST_NAME, HOST_NAME, HOST_NAME, 1)), names), max_size=3)


def one_name(name: bytes) -> Extension:
    return server_name([(HOST_NAME, name)])


name_extensions = st.one_of(
    names.map(one_name),
    st.tuples(names, names).map(lambda two: server_name((HOST_NAME, name) for name in two)),
    st.tuples(names, tails).map(lambda pair: (SERVER_NAME, one_name(pair[0])[1] + pair[1])),
    name_lists.map(server_name),
)
extension = st.tuples(st.sampled_from(KINDS) | st.integers(0, 0xFFFF), st.binary(max_size=12))
lies = st.dictionaries(
    st.sampled_from(
        ("session_id", "suites", "compression", "extensions", "message", "record 0", "extension 0")
    ),
    st.integers(-4, 4),
    max_size=2,
)
sound_shapes = st.builds(
    Shape,
    record_version=st.sampled_from((0x0300, 0x0301, 0x0303, 0x03FF)),
    cuts=st.lists(st.integers(1, 60), max_size=3, unique=True).map(tuple),
    suites=st.just(b"\x13\1\xc0\x2b"),
    session_id=st.binary(max_size=32),
    extensions=st.lists(
        st.tuples(st.integers(100, 0xFF00), st.binary(max_size=12)),
        max_size=4,
        unique_by=lambda entry: entry[0],
    )
    .flatmap(lambda others: st.permutations([*others, (13, b"\0\2\4\3"), (21, b""), (43, b"\2\3\4")]))
    .flatmap(
        lambda others: (names.map(one_name) | st.none()).map(
            lambda name: (*others, name) if name else tuple(others)
        )
    ),
    behind=tails,
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Sound but for one thing, or two."""
    shape = draw(sound_shapes)
    for flaw in draw(st.lists(st.integers(0, 9), min_size=1, max_size=2)):
        match flaw:
            case 0 | 1:  # the last extension is the name, if there is one
                shape = replace(shape, extensions=(*(shape.extensions or ())[:-1], draw(name_extensions)))
            case 2:
                shape = replace(shape, extensions=(draw(name_extensions), *(shape.extensions or ())))
            case 3:
                extensions = [*(shape.extensions or ()), draw(extension)]
                shape = replace(shape, extensions=tuple(draw(st.permutations(extensions))))
            case 4:
                shape = replace(shape, lies=draw(lies))
            case 5:
                shape = replace(shape, in_extensions=draw(tails), in_message=draw(tails))
            case 6:
                shape = replace(shape, in_record=draw(tails))
            case 7:
                shape = replace(shape, cuts=tuple(draw(st.lists(st.integers(0, 200), max_size=4))))
            case 8:
                alien = draw(st.sampled_from((b"\x15\3\1\0\2\1\0", b"\x14\3\1\0\1\1", b"\x16\3\1\0\0")))
                shape = replace(shape, between={draw(st.integers(0, 3)): alien})
            case 9:
                shape = replace(
                    shape,
                    record_version=draw(st.sampled_from((0x0200, 0x0304))),
                    version=draw(st.sampled_from((b"\2\3", b"\3\1", b"\3\4"))),
                    compression=draw(st.sampled_from((b"", b"\1", b"\1\0"))),
                    suites=draw(st.sampled_from((b"", b"\x13", b"\x13\1"))),
                )
    return shape


hellos = (shapes() | sound_shapes).map(Shape.put_together)

hosts = st.sampled_from(
    (b"allowed.test", b"evil.test", b"ALLOWED.test.:80", b"allowed.test:81", b"51.81.10.10", b"a b")
)
targets = st.sampled_from((b"/", b"*", b"//evil.test/", b"/\xff")) | hosts.map(
    lambda host: b"http://" + host + b"/x"
)
bodies = st.sampled_from(
    (b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3;x\r\nabc\r\n0\r\nHost: evil.test\r\n\r\n", b"0\n\n")
)
fields = st.sampled_from(
    (
        b"Host: evil.test",
        b"Host: allowed.test",
        b"host: ALLOWED.test",
        b"Host : evil.test",
        b"Content-Length: 0",
        b"Content-Length: 3",
        b"Content-Length: 03",
        b"Content-Length: 3, 3",
        b"Content-Length: 18446744073709551616",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: x,Host",
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: websocket",
        b"Upgrade: WebSocket",
        b"Upgrade: websoc\xe2\x84\xaaet",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b" folded",
        b"no colon",
        b"X: a\rHost: evil.test",
        b"X: a\0",
    )
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A few requests on one connection, each sound but for one thing at most, or wrong in any."""
    sent = b""
    for _ in range(draw(st.integers(1, 3))):
        method, target, version, end = b"GET", b"/", b"HTTP/1.1", b"\r\n"
        lines = [b"Host: allowed.test"]
        for change in draw(st.lists(st.integers(0, 7), max_size=3, unique=True)):
            match change:
                case 0:
                    method = draw(st.sampled_from((b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"get")))
                case 1:
                    target = draw(targets)
                case 2:
                    version = draw(st.sampled_from((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 x")))
                case 3:
                    end = draw(st.sampled_from((b"\n", b"\r", b"\r\r\n")))
                case 4:
                    lines.pop(0)
                case 5:
                    lines.append(draw(st.binary(max_size=12)))
                case _:
                    lines.append(draw(fields))
        sent += end.join([method + b" " + target + b" " + version, *lines, b"", b""]) + draw(bodies)
    return sent


labels = st.sampled_from((b"allowed", b"test", b"a.b", b"\\", b"\0", b"\xc3\xa9", b"xn--a", b"a" * 63, b"*"))
sound_ends = st.sampled_from(
    (((1, 0, 0, 0), b""), ((1, 0, 0, 1), OPT), ((1, 0, 0, 1), OPT[:-1] + b"\5\0\x0a\0\1a"))
)
ends = st.tuples(
    st.sampled_from(((1, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 0), (0, 0, 0, 0), (1, 1, 0, 0))),
    st.sampled_from((b"", OPT, OPT + b"\0", OPT[:6] + b"\1\0\0\0\0", b"\xc0\x0c")) | st.binary(max_size=12),
)
questions = st.builds(
    lambda labels, kind, class_, flags, end: message(
        *labels, kind=kind, class_=class_, flags=flags, counts=end[0], behind=end[1]
    ),
    st.lists(labels, max_size=6),
    st.sampled_from((1, 28, 65, 255, 0)),
    st.sampled_from((1, 1, 1, 3, 255)),
    st.sampled_from((0x0100, 0x0100, 0x0110, 0, 0x8000, 0x7800)),
    sound_ends | ends,
)

owners = st.sampled_from(("allowed.test.", "ALLOWED.test.", "a.test.", "b.test.", "evil.test."))
records = st.one_of(
    st.builds("{} 60 A 51.81.10.{}".format, owners, st.integers(1, 4)),
    st.builds("{} 30 CNAME {}".format, owners, owners),
    st.builds('{} 10 TXT "{}"'.format, owners, owners),
    st.builds("{} 10 SRV 1 2 3 {}".format, owners, owners),
)
replies = st.builds(
    lambda kind, found, rcode, at, change: (
        (reply := answer(kind, *found, rcode=rcode))[:at] + change + reply[at:]
    ),
    st.sampled_from(("A", "A", "A", "TXT", "SRV", "CNAME")),
    st.lists(records, max_size=5),
    st.sampled_from((0, 0, 0, 2, 3)),
    st.integers(0, 200),
    st.just(b"") | st.binary(max_size=2),
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(("custom", "*", "a.test", "::/0")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("mode", "allow", "allowedDomains", "denied_cidrs", "subnets", "deny"))
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def loud(policy: dict[str, object]) -> dict[str, object]:
    """The same policy, with its entries in capitals."""
    return {
        key: [str(entry).upper() for entry in entries] if isinstance(entries, list) else entries
        for key, entries in policy.items()
    }


documents = st.builds(
    lambda value, as_yaml: (
        yaml.safe_dump(value, allow_unicode=True) if as_yaml else json.dumps(value)
    ).encode(),
    policies() | policies().map(loud) | vercel_policies() | values,
    st.booleans(),
)
