"""Policy files: found, trusted, read whole, and followed."""
