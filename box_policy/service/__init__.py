"""Boxes and their lives, behind the wire format of the hosted Upstash Box service."""
