"""Where a box's container has what is this backend's, not the image's."""

RUNTIME = "/.box-policy"
"""The interpreter that pid 1 runs with, and all that it needs: the volume made by ``runtime``."""
SOCKET_DIRECTORY = "/.box-policy-socket"
SOCKET = "control"
"""The name in that directory of the socket that pid 1 connects to."""
