"""Policy documents: YAML and JSON without surprises, and errors that name the line."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from box_policy.policy import document
from box_policy.policy.document import DocumentError, parse_document
from box_policy.policy.model import MAX_ISSUES, MORE_ISSUES, PolicyError


def refusal(text: str | bytes) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, name="p.yaml")
    return str(caught.value)


@pytest.fixture(params=["libyaml", "pure Python"])
def _each_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pure Python":
        monkeypatch.setattr(document, "_Loader", yaml.SafeLoader)


@pytest.mark.usefixtures("_each_loader")
@pytest.mark.parametrize(
    "text",
    [
        'mode: custom\nallowed_domains:\n  - x.test\n  - "*.x.test"\nallowed_cidrs: [1.1.1.0/24]\n',
        '{"mode": "custom", "allowedDomains": ["x.test", "*.x.test"], "allowedCidrs": ["1.1.1.0/24"]}',
        '{"mode":"custom","allowedDomains":\n["x.test","\\u002a.x.test"],"allowedCidrs":["1.1.1.0\\/24"]}',
        "# a comment\n---\nallow: [x.test, '*.x.test']\nsubnets:\n  allow:\n  - 1.1.1.0/24\n...\n",
        b"\xef\xbb\xbfmode: custom\r\nallowedDomains: [x.test, '*.x.test']\r\nallowedCidrs: [1.1.1.0/24]\r\n",
    ],
)
def test_yaml_and_json_are_read(text: str | bytes) -> None:
    policy = parse_document(text, name="p")
    assert policy.allowed_domains == ("x.test", "*.x.test")
    assert policy.allowed_cidrs == ("1.1.1.0/24",)


def test_a_document_may_be_a_mode_alone() -> None:
    assert parse_document("deny-all", name="p").mode == "deny-all"
    assert parse_document(b'"allow-all"\n', name="p").mode == "allow-all"


def test_json_indented_with_tabs_is_read() -> None:
    assert parse_document('{\n\t"mode": "custom",\n\t"allowed_domains": [\n\t\t"x.test"\n\t]\n}', name="p")


def test_errors_name_document_line_and_column() -> None:
    text = "mode: custom\nallowed_domains:\n  - ok.test\n  - a b.test\n  - '*'\nallowed_cidr: []\n"
    assert refusal(text).splitlines() == [
        'p.yaml:4:5: allowed_domains[1]: "a b.test": " " cannot be part of a host name',
        'p.yaml:5:5: allowed_domains[2]: "*" is not accepted here; to open everything write mode "allow-all"',
        'p.yaml:6:1: allowed_cidr: unknown key; "allowed_cidrs" was meant?',
    ]


def test_errors_in_json_have_a_place_too() -> None:
    assert refusal('{\n  "mode": "custom",\n  "denied_cidrs": ["1.1.1.1", "10.0.0.1/8"]\n}').startswith(
        "p.yaml:3:31: denied_cidrs[1]: "
    )
    assert refusal('{"allow": {\n  "x.test": [{"transform": []}]}}').startswith(
        'p.yaml:2:3: allow["x.test"]: '
    )


def test_an_error_carries_its_issues() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_document("mode: custom\nallowed_domains: [-x.test]", name="p")
    (issue,) = caught.value.issues
    assert issue.location == ("allowed_domains", 0)
    assert isinstance(caught.value, DocumentError)
    assert (caught.value.issues[0].line, caught.value.issues[0].column) == (2, 19)


@pytest.mark.usefixtures("_each_loader")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'p.yaml:1:1: the document is empty; to deny everything write "mode: deny-all"'),
        ("# only a comment\n", "the document is empty"),
        ("---\n", "this is null"),
        ("mode: custom\nmode: allow-all\n", 'p.yaml:2:1: the key "mode" is given twice'),
        ('{"allow": {"x.test": [], "x.test": []}}', 'the key "x.test" is given twice'),
        ("mode: custom\nallowed_domains: &a [x.test]\n", "anchors are not accepted"),
        ("mode: custom\nallowed_domains: *a\n", "aliases are not accepted"),
        ("mode: custom\nallowed_domains:\n  - *.x.test\n", 'put a pattern in quotes, as "*.example.com"'),
        ("mode: !!str custom\n", "tags are not accepted"),
        ("!!python/object/apply:os.system [x]\n", "tags are not accepted"),
        ("mode: !x custom\n", "tags are not accepted"),
        ("mode: custom\n---\nmode: custom\n", "p.yaml:2:1: a second document; a file holds one policy"),
        ("<<: {mode: allow-all}\n", "is a merge key in YAML"),
        ("? [x]\n: y\n", "keys are strings"),
        ("? ~\n: y\n", "keys are strings"),
        ("mode: [\n", "p.yaml:2:1: "),
        ("mode: 'x\n", "p.yaml:"),
        ("mode: custom\n\tallowed_domains: []\n", "p.yaml:2:1: "),
        ("mode: \x00", "p.yaml:1:7: character U+0000 is not allowed in YAML"),
        ("a\nb: \x1b", "p.yaml:2:4: character U+001B is not allowed in YAML"),
        ("[" * 100, "p.yaml:1:17: nested deeper than 16 levels"),
        ("- " * 100, "nested deeper than 16 levels"),
        (b"\xff\xfe", "p.yaml:1:1: the document is not UTF-8"),
        ("mode: \ud800", "p.yaml:1:1: the document is not UTF-8"),
        ("%YAML 3.0\n---\nmode: custom\n", "p.yaml:1:1: "),
    ],
)
def test_what_is_no_document_is_refused(text: str | bytes, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("scalar", "what"),
    [
        ("no", "a boolean"),
        ("on", "a boolean"),
        ("Off", "a boolean"),
        ("true", "a boolean"),
        ("1.10", "a number"),
        ("0x10", "a number"),
        ("010", "a number"),
        ("12:30:45", "a number"),
        ("1e3", None),
        (".inf", "a number"),
        ("2026-01-01", "a date"),
        ("=", "a default key"),
    ],
)
def test_what_yaml_would_turn_into_something_else_is_refused(scalar: str, what: str | None) -> None:
    message = refusal(f"mode: custom\nallowed_domains:\n  - x.test\n  - {scalar}\n  - x.test:1\n")
    if what is not None:
        assert (
            f'p.yaml:4:5: allowed_domains[1]: "{scalar}" without quotes is {what} in YAML: put it in quotes'
            in message
        )
    assert "p.yaml:5:5: allowed_domains[2]: " in message  # and what follows is still judged


def test_in_quotes_it_is_a_string() -> None:
    assert parse_document(
        '{"mode": "custom", "allowed_domains": ["no", "true"]}', name="p"
    ).allowed_domains == (
        "no",
        "true",
    )


def test_size_values_and_issues_are_bounded() -> None:
    assert "larger than 8 MiB" in refusal("#" * (document.MAX_BYTES + 1))
    assert "more than 1,000,000 values" in refusal("[" + "~," * 1_000_001 + "]")
    assert f"more than {MAX_ISSUES} values that are not strings" in refusal("[" + "1," * 2000 + "]")


@pytest.mark.parametrize("entry", ["''", "~", "x/33"])
def test_issues_in_great_numbers_are_told_in_order_and_then_that_there_are_more(entry: str) -> None:
    started = time.process_time()
    lines = refusal("mode: custom\ndenied_cidrs:\n" + f"- {entry}\n" * 200_000).splitlines()
    assert time.process_time() - started < 10  # nearly all of it the YAML parser's
    assert len(lines) == MAX_ISSUES + 1
    assert [int(line.split(":")[1]) for line in lines[:-1]] == [*range(3, MAX_ISSUES + 3)]
    assert lines[-1] == f"p.yaml:1:1: {MORE_ISSUES}"


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10**5,
        "? " * 10**5,
        "!" * 10**5,
        "'" * 10**5,
        "a: " * 10**5,
        "&a " * 10**5,
        "|" + "\n " * 10**5,
        '"' + "\\x41" * 10**5,
        "- a: b\n" * 10**5,
        "x" * 10**6 + ": y",
        "".join(f"k{index}: y\n" for index in range(10**5)),
        "allow:\n" + "".join(f"  -{index}: y\n" for index in range(10**5)),
        "allow:\n" + "  - ''\n" * 10**6,
        "[" + "a: b, " * 10**5,
        "a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 500)),
    ],
)
def test_hostile_documents_cost_little(text: str) -> None:
    started = time.process_time()
    refusal(text)
    assert time.process_time() - started < 5


WORDS = st.sampled_from(
    [
        *("mode", "custom", "allow-all", "allowed_domains", "allow", "x.test", "*.x.test", "*", "1.1.1.0/24"),
        *(
            ": ",
            ":",
            "- ",
            "\n",
            "\n  ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "'",
            '"',
            "#",
            "&a ",
            "*a",
            "!!str ",
            "|",
            ">",
        ),
        *(
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "? ",
            "<<",
            "~",
            "\t",
            "\\",
            "\\ud800",
            "\x00",
            "\ud800",
            "\x85",
            "\ufeff",
        ),
    ]
)


@pytest.mark.usefixtures("_each_loader")
@given(st.text(max_size=60) | st.lists(WORDS, max_size=30).map("".join) | st.binary(max_size=60))
def test_nothing_but_a_document_error_is_raised(text: str | bytes) -> None:
    try:
        parse_document(text, name="p")
    except DocumentError as error:
        assert error.issues
        assert all(issue.line >= 1 and issue.column >= 1 for issue in error.issues)
        assert str(error).startswith("p:")
