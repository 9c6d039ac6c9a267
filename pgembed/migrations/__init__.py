"""Alembic with support for embedding columns, their pending indexes and vector indexes.

One line in ``env.py``, after the imports::

    import pgembed.migrations

    pgembed.migrations.setup()

``alembic revision --autogenerate`` and ``alembic check`` then also compare pgembed's SQL objects and the
extension; type and dimensions of vector columns; vector indexes by access method, operator class, parameters,
expression, predicate and validity; pending indexes by predicate and registration. A changed encoder becomes a
series of revisions that keeps the old vectors in use until the new ones are complete
(:mod:`pgembed.migrations.compare.encoder_series`). Migrations may use the operations of
:mod:`pgembed.migrations.operations`.

Generated revisions import neither models nor encoders.

:raises MissingExtraError: at import, where Alembic is not installed.
"""

from pgembed.exc import MissingExtraError

try:
    import alembic.util  # noqa: F401  (a folder `alembic/` without the package is importable, and empty)
except ImportError as error:
    raise MissingExtraError("alembic", "migrations", needed_for="pgembed.migrations") from error

from pgembed.migrations.definitions import MigrationError
from pgembed.migrations.setup import setup

__all__ = ["MigrationError", "setup"]
