"""The command line: one file a command group, each with a ``register`` function."""
