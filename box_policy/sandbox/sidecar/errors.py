"""What keeps a gate from guarding a shared network namespace."""


class SidecarError(Exception):
    """One line: what is wrong, and what to do."""
