"""Installing the SQL objects of the folder ``sql/`` into a database."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from sqlalchemy import Connection, text

from pgembed.database.server import check_server, ensure_extension, lock_installation
from pgembed.exc import MissingPrivilegeError, NotInstalledError

#: Rises with every release that changes the folder ``sql/``.
REVISION = 1


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
    script = _script().replace("@extschema:vector@", vector_schema)
    checksum = hashlib.sha256(script.encode()).hexdigest()
    installed = _installed(connection)
    if installed == (REVISION, checksum):
        return False
    if installed is not None and installed[0] > REVISION:
        raise NotInstalledError(
            f"the database holds revision {installed[0]} of pgembed's SQL, this package {REVISION}: "
            "upgrade the package"
        )
    _check_privileges(connection)
    for statement in _statements(script):
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    connection.execute(
        text(
            "INSERT INTO pgembed.version (revision, checksum) VALUES (:revision, :checksum) "
            "ON CONFLICT (only_row) DO UPDATE SET revision = excluded.revision, "
            "checksum = excluded.checksum, installed_at = clock_timestamp()"
        ),
        {"revision": REVISION, "checksum": checksum},
    )
    return True


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


def _script() -> str:
    scripts = sorted(
        (file for file in _folder().iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    return "\n".join(file.read_text(encoding="utf-8") for file in scripts)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: some drivers prepare every statement, and so take one at a time."""
    start = 0
    for token in re.finditer(r"\$(\w*)\$.*?\$\1\$|'[^']*'|--[^\n]*|;", script, re.DOTALL):
        if token[0] == ";":
            yield script[start : token.end()]
            start = token.end()


def _folder() -> Traversable:
    """``sql/`` lies inside the installed package, and beside it in a checkout."""
    packaged = files("pgembed") / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"
