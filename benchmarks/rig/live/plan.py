"""Addresses, ports, names and policies of the live benchmarks; those of the rig besides."""

from typing import Any, Final

from benchmarks.rig.plan import ALLOWED, NAME, ORIGIN, PORT

BOX_ID: Final = "box"

FIRST: Final = "51.81.10.11"
SECOND: Final = "51.81.10.12"
ELSEWHERE: Final = "51.81.10.13"
"""An address of no name."""
FOREIGN: Final = "51.81.10.14"
"""Closed, but in windows."""
REDIRECTED: Final = (ALLOWED, FIRST, SECOND, ELSEWHERE, FOREIGN)

FIRST_NAME: Final = "first.test"
SECOND_NAME: Final = "second.test"
"""Both names have both addresses, so that the policy in force decides which one is dialled."""
KEPT_NAME: Final = "kept.test"
FOREIGN_NAME: Final = "foreign.test"
ZONE: Final = {
    NAME: [ALLOWED],
    KEPT_NAME: [ALLOWED],
    FOREIGN_NAME: [FOREIGN],
    FIRST_NAME: [FIRST, SECOND],
    SECOND_NAME: [FIRST, SECOND],
}
TTL: Final = 1
"""Seconds. So short that policies change while names are being resolved."""

HTTP_PORT: Final = 80
CLIENT_PORTS: Final = range(10_000, 10_050)
"""One for each client at a time: records hold the port, which says whose they are."""
PORTS: Final = (PORT, HTTP_PORT, *CLIENT_PORTS)

type Policy = dict[str, Any]

ALLOW_ALL: Final[Policy] = {"mode": "allow-all"}
DENY_ALL: Final[Policy] = {"mode": "deny-all"}
CUSTOM: Final[Policy] = {"mode": "custom", "allowed_domains": [NAME]}
WITH_FOREIGN: Final[Policy] = {"mode": "custom", "allowed_domains": [NAME, FOREIGN_NAME]}
WIDE: Final[Policy] = {"mode": "custom", "allowed_domains": [NAME, KEPT_NAME]}
NARROW: Final[Policy] = {"mode": "custom", "allowed_domains": [KEPT_NAME]}

NAME_SERVER: Final = ORIGIN
