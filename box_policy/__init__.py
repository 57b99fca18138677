"""box-policy: decides what a sandbox may connect to."""

__version__ = "0.1.0"
