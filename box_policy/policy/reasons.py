"""Why a verdict is what it is: one fixed, short vocabulary for records, answers and exit tables.

``docs/records.md`` lists the same words for operators; a test holds the two together.
"""

from enum import StrEnum


class Reason(StrEnum):
    """The reason of a verdict, or of a connection's end."""

    # Allowed.
    MODE_ALLOWS = "mode_allows"
    """The mode opens everything that is not special or denied (``allow-all``, a denylist)."""
    CIDR_ALLOWED = "cidr_allowed"
    """The claimed address lies in ``allowed_cidrs``."""
    NAME_ALLOWED = "name_allowed"
    """The name matches an entry of ``allowed_domains``."""

    # Denied by the policy.
    DENY_ALL = "deny_all"
    """The mode is ``deny-all``, or ``custom`` without any list."""
    CIDR_DENIED = "cidr_denied"
    """The address lies in ``denied_cidrs``."""
    NAME_NOT_ALLOWED = "name_not_allowed"
    """The name matches no entry of ``allowed_domains``."""
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    """No entry allows this address by itself, and the connection named no host."""
    UNKNOWN_BOX = "unknown_box"
    """No policy is known for the box."""

    # Denied in every mode.
    SPECIAL_ADDRESS = "special_address"
    """The claimed address is not globally reachable (private, loopback, metadata, ...)."""
    RESOLVED_SPECIAL = "resolved_special"
    """The name is allowed, but resolves to special or denied addresses only."""
    ECH_DENIED = "ech_denied"
    """The hello carries Encrypted Client Hello and the operator denies it."""
    LIMIT = "limit"
    """The box is at one of its caps."""

    # What the box sent names nothing that could be judged.
    NO_NAME = "no_name"
    """TLS without SNI, or HTTP without Host."""
    NAME_INVALID = "name_invalid"
    """The SNI, Host or DNS name is not a host name."""
    HELLO_INVALID = "hello_invalid"
    """The ClientHello breaks its own grammar."""
    HELLO_TOO_LARGE = "hello_too_large"
    """The ClientHello is over the size that is read before a verdict."""
    HTTP_INVALID = "http_invalid"
    """The request breaks HTTP's grammar, or means two things at once."""
    HTTP_NOT_SUPPORTED = "http_not_supported"
    """CONNECT, HTTP/2 without TLS, a coding beside chunked; or an upstream switched protocols unasked."""
    HOST_MISMATCH = "host_mismatch"
    """The request names two hosts, or a port other than the connection's; or a second ClientHello another
    host than the first."""
    PROTOCOL_UNKNOWN = "protocol_unknown"
    """Neither TLS, HTTP nor PostgreSQL over TLS: no name to judge."""
    QUESTION_INVALID = "question_invalid"
    """Not one well-formed DNS question."""
    TIMEOUT = "timeout"
    """No verdict was possible in time: the box sent too little, too slowly."""
    CLIENT_GONE = "client_gone"
    """The box closed the connection before a verdict."""

    # Allowed, yet it failed.
    RESOLUTION_FAILED = "resolution_failed"
    """The allowed name could not be resolved."""
    UPSTREAM_FAILED = "upstream_failed"
    """None of the judged addresses accepted the connection; or what it answered over HTTP can't be read."""
    INTERNAL_ERROR = "internal_error"
    """The gate itself failed; it fails closed."""

    # How an allowed connection ended.
    CLOSED = "closed"
    """Both sides finished."""
    RESET = "reset"
    """One side reset the connection, or it broke."""
    IDLE = "idle"
    """No byte moved for the idle limit."""
    POLICY_CHANGED = "policy_changed"
    """A new policy no longer allows it."""
    BOX_CLOSED = "box_closed"
    """The box, or the gate, went away."""
