"""Installing the SQL objects of the folder ``sql/`` into a database."""

from __future__ import annotations

from sqlalchemy import Connection, text

from pgembed.database.scripts import REVISION, installation
from pgembed.database.server import check_server, ensure_extension, lock_installation
from pgembed.exc import MissingPrivilegeError, NotInstalledError


def install(connection: Connection, *, extension: bool = True) -> bool:
    """Install pgembed's SQL objects, or bring them up to date: schema ``pgembed``, extension ``vector``.

    It runs in the caller's transaction, which the caller commits. Running it again changes nothing; two
    sessions that run it at once wait for each other.

    :param extension: create the extension ``vector`` where it is missing. Creating extensions may need
        another role than creating tables does; with ``False``, a missing extension is an error.
    :returns: whether anything was installed.
    :raises UnsupportedServerError: the server is older than Postgres 15.
    :raises DatabaseEncodingError: the database is not UTF8.
    :raises DigestUnavailableError: the server refuses ``md5()``.
    :raises ExtensionError: the extension ``vector`` is missing or older than 0.8.
    :raises MissingPrivilegeError: the role may not create the extension or the schema.
    :raises NotInstalledError: the database holds a newer revision than this package.
    """
    check_server(connection)
    lock_installation(connection)
    vector_schema = ensure_extension(connection, create=extension)
    scripts = installation(vector_schema)
    installed = _installed(connection)
    if installed == (REVISION, scripts.checksum):
        return False
    if installed is not None and installed[0] > REVISION:
        raise NotInstalledError(
            f"the database holds revision {installed[0]} of pgembed's SQL, this package {REVISION}: "
            "upgrade the package"
        )
    _check_privileges(connection)
    for statement in scripts.statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    connection.execute(scripts.record())
    return True


def is_installed(connection: Connection) -> bool:
    """Whether the database has pgembed's SQL objects, of whatever revision."""
    return bool(connection.scalar(text("SELECT pg_catalog.to_regclass('pgembed.version') IS NOT NULL")))


def require_installed(connection: Connection) -> None:
    """
    :raises NotInstalledError: the database has no SQL objects of pgembed.
    """
    if not is_installed(connection):
        raise NotInstalledError(
            "this database has no SQL objects of pgembed: run `pgembed init`, or call "
            "pgembed.database.install(connection)"
        )


def _installed(connection: Connection) -> tuple[int, str] | None:
    readable = connection.scalar(
        text(
            "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') "
            "FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid "
            "WHERE n.nspname = 'pgembed' AND c.relname = 'version'"
        )
    )
    if readable is None:
        return None
    if not readable:
        raise MissingPrivilegeError(
            str(connection.scalar(text("SELECT current_user"))),
            "USAGE and SELECT",
            "schema 'pgembed'",
            fix="Run the installation as the role that installed it before",
        )
    row = connection.execute(text("SELECT revision, checksum FROM pgembed.version")).one_or_none()
    return None if row is None else (row[0], row[1])


def _check_privileges(connection: Connection) -> None:
    role, database, may_create, owner = connection.execute(
        text(
            "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE'), "
            "(SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'pgembed' "
            "AND NOT pg_has_role(nspowner, 'USAGE'))"
        )
    ).one()
    if owner is not None:
        raise MissingPrivilegeError(
            role,
            "ownership",
            "schema 'pgembed'",
            fix=f"Run the installation as {owner!r}, who installed it before",
        )
    if not may_create:
        raise MissingPrivilegeError(
            role,
            "CREATE",
            f"database {database!r}",
            fix=f'Let its owner run: GRANT CREATE ON DATABASE "{database}" TO "{role}"',
        )
