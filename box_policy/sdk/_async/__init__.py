"""The client of a box service."""
