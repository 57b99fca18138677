# Written by scripts/make_sync from _async/__init__.py: change that one.
"""The client of a box service."""
