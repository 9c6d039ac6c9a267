"""The worked example of a migration environment: Alembic's own, and one line for pgembed."""

from __future__ import annotations

import os

from alembic import context
from example_models import Base
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import pgembed.migrations

pgembed.migrations.setup()

url = os.environ.get("DATABASE_URL") or context.config.get_main_option("sqlalchemy.url")
options = {
    "target_metadata": Base.metadata,
    # Concurrent builds commit the transaction they are in: let it be that of one migration.
    "transaction_per_migration": True,
    # Write concurrently=True for changed indexes of tables that are there already.
    "pgembed_concurrently": True,
}

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
