"""What the server must be: checks, each with its own error, and the extension ``vector``."""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pgembed.exc import (
    DatabaseEncodingError,
    DigestUnavailableError,
    ExtensionError,
    MissingPrivilegeError,
    UnsupportedServerError,
    need_connection,
    sqlstate,
)

MIN_POSTGRES = 15
MIN_PGVECTOR = "0.8"
_INSUFFICIENT_PRIVILEGE = "42501"
#: What a Postgres whose OpenSSL forbids MD5 answers: "could not compute MD5 hash: unsupported".
_INTERNAL_ERROR = "XX000"
#: Key of the advisory lock under which extension and objects are created; any constant serves.
_LOCK = 0x7067656D62656400


def check_server(connection: Connection) -> None:
    """Refuse a server or database that vectors cannot be kept right on.

    :raises UnsupportedServerError: older than Postgres 15.
    :raises DatabaseEncodingError: the database is not UTF8.
    :raises DigestUnavailableError: ``md5()`` is refused, as on FIPS builds.
    """
    need_connection(connection)
    number, name = connection.execute(
        text("SELECT current_setting('server_version_num')::int, current_setting('server_version')")
    ).one()
    if number < MIN_POSTGRES * 10000:
        raise UnsupportedServerError(name, str(MIN_POSTGRES))
    encoding = connection.scalar(text("SELECT current_setting('server_encoding')"))
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


def ensure_extension(connection: Connection, *, create: bool = True) -> str:
    """See to it that the extension ``vector`` is there and new enough: ``CREATE EXTENSION vector``.

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


def lock_installation(connection: Connection) -> None:
    """Let one session at a time create shared objects, until its transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


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
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
