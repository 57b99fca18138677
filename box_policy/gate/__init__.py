"""Enforcement: from the accepted socket to the carried bytes."""
