"""Names as a Kubernetes pod looks them up: with search domains, which no policy lists."""

import json
from pathlib import Path

import dns.rcode
import pytest

from box_policy.gate.search_domains import search_domains
from tests.lab import Lab, plan
from tests.sandbox.sidecars import POLICY, Sidecar, asked, looked_up, no_rules_afterwards

RESOLV_CONF = """\
search default.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5
"""


def test_search_domains(lab: Lab, tmp_path: Path) -> None:
    """glibc takes the name itself after REFUSED, in 2 ms. musl ignores REFUSED, waits 5 s, and gives up;
    after NXDOMAIN both go on at once."""
    (tmp_path / "policy.yaml").write_text(json.dumps(POLICY))
    file = tmp_path / "resolv.conf"
    file.write_text(RESOLV_CONF)
    lab.dns.set("api.wild.test", A=[plan.WILDCARD4])
    with no_rules_afterwards():
        sidecar = Sidecar(tmp_path, resolv_conf=file)
        try:
            sidecar.wait_for("ready")
            found = looked_up(["api.wild.test", "allowed.test", "evil.test"], file)
            codes = {
                name: asked("10.96.0.10", name).rcode()
                for name in (
                    "api.wild.test.svc.cluster.local",
                    "cluster.local",
                    "xcluster.local",
                    "evil.test",
                )
            }
        finally:
            sidecar.end()
    assert found["api.wild.test"][0] == [plan.WILDCARD4]
    assert found["allowed.test"][0] == [plan.ALLOWED6, plan.ALLOWED4]
    assert all(seconds < 1 for _, seconds in found.values())
    assert codes == {
        "api.wild.test.svc.cluster.local": dns.rcode.NXDOMAIN,
        "cluster.local": dns.rcode.REFUSED,
        "xcluster.local": dns.rcode.REFUSED,
        "evil.test": dns.rcode.REFUSED,
    }
    assert {question.name for question in lab.dns.questions} == {"api.wild.test", "allowed.test"}


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        (RESOLV_CONF, ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")),
        ("search Corp.Example. .\n", ("corp.example",)),
        ("nameserver 10.0.0.1\n", ()),
        ("search\n", ()),
        ("\0\0\0", ()),
        (None, ()),
    ],
)
def test_where_they_are_listed(tmp_path: Path, text: str | None, domains: tuple[str, ...]) -> None:
    file = tmp_path / "resolv.conf"
    if text is not None:
        file.write_text(text)
    assert search_domains(file) == domains
