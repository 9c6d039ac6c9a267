"""The error of migrations."""

from __future__ import annotations

from alembic.util import CommandError

from pgembed.exc import PgembedError


class MigrationError(PgembedError, CommandError):
    """A migration cannot do what it says, in this environment or with the rows as they are.

    The command line of Alembic prints it as one line.
    """
