"""Programs in a box for the service's clients: to their end, as a stream, or as a session."""
