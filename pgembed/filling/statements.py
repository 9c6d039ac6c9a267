"""The SQL of the fill cycle, once for each column. For a table ``article (id, title)``:

Claim (the rows to encode next; nothing of the user's is locked)::

    SELECT key, octets, failed_before FROM article
    WHERE <pending> AND id > :after
      AND key NOT IN (SELECT unnest(keys) FROM pgembed.lease WHERE ... AND expires_at > now())
      AND NOT <the same text failed, and is not due again>
    ORDER BY id LIMIT :rows

Read (their texts, and the digest of these texts)::

    SELECT key, <wanted>, title FROM article JOIN unnest(:keys) ON ...

Write back::

    WITH l AS MATERIALIZED (
      SELECT t.id, v.d, v.e FROM article t JOIN unnest(:keys, :digests, :vectors) v (k, d, e) ON t.id = <v.k>
      ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED)
    UPDATE article SET embedding = CASE WHEN l.d IS NOT NULL THEN l.e END, embedding_digest = l.d FROM l
    WHERE article.id = l.id AND <wanted> IS NOT DISTINCT FROM l.d AND <held> IS DISTINCT FROM l.d

A row is locked before it is updated, in the order of the keys, and one that somebody else has locked is
left alone: the statement waits for nobody, so it is never part of a deadlock. Its condition holds for rows
that still have the text that was encoded and no vector of it yet; under READ COMMITTED, it is tried on the
newest version of the row.

*key* is the primary key as the text of a JSON array, whatever its columns and types are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.sql.selectable import FromClause, TableValuedAlias

from pgembed.columns.digest import pending_sql
from pgembed.filling.arrays import NamedType, VectorArrayType
from pgembed.filling.tables import failure, lease
from pgembed.filling.targets import Target


class Statements:
    """What the cycle says to the database about one column."""

    def __init__(self, target: Target) -> None:
        self._target = target

    # --- reading ----------------------------------------------------------------------------------

    def claim(self, *, where: Sequence[ColumnElement[bool]] = (), after: bool = False) -> Select[Any]:
        """Rows ``(key, octets, failed_before)`` that nobody has in hand; binds ``rows``, and ``after``."""
        embedding = self._target.embedding
        table = embedding.table
        octets = reduce(add, (func.coalesce(func.octet_length(c), 0) for c in embedding.sources))
        due_later = self._failures(table).with_only_columns(failure.c.next_attempt_at > func.now())
        failed_before: Select[Any] = self._failures(table).with_only_columns(literal_column("true"))
        columns: list[Any] = [
            self.key(table).label("key"),
            octets.label("octets"),
            func.coalesce(failed_before.scalar_subquery(), literal_column("false")).label("failed_before"),
        ]
        statement: Select[Any] = (
            select(*columns)
            .where(embedding.pending(), *where)
            .where(self.key(table).not_in(self._leased()))
            # Inside coalesce(), so that it stays a look-up for each row and never becomes a join, which
            # could cost the statement the order of the index.
            .where(~func.coalesce(due_later.scalar_subquery(), literal_column("false")))
            .order_by(*table.primary_key.columns)
            .limit(bindparam("rows", type_=BigInteger))
        )
        if after:
            statement = statement.where(self._after(table))
        return statement

    def pending_count(self, where: Sequence[ColumnElement[bool]] = ()) -> Select[Any]:
        """How many rows are pending, counted in the index that holds just them."""
        embedding = self._target.embedding
        count: Select[Any] = select(func.count()).select_from(embedding.table)
        return count.where(embedding.pending(), *where)

    def read(self) -> Select[Any]:
        """Rows ``(key, wanted, *sources)`` of the bound ``keys``."""
        embedding = self._target.embedding
        keys = _unnest(k=("keys", Text()))
        columns: list[Any] = [keys.c.k, embedding.wanted().label("wanted"), *embedding.sources]
        rows = embedding.table.join(keys, self._matches(embedding.table, keys.c.k))
        return select(*columns).select_from(rows)

    def still_wanting(self) -> Select[Any]:
        """Which of the bound ``keys`` still want the vectors of the bound ``digests``."""
        bare = self._target.bare
        given = _unnest(k=("keys", Text()), d=("digests", UUID(as_uuid=True)))
        return (
            select(given.c.k)
            .select_from(bare.table.join(given, self._matches(bare.table, given.c.k)))
            .where(bare.wanted().is_not_distinct_from(given.c.d), self._lacks(given.c.d))
        )

    # --- writing ----------------------------------------------------------------------------------

    def write(self) -> Executable:
        """Write the bound ``vectors`` and ``digests`` into the rows of ``keys`` that still want them.

        Returns ``(key, pending, wanted)`` of the rows that were written; a row that is pending even then is
        one whose triggers change it.
        """
        target = self._target
        bare = target.bare
        t = bare.table.alias("t")
        v = _unnest(
            k=("keys", Text()),
            d=("digests", UUID(as_uuid=True)),
            e=("vectors", NamedType(target.vector_type)),
            types={"e": VectorArrayType(target.vector_type, target.vector_type_oid)},
        )
        names = [key.key for key in bare.table.primary_key.columns]
        locked = (
            select(*(t.c[name].label(f"key_{i}") for i, name in enumerate(names)), v.c.d, v.c.e)
            .select_from(t.join(v, self._matches(t, v.c.k)))
            .order_by(*(t.c[name] for name in names))
            .with_for_update(key_share=True, of=t, skip_locked=True)
            .cte("l")
            .prefix_with("MATERIALIZED")
        )
        return (
            update(bare.table)
            .values(
                {
                    bare.vector: case((locked.c.d.is_not(None), locked.c.e)),
                    bare.digest: locked.c.d,
                }
            )
            .where(*(bare.table.c[name] == locked.c[f"key_{i}"] for i, name in enumerate(names)))
            .where(bare.wanted().is_not_distinct_from(locked.c.d), self._lacks(locked.c.d))
            .returning(
                self.key(bare.table).label("key"),
                bare.pending().label("pending"),
                case((bare.pending(), bare.wanted())).label("wanted"),
            )
        )

    # --- parts ------------------------------------------------------------------------------------

    def key(self, table: FromClause) -> ColumnElement[str]:
        """The primary key of a row as one text."""
        return cast(func.jsonb_build_array(*self._keys(table)), Text)

    def sweepable(self) -> Select[Any]:
        """Keys of failure rows that say nothing any more: of rows filled since, gone, or with another text.

        They are locked in order, so that workers that sweep at once do not wait for each other.
        """
        embedding = self._target.embedding
        table = embedding.table
        alive: Select[Any] = (
            select(literal_column("1"))
            .select_from(table)
            .where(self._matches(table, failure.c.key), embedding.pending())
            .where(embedding.wanted().is_not_distinct_from(failure.c.digest))
            .correlate(failure)
        )
        return (
            select(failure.c.key)
            .where(*self._mine(failure), ~alive.exists())
            .order_by(failure.c.key)
            .with_for_update(skip_locked=True)
        )

    def _keys(self, table: FromClause) -> list[ColumnElement[Any]]:
        return [table.c[column.key] for column in self._target.embedding.table.primary_key.columns]

    def _parsed(self, key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        parts: list[ColumnElement[Any]] = []
        for position, name in enumerate(self._target.key_types):
            part = cast(key, JSONB).op("->>")(literal_column(str(position)))
            parts.append(cast(part, NamedType(name)))
        return parts

    def _matches(self, table: FromClause, key: ColumnElement[Any]) -> ColumnElement[bool]:
        pairs = zip(self._keys(table), self._parsed(key), strict=True)
        return and_(*(own == given for own, given in pairs))

    def _after(self, table: FromClause) -> ColumnElement[bool]:
        own, given = self._keys(table), self._parsed(bindparam("after", type_=Text()))
        if len(own) == 1:
            return own[0] > given[0]
        return tuple_(*own) > tuple_(*given)

    def _lacks(self, digest: ColumnElement[Any]) -> ColumnElement[bool]:
        """The row does not hold the vector of that digest."""
        bare = self._target.bare
        return pending_sql(bare.vector, bare.digest, digest)

    def _mine(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        return (
            table.c.relation == self._target.oid,
            table.c.column_name == self._target.column_name,
        )

    def _leased(self) -> Select[Any]:
        return select(func.unnest(lease.c["keys"])).where(
            *self._mine(lease), lease.c.expires_at > func.clock_timestamp()
        )

    def _failures(self, table: Table) -> Select[Any]:
        """The failure of the row as it stands now."""
        wanted = self._target.embedding.wanted()
        return (
            select(failure.c.key)
            .where(*self._mine(failure), failure.c.key == self.key(table))
            .where(failure.c.digest.is_not_distinct_from(wanted))
            .correlate(table)
        )


def _unnest(*, types: dict[str, Any] | None = None, **arrays: tuple[str, Any]) -> TableValuedAlias:
    """``unnest(:keys, :digests, ...) AS v(k, d, ...)``; each array is named with its parameter and type."""
    types = types or {}
    parameters = []
    for name, (parameter, type_) in arrays.items():
        array = types.get(name, ARRAY(type_))
        parameters.append(cast(bindparam(parameter, type_=array), array))
    columns = [column(name, type_) for name, (_, type_) in arrays.items()]
    return func.unnest(*parameters).table_valued(*columns).render_derived(name="v")
