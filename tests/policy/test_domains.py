"""Host names: what an author may write, what a box may send, and what matches."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from box_policy.policy.domains import (
    DomainSet,
    InvalidName,
    canonical_name,
    canonical_pattern,
    name_from_wire,
)

from .strategies import names, patterns


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("api.x.test", "api.x.test"),
        ("API.X.Test", "api.x.test"),
        ("api.x.test.", "api.x.test"),
        ("localhost", "localhost"),
        ("_dmarc.x.test", "_dmarc.x.test"),
        ("r3---sn-4g5e6nsz.x.test", "r3---sn-4g5e6nsz.x.test"),
        ("1.2.3.4.x.test", "1.2.3.4.x.test"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("straße.test", "xn--strae-oqa.test"),  # IDNA 2008, not "strasse"
        ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
        ("api。x.test", "api.x.test"),
        ("xn--i-7iq.test", "xn--i-7iq.test"),  # emoji: registered under older rules, compared as bytes
        ("a" * 63 + ".test", "a" * 63 + ".test"),
        (".".join(["a" * 49] * 5) + ".tst", ".".join(["a" * 49] * 5) + ".tst"),  # 253 characters
    ],
)
def test_a_name_has_one_canonical_form(written: str, canonical: str) -> None:
    assert canonical_name(written) == canonical
    assert name_from_wire(canonical.encode()) == canonical


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "a blank entry is not a host name"),
        (" \t", "a blank entry is not a host name"),
        (" x.test", '" x.test" has white space around it'),
        (
            "https://api.x.test/v1",
            '"https://api.x.test/v1" is a URL; policies hold host names: "api.x.test" was meant',
        ),
        ("https://u:p@API.x.test:8443", 'policies hold host names: "api.x.test" was meant'),
        ("https://[::1]/", '"https://[::1]/" is a URL; policies hold host names'),
        ("x.test/v1", '"x.test/v1" has a path; policies hold host names: "x.test" was meant'),
        ("x.test:443", '"x.test:443" has a port; ports are not part of a policy: "x.test" was meant'),
        ("u@x.test", '"u@x.test" has a user part; policies hold host names: "x.test" was meant'),
        ("10.1.2.3", '"10.1.2.3" is an IP address, not a host name; it belongs in allowed_cidrs'),
        ("[::1]", '"[::1]" is an IP address, not a host name; it belongs in allowed_cidrs'),
        ("2001:db8::1", "it belongs in allowed_cidrs"),
        ("10.0.0.0/8", '"10.0.0.0/8" is an address range, not a host name; it belongs in allowed_cidrs'),
        (".x.test", '".x.test" starts with a dot; for every name below it write "*.x.test"'),
        ("a..test", '"a..test" has an empty label'),
        ("x.test..", '"x.test.." has an empty label'),
        (".", '"." is the root of the DNS, not a host name'),
        ("a b.test", '"a b.test": " " cannot be part of a host name'),
        ("a\x00.test", '"a\\x00.test": character U+0000 cannot be part of a host name'),
        ("-a.test", '"-a.test": the label "-a" starts or ends with "-"'),
        ("a-.test", '"a-.test": the label "a-" starts or ends with "-"'),
        ("a" * 64 + ".test", "is longer than 63 characters"),
        ("a." * 130 + "test", "is longer than 253 characters"),
        ("ü" * 300, "is longer than 253 characters"),
        ("x.0x7f", 'a name whose last label is a number ("0x7f") is read as an address'),
        ("2130706433", 'a name whose last label is a number ("2130706433") is read as an address'),
        ("127.1", "is read as an address"),
        ("xn--a.test", 'the label "xn--a" does not decode (RFC 3492)'),
        ("xn--a-.test", 'the label "xn--a-" starts or ends with "-"'),
        ("\u2028.test", "has no valid IDNA 2008 form"),
        ("a\u0301\u200db.test", "has no valid IDNA 2008 form"),
        ("☃.test", "has no valid IDNA 2008 form"),
        ("\ud800.test", "has no valid IDNA 2008 form"),
    ],
)
def test_what_is_no_name_is_refused_and_the_message_teaches(written: str, message: str) -> None:
    with pytest.raises(InvalidName) as caught:
        canonical_pattern(written)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("*", '"*" is not accepted here; to open everything write mode "allow-all"'),
        ("*.", '"*." names no domain; write "*.example.com"'),
        ("*x.test", '"*x.test": a wildcard stands for whole labels, "*." and a name: "*.x.test" was meant'),
        ("**.x.test", '"*.x.test" was meant'),
        ("a.*.test", 'a wildcard is only accepted as "*." at the start, as in "*.example.com"'),
        ("*.*.test", 'a wildcard is only accepted as "*." at the start'),
        ("x.*", 'a wildcard is only accepted as "*." at the start'),
        ("https://*.x.test/", '"*.x.test" was meant'),
        ("*.x.test:443", 'ports are not part of a policy: "x.test" was meant'),
        ("*.10.0.0.1", "it belongs in allowed_cidrs"),
    ],
)
def test_a_wildcard_is_only_the_first_label(written: str, message: str) -> None:
    with pytest.raises(InvalidName) as caught:
        canonical_pattern(written)
    assert message in str(caught.value)


def test_messages_are_bounded_and_quick_whatever_is_written() -> None:
    for hostile in (
        "a" * 10**6,
        "a:1" * 10**5,
        "*" * 10**6,
        "x." * 10**5,
        "://" * 10**5,
        "xn--" * 10**5,
        "ü" * 10**6,
    ):
        with pytest.raises(InvalidName) as caught:
            canonical_pattern(hostile)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"..",
        b".wild.test",
        b"a..wild.test",
        b"allowed.test..",
        b"*",
        b"*.wild.test",
        b"allowed.test\n",
        b"allowed.test\x00",
        b"allowed.test\x00.evil.test",
        b" allowed.test",
        b"allowed.test:443",
        b"(allowed.test)",
        b"allowed.test$",
        b"allowed.test|x",
        b"a\\.test",
        b"-a.test",
        b"a-.test",
        b"a" * 64 + b".test",
        b"a." * 125 + b"test",  # 254 characters
        b"a" * 5000,
        b"1.2.3.4",
        b"[::1]",
        b"::1",
        b"2130706433",
        b"0x7f.1",
        b"0177.0.0.1",
        b"127.1",
        b"a.0x",
        b"a.0xff",
        b"xn--.test",
        b"xn--a.test",
        b"xn--\xff.test",
        "аllowed.test".encode(),  # noqa: RUF001 (a Cyrillic letter)
        "wıld.test".encode(),  # noqa: RUF001 (a dotless i)
        "allowed。test".encode(),
        b"\xff\xfe",
        b"allowed.test\xc0\xae",
    ],
)
def test_what_is_no_name_on_the_wire_is_none(raw: bytes) -> None:
    assert name_from_wire(raw) is None


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"allowed.test", "allowed.test"),
        (b"aLLoWed.TEST", "allowed.test"),
        (b"allowed.test.", "allowed.test"),
        (b"_x.a_b.test", "_x.a_b.test"),
        (b"XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        (b"xn--llowed-2nf.test", "xn--llowed-2nf.test"),  # a homograph is a name of its own
        (b"localhost", "localhost"),
        (b"a.b1", "a.b1"),
        (b"a.1b", "a.1b"),
        (b"a" * 63 + b".test", "a" * 63 + ".test"),
        (b".".join([b"a" * 49] * 5) + b".tst.", ".".join(["a" * 49] * 5) + ".tst"),
    ],
)
def test_a_name_on_the_wire_loses_its_case_and_one_dot(raw: bytes, name: str) -> None:
    assert name_from_wire(raw) == name


@given(
    st.binary(max_size=300)
    | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.from_regex(rb"(xn--[a-z0-9-]{0,20}|[a-zA-Z0-9_.-]{1,70})(\.[a-z0-9-]{1,10}){0,3}\.?", fullmatch=True)
)
@example(b"xn--" + b"9" * 59 + b".test")
def test_the_wire_never_raises_and_its_names_are_fixed_points(raw: bytes) -> None:
    name = name_from_wire(raw)
    if name is not None:
        assert name_from_wire(name.encode()) == name
        assert canonical_name(name) == name
        assert len(name) <= 253


@given(st.text(max_size=60) | patterns | st.from_regex(r"[*a-züß0-9.:/@_-]{1,40}", fullmatch=True))
def test_what_an_author_writes_is_canonical_after_one_pass_or_refused(text: str) -> None:
    try:
        pattern = canonical_pattern(text)
    except InvalidName as error:
        assert str(error)
    else:
        assert canonical_pattern(pattern) == pattern
        assert name_from_wire(pattern.removeprefix("*.").encode()) == pattern.removeprefix("*.")


def test_the_exact_name_is_preferred_then_the_longest_suffix() -> None:
    domains = DomainSet(["a.b.test", "*.b.test", "*.a.b.test", "*.test"])
    assert len(domains) == 4
    assert domains.match("a.b.test") == "a.b.test"
    assert domains.match("x.a.b.test") == "*.a.b.test"
    assert domains.match("x.y.b.test") == "*.b.test"
    assert domains.match("b.test") == "*.test"
    assert domains.match("test") is None


@pytest.mark.parametrize(
    "name",
    [
        "evilallowed.test",
        "allowed.test.evil.test",
        "xwild.test",
        "wild.test",
        "wild.test.evil.test",
        "a.wild.testx",
        "allowed-test",
        "a.allowed.test",
        "allowedxtest",
        "test",
        "xn--llowed-2nf.test",
    ],
)
def test_names_that_only_resemble_an_entry_do_not_match(name: str) -> None:
    assert DomainSet(["allowed.test", "*.wild.test"]).match(name) is None


def test_a_set_takes_no_entry_that_is_not_a_pattern() -> None:
    with pytest.raises(InvalidName):
        DomainSet(["*"])
    assert DomainSet(["X.test."]).match("x.test") == "x.test"


@given(st.lists(patterns, max_size=8), names)
def test_a_set_agrees_with_reading_the_patterns_one_by_one(entries: list[str], name: str) -> None:
    labels = name.split(".")
    exact = [entry for entry in entries if entry == name]
    below = [
        entry
        for entry in entries
        if entry.startswith("*.")
        and len(entry.split(".")[1:]) < len(labels)
        and labels[-len(entry.split(".")[1:]) :] == entry.split(".")[1:]
    ]
    expected = exact[0] if exact else max(below, key=len, default=None)
    assert DomainSet(entries).match(name) == expected
