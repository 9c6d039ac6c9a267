"""Rows that cannot be filled: one row each in ``pgembed.failure``, with the error and the next attempt.

A failure belongs to a text (by its digest). Another text is tried at once; the same text again after a pause
that doubles with every attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL, OID, insert

from pgembed.filling.sql import failure, lease, same
from pgembed.filling.statements import Statements
from pgembed.filling.targets import Target

_attribute = table(
    "pg_attribute", column("attrelid"), column("attname"), column("attisdropped"), schema="pg_catalog"
)

#: The longest pause between two attempts.
LONGEST_PAUSE = timedelta(days=1)

#: Errors can carry whole texts.
_LONGEST_ERROR = 2000


@dataclass(frozen=True)
class Failure:
    """A row that could not be filled."""

    relation: str
    column_name: str
    key: str
    error: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    next_attempt_at: datetime


def record(
    connection: Connection,
    target: Target,
    key: str,
    digest: str | None,
    error: BaseException | str,
    *,
    pause: timedelta,
) -> None:
    """Note that a row failed alone: ``INSERT INTO pgembed.failure ... ON CONFLICT DO UPDATE``.

    :param digest: of the text that failed.
    :param pause: until the second attempt; later ones double it.
    """
    message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    now = func.statement_timestamp()
    new = insert(failure).values(
        relation=target.oid,
        column_name=target.column_name,
        key=key,
        digest=digest,
        error=message.replace("\0", "\\0")[:_LONGEST_ERROR],
        attempts=1,
        first_failed_at=now,
        last_failed_at=now,
        next_attempt_at=now + literal(pause, INTERVAL),
    )
    same = failure.c.digest.is_not_distinct_from(new.excluded.digest)
    attempts = case((same, failure.c.attempts + 1), else_=1)
    doubled: ColumnElement[float] = pause.total_seconds() * func.pg_catalog.power(
        2.0, func.least(attempts - 1, 30), type_=Double()
    )
    seconds = func.least(doubled, LONGEST_PAUSE.total_seconds())
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["relation", "column_name", "key"],
            set_={
                "digest": new.excluded.digest,
                "error": new.excluded.error,
                "attempts": attempts,
                "first_failed_at": case((same, failure.c.first_failed_at), else_=now),
                "last_failed_at": now,
                "next_attempt_at": now
                + func.pg_catalog.make_interval(0, 0, 0, 0, 0, 0, seconds, type_=INTERVAL),
            },
        )
    )


def sweep(connection: Connection, target: Target, statements: Statements) -> int:
    """Delete the column's failures that are over; returns how many.

    A failure is over when its row was filled, deleted, or given another text.
    """
    mine = (same(failure.c.relation, target.oid), same(failure.c.column_name, target.column_name))
    if connection.scalar(select(failure.c.key).where(*mine).limit(1)) is None:
        return 0
    keys = connection.scalars(statements.sweepable()).all()
    if keys:
        connection.execute(delete(failure).where(*mine, failure.c.key.in_(keys)))
    return len(keys)


def clean(connection: Connection) -> None:
    """Delete failures of tables and columns that are gone, and leases that expired long ago.

    :raises DBAPIError: other sessions keep such rows locked for two seconds.
    """
    connection.execute(text("SELECT pg_catalog.set_config('lock_timeout', '2s', true)"))
    for kept in (failure, lease):
        there = exists().where(
            same(_attribute.c.attrelid, kept.c.relation),
            # Parts of a text are no column, but have a digest.
            or_(
                _attribute.c.attname == kept.c.column_name,
                _attribute.c.attname == kept.c.column_name.op("||")(literal_column("'_digest'")),
            ),
            ~_attribute.c.attisdropped,
        )
        connection.execute(delete(kept).where(~there))
    long_ago = func.clock_timestamp() - literal(timedelta(hours=1), INTERVAL)
    connection.execute(delete(lease).where(lease.c.expires_at < long_ago))


def listed(
    connection: Connection, relation: int | None = None, column_name: str | None = None
) -> list[Failure]:
    """The failures of the database, of a table or of a column, newest first."""
    name = text("relation::regclass::text AS relation")
    statement = select(name, *(c for c in failure.c if c.name not in ("relation", "digest")))
    rows = connection.execute(
        statement.where(*_of(relation, column_name)).order_by(
            failure.c.last_failed_at.desc(), failure.c["key"]
        )
    )
    return [Failure(**row) for row in rows.mappings()]


def retry(
    connection: Connection,
    relation: int | None = None,
    column_name: str | None = None,
    key: str | None = None,
) -> int:
    """Let failed rows be tried again at once, by the next claim; returns how many.

    :param key: one row alone; its key is the text of a JSON array, as :func:`listed` gives it.
    """
    conditions = _of(relation, column_name)
    if key is not None:
        conditions.append(failure.c["key"] == key)
    done = connection.execute(update(failure).where(*conditions).values(next_attempt_at=func.now()))
    return done.rowcount


def _of(relation: int | None, column_name: str | None) -> list[Any]:
    conditions: list[Any] = []
    if relation is not None:
        conditions.append(same(failure.c.relation, cast(literal(relation, BigInteger), OID)))
    if column_name is not None:
        conditions.append(same(failure.c.column_name, column_name))
    return conditions
