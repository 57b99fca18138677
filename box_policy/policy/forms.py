"""The words that policies are written in."""

MODES = ("allow-all", "deny-all", "custom")

SPELLINGS = {
    "allowed_domains": ("allowed_domains", "allowedDomains"),
    "allowed_cidrs": ("allowed_cidrs", "allowedCidrs", "allowedCIDRs"),
    "denied_cidrs": ("denied_cidrs", "deniedCidrs", "deniedCIDRs"),
}
"""Each list of the form with ``mode``, and how it may be spelt. The first spelling is canonical."""

MODE_KEYS = ("mode", *(spelling for spellings in SPELLINGS.values() for spelling in spellings))
"""Every key of the form with ``mode``."""

VERCEL_KEYS = ("allow", "subnets")
SUBNETS_KEYS = ("allow", "deny")
