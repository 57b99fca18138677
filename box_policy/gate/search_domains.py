"""The domains in which resolvers look for a name before they take it as it is: resolv.conf(5), ``search``."""

from pathlib import Path

import dns.resolver


def search_domains(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Those of a file, in canonical form; none if it can't be read."""
    resolver = dns.resolver.Resolver(configure=False)
    try:
        with resolv_conf.open() as lines:
            resolver.read_resolv_conf(lines)
    except (OSError, UnicodeError, dns.resolver.NoResolverConfiguration):
        pass  # without a name server there may still be a list
    found = (name.to_text(omit_final_dot=True).lower() for name in resolver.search or ())
    return tuple(name for name in found if name != "@" and name != ".")
