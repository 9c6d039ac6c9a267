"""Whose tables count: ``sql/05_trust.sql`` decides it, before a statement names a table.

Reading or writing a table runs its owner's code: a function in the predicate of an index runs as soon as a
query is planned.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from pgembed.exc import NotTrustedError

_INSTALLED = text("SELECT pg_catalog.to_regprocedure('pgembed.distrust(oid)') IS NOT NULL")
_DISTRUST = text("SELECT pgembed.distrust(CAST(CAST(:relation AS bigint) AS oid))")
#: Without the SQL objects, no role is listed: that leaves superusers and the current role.
_FOREIGN = text("""
WITH RECURSIVE tree AS (
    SELECT CAST(CAST(:relation AS bigint) AS oid) AS relid
    UNION
    SELECT h.inhrelid FROM pg_catalog.pg_inherits AS h JOIN tree AS t ON t.relid = h.inhparent
)
SELECT pg_catalog.format('owner "%s" is not trusted: pgembed init --trust "%1$s"', r.rolname)
  FROM tree AS t
  JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
  JOIN pg_catalog.pg_roles AS r ON r.oid = c.relowner
 WHERE NOT r.rolsuper AND r.rolname <> current_user
 ORDER BY 1 LIMIT 1
""")


def distrust(connection: Connection, relation: int | None) -> str | None:
    """Why the owner of a table is not trusted; ``None`` if it is, or there is no such table.

    :param relation: its oid.
    """
    if relation is None:
        return None
    statement = _DISTRUST if connection.scalar(_INSTALLED) else _FOREIGN
    problem: str | None = connection.scalar(statement, {"relation": relation})
    return problem


def require_trust(connection: Connection, relation: int | None, name: str) -> None:
    """
    :param name: the table's, for the message.
    :raises NotTrustedError: its owner is not trusted.
    """
    problem = distrust(connection, relation)
    if problem is not None:
        raise NotTrustedError(name, problem)
