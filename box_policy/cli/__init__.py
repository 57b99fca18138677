"""The ``box-policy`` command: one file a subcommand."""
