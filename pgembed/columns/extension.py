"""The extension ``vector``: checked, and created before the first table that needs it."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Column, Connection, Table, event, func, select, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import CompileError, DBAPIError

from pgembed.columns.embedding import embeddings_of
from pgembed.columns.types import is_postgres
from pgembed.exc import (
    DatabaseError,
    ExtensionError,
    MissingPrivilegeError,
    UnsupportedDialectError,
    need_connection,
    sqlstate,
)

MIN_PGVECTOR = "0.8"
_INSUFFICIENT_PRIVILEGE = "42501"
#: SQLSTATE of a wait that ended at lock_timeout.
LOCK_NOT_AVAILABLE = "55P03"
#: How long to wait for the lock of installations.
LOCK_PATIENCE = "60s"
#: Key of the advisory lock under which extension and objects are created; any constant serves.
_LOCK = 0x7067656D62656400
#: The whole database shares the extension, so it goes where every search_path finds it: into ``public``,
#: unless the search_path leaves that out. The first schema may belong to one tenant of many.
_SCHEMA = """
SELECT CASE WHEN 'public' = ANY (pg_catalog.current_schemas(false)) THEN 'public'
            ELSE pg_catalog.current_schema() END
"""


def ensure_extension(connection: Connection, *, create: bool = True) -> str:
    """Make sure that the extension ``vector`` exists and is new enough.

    ::

        CREATE EXTENSION IF NOT EXISTS vector SCHEMA public

    It goes into ``public`` where the ``search_path`` has that, else into the current schema.

    :param create: create it where it is missing; otherwise its absence is an error.
    :returns: the quoted name of the schema it lives in.
    :raises ExtensionError: missing, not installable on this server, or older than 0.8.
    :raises MissingPrivilegeError: it is missing, and this role may not create it.
    """
    need_connection(connection)
    found = _extension(connection)
    if found is None and create:
        _create_extension(connection)
        found = _extension(connection)
    if found is None:
        raise ExtensionError(
            "vector",
            "nothing",
            needed=f"{MIN_PGVECTOR} or newer",
            fix="Let a role that may create extensions run: CREATE EXTENSION vector",
        )
    version, schema = found
    if _numbers(version) < _numbers(MIN_PGVECTOR):
        raise ExtensionError(
            "vector",
            version,
            needed=f"{MIN_PGVECTOR} or newer",
            fix="Install a newer pgvector on the server, then run: ALTER EXTENSION vector UPDATE",
        )
    return schema


def needs_extension(table: Table, dialect: Dialect) -> bool:
    """Whether ``CREATE TABLE``, or an index of the table, needs the extension ``vector``.

    :raises UnsupportedDialectError: a column of pgembed's, on another database than Postgres.
    """
    types = any(_is_of_pgvector(column, dialect) for column in table.c)
    return is_postgres(dialect) and (
        types
        or any(index.dialect_options["postgresql"]["using"] in ("hnsw", "ivfflat") for index in table.indexes)
    )


def require_visible(connection: Connection) -> None:
    """Refuse a ``search_path`` under which ``VECTOR(384)`` is no type.

    :raises ExtensionError: the extension is in a schema that the search_path leaves out.
    """
    hidden = connection.execute(
        text(
            "SELECT e.extversion, n.nspname, pg_catalog.current_setting('search_path') "
            "FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'vector' AND n.nspname <> ALL (pg_catalog.current_schemas(true))"
        )
    ).one_or_none()
    if hidden is not None:
        version, schema, path = hidden
        raise ExtensionError(
            "vector",
            f"{version} in the schema {schema!r}",
            needed=f"a schema of the search_path, which is {path!r}",
            fix=f"Add {schema} to the search_path, or move the extension to where all find it: "
            "ALTER EXTENSION vector SET SCHEMA public",
        )


@event.listens_for(Table, "before_create")
def _before_table(table: Table, connection: Any, **_: Any) -> None:
    embeddings_of(table)  # raises if one could never be filled
    if not needs_extension(table, connection.dialect):
        return
    if isinstance(connection, Connection):
        ensure_extension(connection)
        require_visible(connection)
    else:  # a mock connection, which writes a script
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))


def lock_within(connection: Connection, time: str, *keys: int) -> None:
    """Take an advisory lock until the transaction ends, waiting a limited time: any session can hold one.

    :param time: as for ``lock_timeout``, which is restored afterwards.
    :param keys: one, or two of 32 bits.
    :raises DBAPIError: with :data:`LOCK_NOT_AVAILABLE`, other sessions held it all that time.
    """
    given = (
        select(func.pg_catalog.current_setting("lock_timeout").label("given")).offset(0).subquery("settings")
    )
    connection.execute(  # the columns of a row are evaluated in their order
        select(
            func.pg_catalog.set_config("lock_timeout", time, True),
            func.pg_catalog.pg_advisory_xact_lock(*keys),
            func.pg_catalog.set_config("lock_timeout", given.c.given, True),
        )
    )


def lock_installation(connection: Connection) -> None:
    """Let one session at a time create shared objects, until its transaction ends.

    :raises DatabaseError: another session has held the lock for a minute.
    """
    try:
        lock_within(connection, LOCK_PATIENCE, _LOCK)
    except DBAPIError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
        raise DatabaseError(
            f"another session has held the lock of pgembed's installation for {LOCK_PATIENCE}: see "
            "pg_locks, where locktype is 'advisory', and end that session or wait for it"
        ) from error


def _extension(connection: Connection) -> tuple[str, str] | None:
    row = connection.execute(
        text("SELECT extversion, extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _create_extension(connection: Connection) -> None:
    lock_installation(connection)
    available = connection.scalar(
        text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    )
    if available is None:
        raise ExtensionError(
            "vector",
            "nothing that the server could install",
            needed=f"{MIN_PGVECTOR} or newer",
            fix="Install pgvector on the server's machine (https://github.com/pgvector/pgvector#installation)",
        )
    role, database = connection.execute(text("SELECT current_user, current_database()")).one()
    try:
        schema = connection.scalar(text(_SCHEMA))
        if schema is None:
            raise ExtensionError(
                "vector",
                "no schema of the search_path that exists",
                needed="a schema to create it in",
                fix="Create the schema, or add public to the search_path",
            )
        quoted = connection.dialect.identifier_preparer.quote_schema(schema)
        connection.exec_driver_sql(
            f"CREATE EXTENSION IF NOT EXISTS vector SCHEMA {quoted}",
            execution_options={"no_parameters": True},
        )
    except DBAPIError as error:
        if sqlstate(error) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise MissingPrivilegeError(
            role,
            "CREATE",
            f"database {database!r}",
            fix="The extension vector is missing; let the database's owner or a superuser run: "
            "CREATE EXTENSION vector",
        ) from error


def _is_of_pgvector(column: Column[Any], dialect: Dialect) -> bool:
    """Whether a column needs the extension: one of ours, of pgvector's Python package, an array of them.

    :raises UnsupportedDialectError: one of ours, on another database than Postgres.
    """
    try:
        name = column.type.compile(dialect=dialect)
    except UnsupportedDialectError as error:
        raise UnsupportedDialectError(dialect.name, f"{column} ({error.what})") from None
    except CompileError:  # a type that is not known yet, as of a computed column
        return False
    return re.match(r"(VECTOR|HALFVEC|SPARSEVEC)\b", name) is not None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
