"""Who has which address in the lab.

Every address is the origin's but the gate's own two. Those with a role look public: a correct gate
refuses the ranges set apart for documentation.
"""

GATE_INTERFACE = "gate0"
ORIGIN_INTERFACE = "origin0"

GATE4 = "51.81.1.1"
GATE6 = "2a0f:5100:1::1"
ORIGIN4 = "51.81.1.2"
ORIGIN6 = "2a0f:5100:1::2"

NAMESERVER4 = "51.81.53.53"
NAMESERVER6 = "2a0f:5100::53"

ALLOWED4 = "51.81.10.10"
ALLOWED6 = "2a0f:5100::10"
WILDCARD4 = "51.81.10.11"
SHARED4 = "51.81.99.99"
EVIL4 = "51.81.66.66"
EVIL6 = "2a0f:5100::66"
CIDR = "51.81.77.0/24"
CIDR4 = "51.81.77.7"
PRIVATE4 = "10.66.0.1"
METADATA4 = "169.254.169.254"

SILENT4 = "51.81.9.9"
"""Drops every packet, on every port."""
SILENT6 = "2a0f:5100::9"

HTTP_PORTS = (80, 8080)
TLS_PORTS = (443, 8443)
DNS_PORT = 53
BANNER_PORT = 22
"""The server speaks first here: ``SSH-2.0-lab``."""
ECHO_PORT = 9418
REFUSED_PORT = 7
"""Nothing listens: RST. So does every other port that isn't named here."""
SILENT_PORT = 9
"""SYNs are dropped, on every address."""
