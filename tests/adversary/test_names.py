"""Names that resemble an allowed one, or are none: in the hello and in Host, no question is asked for any."""

from typing import Final

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Attack
from tests.adversary.wire import allowed_tls, hello, http, sends_each, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Name matching"

IDN: Final = {
    "mode": "custom",
    "allowed_domains": ["straße.wild.test", "*.bücher.test", "EXAMPLE.Test.", "_dmarc.wild.test"],
}
"""As an author writes it. The names that a box sends are compared with what that was converted to."""

FOREIGN: Final = {
    "before an allowed name": b"evilallowed.test",
    "in which an allowed one is the start": b"allowed.test.evil.test",
    "below an allowed name that is no wildcard": b"a.allowed.test",
    "before the domain of a wildcard": b"xwild.test",
    "in which a wildcard's domain is the start": b"a.wild.test.evil.test",
    "longer by a letter than a wildcard's": b"a.wild.testx",
    "that is a wildcard's domain itself": b"wild.test",
    "with another mark for the dot": b"allowed-test",
    "with a letter for the dot": b"allowedxtest",
    "that is the last label alone": b"test",
    "with a Cyrillic letter in its A-label": b"xn--llowed-2nf.test",
    "of one label under an allowed name's dot": b"allowed.test-a.test",
}
"""Names, and none of them allowed."""

NO_NAMES: Final = {
    "with an empty first label": b".wild.test",
    "with an empty label": b"a..wild.test",
    "with two dots at its end": b"allowed.test..",
    "that is a dot": b".",
    "that is the pattern itself": b"*.wild.test",
    "with a star for a label": b"a.*.wild.test",
    "with a label of 64 letters": b"a" * 64 + b".wild.test",
    "of 254 letters": b"b" + b"a." * 122 + b"wild.test",
    "of 5,000 letters": b"a." * 2495 + b"wild.test",
    "with a hyphen before a label": b"-a.wild.test",
    "with a hyphen behind a label": b"a-.wild.test",
    "with an empty A-label": b"xn--.wild.test",
    "with an A-label that decodes to nothing": b"xn--a.wild.test",
    "with an A-label that decodes to ASCII": b"xn--allowed-.wild.test",
    "with an A-label of a control character": b"xn--" + "a\x85".encode("punycode") + b".wild.test",
    "with an A-label that no encoder makes": b"xn--llowed-2NFx0000.wild.test",
    "with a Cyrillic letter": "\u0430llowed.test".encode(),
    "with fullwidth letters": "\uff41llowed.test".encode(),
    "with an ideographic full stop": "allowed\u3002test".encode(),
    "with a fullwidth full stop": "a\uff0ewild.test".encode(),
    "with a long s": "allowed.te\u017ft".encode(),
    "with a dotless i": "a.w\u0131ld.test".encode(),
    "with a dotted capital I": "a.w\u0130ld.test".encode(),
    "with a Kelvin sign": "\u212a.wild.test".encode(),
    "with a zero-width joiner": "a\u200d.wild.test".encode(),
    "in Latin-1": "\u00e4.wild.test".encode("latin-1"),
    "with an alternative": b"allowed.test|x",
    "with an anchor": b"allowed.test$",
    "in brackets": b"(allowed.test)",
    "with a percent code": b"allowed%2etest",
    "with a backslash": b"allowed\\.test",
    "with a comma": b"allowed.test,evil.test",
    "that is an address": b"51.81.66.67",
    "that is an address of an allowed range": plan.CIDR4.encode(),
    "that is the address of an allowed name": plan.ALLOWED4.encode(),
    "that is a number": b"860963394",
    "that is a hexadecimal number": b"0x33513a42",
    "that is an address in hexadecimal": b"0x33.0x51.66.66",
    "that is an address in octal": b"063.0121.0102.0102",
    "that is an address in two parts": b"51.5325378",
    "that ends in a number under a wildcard": b"a.wild.test.1",
}
"""What no host is called."""

ONLY_IN_A_HELLO: Final = {
    "with NUL before an allowed end": b"evil.test\0.wild.test",
    "with NUL behind an allowed name": b"allowed.test\0evil.test",
    "with NUL at its start": b"\0allowed.test",
    "with NUL at its end": b"allowed.test\0",
    "with a line feed": b"evil.test\n.wild.test",
    "with a carriage return at its end": b"allowed.test\r",
    "with a line feed at its end": b"allowed.test\n",
    "with a tab": b"evil.test\t.wild.test",
    "with a space before it": b" allowed.test",
    "with a space behind it": b"allowed.test ",
    "with a port": b"allowed.test:443",
    "with a user": b"evil.test@allowed.test",
    "that is a URL": b"https://allowed.test",
    "that is an IPv6 address in brackets": f"[{plan.EVIL6}]".encode(),
    "that is an IPv6 address": plan.EVIL6.encode(),
    "that is an IPv6 address with IPv4 in it": b"::ffff:51.81.10.10",
    "of the widest letters": b"\xff" * 12,
    "in UTF-16": "allowed.test".encode("utf-16-be"),
}
"""In Host these mean something else, or end the header: that is HTTP's part."""

VARIANTS: Final = {
    "in capitals": b"ALLOWED.TEST",
    "with a dot at its end": b"allowed.test.",
    "with an underscore": b"_a._tcp.wild.test",
    "deep below a wildcard": b"a.b.c.d.e.f.wild.test",
    "of 253 letters": (b"a." * 122 + b"wild.test")[-253:],
    "with a label of 63 letters": b"a" * 63 + b".wild.test",
    "with an A-label": b"xn--bcher-kva.wild.test",
    "with an A-label in capitals": b"XN--BCHER-KVA.wild.test",
    "of digits under a wildcard": b"123.wild.test",
    "with hyphens": b"a--b.wild.test",
}
"""The allowed names as others write them."""


def _everything() -> list[Attack]:
    attacks = []
    for table, reason in (
        (FOREIGN, Reason.NAME_NOT_ALLOWED),
        (NO_NAMES | ONLY_IN_A_HELLO, Reason.NAME_INVALID),
    ):
        for what, name in table.items():
            attacks.append(
                Attack(
                    name=f"a hello for a name {what}",
                    act=tls(plan.ALLOWED4, name),
                    sees="alert 49",
                    reasons=(reason,),
                )
            )
            if what not in ONLY_IN_A_HELLO:
                status = 403 if reason is Reason.NAME_NOT_ALLOWED else 400
                attacks.append(
                    Attack(
                        name=f"a request to a name {what}",
                        act=http(plan.EVIL4, name),
                        sees=f"http {status}",
                        reasons=(reason,),
                    )
                )
    attacks.append(
        Attack(
            name="a request to the address itself",
            act=http(plan.EVIL4, plan.EVIL4.encode()),
            sees="http 403",
            reasons=(Reason.ADDRESS_NOT_ALLOWED,),
        )
    )
    for what, name in VARIANTS.items():
        attacks.append(
            Attack(name=f"a hello for a name {what}", act=allowed_tls(plan.WILDCARD4, name), must_arrive=True)
        )
        attacks.append(
            Attack(
                name=f"a request to a name {what}",
                act=http(plan.WILDCARD4, name),
                must_arrive=True,
                sees="http 200",
            )
        )
    return attacks


ATTACKS = _everything()

ATTACKS += [
    Attack(
        name="the name that a policy's Unicode stands for",
        act=allowed_tls(plan.EVIL4, b"xn--strae-oqa.wild.test"),
        policy=IDN,
        may_reach=(plan.WILDCARD4,),
        must_arrive=True,
    ),
    Attack(
        name="a name below a wildcard in Unicode",
        act=allowed_tls(plan.EVIL4, b"a.xn--bcher-kva.test"),
        policy=IDN,
        zone={"a.xn--bcher-kva.test": {"A": [plan.WILDCARD4]}},
        may_reach=(plan.WILDCARD4,),
        must_arrive=True,
    ),
    Attack(
        name="the name that older rules make of a policy's Unicode",
        act=tls(plan.EVIL4, b"strasse.wild.test"),
        policy=IDN,
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a policy's Unicode as it was written",
        act=sends_each(
            plan.EVIL4,
            443,
            lambda box: [
                hello(box, "straße.wild.test".encode()),
                hello(box, "straße.wild.test".encode("latin-1")),
                hello(box, "a.bücher.test".encode()),
            ],
        ),
        policy=IDN,
        sees="alert 49",
        reasons=(Reason.NAME_INVALID,) * 3,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    report = await arena.contains(attack)
    assert report.seen is not None
    assert report.seen.seconds < 1
