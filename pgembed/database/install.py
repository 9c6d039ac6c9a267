"""Installing the SQL objects of the folder ``sql/`` into a database, on a server that they work on."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pgembed.columns.extension import ensure_extension, lock_installation
from pgembed.database.scripts import REVISION, Installation, installation
from pgembed.exc import (
    DatabaseEncodingError,
    DatabaseError,
    DigestUnavailableError,
    MissingPrivilegeError,
    NotInstalledError,
    UnsupportedServerError,
    need_connection,
    sqlstate,
)

MIN_POSTGRES = 15
#: What a Postgres whose OpenSSL forbids MD5 answers: "could not compute MD5 hash: unsupported".
_INTERNAL_ERROR = "XX000"


def check_server(connection: Connection) -> None:
    """Refuse a server or database on which digests would not work.

    :raises UnsupportedServerError: older than Postgres 15.
    :raises DatabaseEncodingError: the database is not UTF8.
    :raises DigestUnavailableError: ``md5()`` is refused, as on FIPS builds.
    """
    need_connection(connection)
    number, name = connection.execute(
        text(
            "SELECT pg_catalog.current_setting('server_version_num')::int, "
            "pg_catalog.current_setting('server_version')"
        )
    ).one()
    if number < MIN_POSTGRES * 10000:
        raise UnsupportedServerError(name, str(MIN_POSTGRES))
    encoding = connection.scalar(text("SELECT pg_catalog.current_setting('server_encoding')"))
    if encoding != "UTF8":
        raise DatabaseEncodingError(str(encoding))
    try:
        connection.scalar(text("SELECT md5('')"))
    except DBAPIError as error:
        if sqlstate(error) != _INTERNAL_ERROR:
            raise
        raise DigestUnavailableError(
            f"the server refuses md5(), which digests of texts are made with: {error.orig}. "
            "FIPS mode forbids it; use a server without FIPS mode"
        ) from error


def install(connection: Connection, *, extension: bool = True, trust: Sequence[str] = ()) -> bool:
    """Install pgembed's SQL objects, or bring them up to date: schema ``pgembed``, extension ``vector``.

    It runs in the caller's transaction, which the caller commits. Running it again changes nothing; two
    sessions that run it at once wait for each other.

    :param extension: create the extension ``vector`` where it is missing. Creating extensions may need
        another role than creating tables does; with ``False``, a missing extension is an error.
    :param trust: roles whose tables are counted and filled, besides those of the installing role, superusers
        and the current role. They are recorded in ``pgembed.trusted_owner``.
    :returns: whether anything was installed, or a role trusted that was not before.
    :raises UnsupportedServerError: the server is older than Postgres 15.
    :raises DatabaseEncodingError: the database is not UTF8.
    :raises DigestUnavailableError: the server refuses ``md5()``.
    :raises ExtensionError: the extension ``vector`` is missing or older than 0.8.
    :raises MissingPrivilegeError: the role may not create the extension or the schema, or the schema, or an
        object in it, is of another role.
    :raises NotInstalledError: the database holds a newer revision than this package.
    :raises DatabaseError: a role to be trusted does not exist, or another session keeps the lock of
        installations.
    """
    check_server(connection)
    lock_installation(connection)
    _check_owner(connection)
    vector_schema = ensure_extension(connection, create=extension)
    changed = _install(connection, installation(vector_schema))
    return _trust(connection, trust) or changed


def _install(connection: Connection, scripts: Installation) -> bool:
    installed = _installed(connection)
    if installed == (REVISION, scripts.checksum):
        return False
    if installed is not None and installed[0] > REVISION:
        raise NotInstalledError(
            f"the database holds revision {installed[0]} of pgembed's SQL, this package {REVISION}: "
            "upgrade the package"
        )
    _check_privileges(connection)
    # Unqualified names in the statements mean Postgres's own, whatever the path holds.
    path = connection.scalar(_PATH)
    for local in (True, False):  # where every statement is committed, a local setting is gone at once
        if connection.scalar(_PATH) != _PINNED:
            connection.execute(_SET_PATH, {"path": _PINNED, "local": local})
    for statement in scripts.statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    connection.execute(scripts.record())
    connection.execute(_SET_PATH, {"path": path, "local": True})
    if connection.scalar(_PATH) != path:
        connection.execute(_SET_PATH, {"path": path, "local": False})
    return True


def _trust(connection: Connection, roles: Sequence[str]) -> bool:
    """Record trusted roles; returns whether one is new."""
    changed = False
    for role in roles:
        known = text("SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :role)")
        if not connection.scalar(known, {"role": role}):
            raise DatabaseError(f"there is no role {role!r}: CREATE ROLE makes one, then trust it")
        _check_privileges(connection)
        changed = connection.execute(_TRUST, {"role": role}).rowcount > 0 or changed
    return changed


_PINNED = "pg_catalog, pg_temp"
_PATH = text("SELECT pg_catalog.current_setting('search_path')")
_SET_PATH = text("SELECT pg_catalog.set_config('search_path', :path, :local)")
_TRUST = text("INSERT INTO pgembed.trusted_owner (role) VALUES (:role) ON CONFLICT (role) DO NOTHING")


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
            "SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND "
            "pg_catalog.has_table_privilege(c.oid, 'SELECT') "
            "FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid "
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


#: The schema and its objects, if they belong to a role that the current one need not trust.
_FOREIGN = text("""
SELECT current_user, what, pg_catalog.pg_get_userbyid(owner)
  FROM (SELECT 0, 'schema ' || quote_literal(nspname), nspowner FROM pg_catalog.pg_namespace
         WHERE nspname = 'pgembed'
        UNION ALL
        SELECT 1, 'pgembed.' || relname, relowner FROM pg_catalog.pg_class
         WHERE relnamespace = pg_catalog.to_regnamespace('pgembed') AND relkind NOT IN ('i', 'I', 't')
        UNION ALL
        SELECT 1, 'pgembed.' || proname || '()', proowner FROM pg_catalog.pg_proc
         WHERE pronamespace = pg_catalog.to_regnamespace('pgembed')
        UNION ALL
        SELECT 1, 'pgembed.' || typname, typowner FROM pg_catalog.pg_type
         WHERE typnamespace = pg_catalog.to_regnamespace('pgembed')
        UNION ALL
        SELECT 1, 'pgembed.' || oprname, oprowner FROM pg_catalog.pg_operator
         WHERE oprnamespace = pg_catalog.to_regnamespace('pgembed')) AS found (rank, what, owner)
  JOIN pg_catalog.pg_roles AS r ON r.oid = owner
 WHERE NOT r.rolsuper AND r.rolname <> current_user
 ORDER BY rank, what LIMIT 1
""")


def _check_owner(connection: Connection) -> None:
    """Refuse a schema of another role: even reading it runs what is in it."""
    foreign = connection.execute(_FOREIGN).one_or_none()
    if foreign is not None:
        role, what, owner = foreign
        raise MissingPrivilegeError(
            role,
            "ownership",
            what,
            fix=f"It belongs to {owner!r}, who can put anything there. If that role installed pgembed, run "
            "this as that role; otherwise drop it first: DROP SCHEMA pgembed CASCADE",
        )


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
