"""The SQL of the fill cycle, once for each column. For a table ``article (id, title)``:

Claim (the rows to encode next, with their texts; no user row is locked)::

    SELECT key, <wanted>, failed_before, bare, title FROM (
      SELECT *, sum(octets) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS total FROM (
        SELECT key, failed_before, embedding IS NULL AS bare, octets, id, title FROM article
        WHERE <pending> AND id > :after
          AND key NOT IN (SELECT unnest(keys) FROM pgembed.lease WHERE ... AND expires_at > now())
          AND NOT <the same text failed, and is not due again>
        ORDER BY id LIMIT :rows) AS p) AS q
    WHERE total <= :octets OR total = octets
    ORDER BY id

Write back::

    WITH l AS MATERIALIZED (
      SELECT t.id, v.k, v.d, v.e
      FROM article t JOIN unnest(:keys, :digests, :vectors) v (k, d, e) ON t.id = <v.k>
      ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED)
    UPDATE article SET embedding = CASE WHEN l.d IS NOT NULL THEN l.e END, embedding_digest = l.d FROM l
    WHERE article.id = l.id AND <wanted> IS NOT DISTINCT FROM l.d AND <held> IS DISTINCT FROM l.d

(*l* and *v* really have longer names, which cannot be the user's table's.)

Rows are locked in key order before they are updated, and locked ones are skipped: the statement never waits,
so it is never part of a deadlock. Its condition holds for rows that still have the text that was encoded and
no vector of it yet; under READ COMMITTED, Postgres evaluates it on the newest version of the row.

Keys and digests travel as one text each, with a line for each row: ten times cheaper than an array of a
thousand parameters, and the same with every driver. *key* is the primary key as a JSON array, whatever its
columns and types; JSON has no line breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy import table as table_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.selectable import FromClause, TableValuedAlias

from pgembed.columns import EmbeddingColumn
from pgembed.columns.digest import digest_sql
from pgembed.columns.types import NamedType, VectorArrayType
from pgembed.filling import sql
from pgembed.filling.targets import Target

_trigger = table_("pg_trigger", *map(column, ("tgrelid", "tgisinternal", "tgtype")), schema="pg_catalog")
#: Bits of ``tgtype``.
_BEFORE, _UPDATE = 2, 16


class Statements:
    """The statements of the cycle for one column."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._failure = sql.failure.alias(self._apart("pgembed_failure"))
        self._lease = sql.lease.alias(self._apart("pgembed_lease"))

    # --- reading ----------------------------------------------------------------------------------

    def claim(
        self, *, where: Sequence[ColumnElement[bool]] = (), after: bool = False, newest: bool = False
    ) -> Select[Any]:
        """Rows ``(key, wanted, failed_before, bare, *sources)`` that no worker has claimed, ordered by key.

        Binds ``rows``, ``octets``, which all their texts but the first stay within, and ``after``, a key.

        :param newest: those without a vector among the last rows instead, ``ORDER BY id DESC`` inside.
        """
        embedding = self._target.embedding
        table = embedding.table
        keys, sources = self._keys(table), embedding.sources
        octets = reduce(add, (func.coalesce(func.pg_catalog.octet_length(c), 0) for c in sources))
        due_later = self._of_failure(self._failure.c.next_attempt_at > func.now())
        failed_before = self._of_failure(literal_column("true"))
        columns: list[Any] = [
            self.key(table).label("key"),
            failed_before.label("failed_before"),
            embedding.lacking().label("bare"),
            octets.label("octets"),
            *(column.label(f"key_{i}") for i, column in enumerate(keys)),
            *(column.label(f"source_{i}") for i, column in enumerate(sources)),
        ]
        statement: Select[Any] = (
            select(*columns)
            .where(embedding.pending(), *where)
            .where(self.key(table).not_in(self._leased()))
            .where(~due_later)
            .order_by(*(column.desc() if newest else column for column in keys))
            .limit(sql.bigint("rows"))
        )
        if after:
            statement = statement.where(self._after(table))
        rows = statement.subquery("p")
        order = [rows.c[f"key_{i}"] for i in range(len(keys))]
        total = func.sum(rows.c.octets).over(order_by=order, rows=(None, 0))
        window = select(rows, total.label("total"))
        within = (window.where(rows.c.bare) if newest else window).subquery("q")
        texts = [within.c[f"source_{i}"] for i in range(len(sources))]
        wanted = digest_sql(embedding.declaration.recipe, texts)
        return (
            select(
                within.c.key,
                cast(wanted, Text).label("wanted"),
                within.c.failed_before,
                within.c.bare,
                *texts,
            )
            .where(or_(within.c.total <= sql.bigint("octets"), within.c.total == within.c.octets))
            .order_by(*(within.c[f"key_{i}"] for i in range(len(keys))))
        )

    def pending_count(
        self, where: Sequence[ColumnElement[bool]] = (), *, claimed: bool = True
    ) -> Select[Any]:
        """How many rows are pending, counted in their index.

        :param claimed: whether to count rows that a worker has claimed.
        """
        embedding = self._target.embedding
        count: Select[Any] = select(func.count()).select_from(embedding.table)
        if not claimed:
            count = count.where(self.key(embedding.table).not_in(self._leased()))
        # With a parameter, drivers send a single statement, so a condition cannot smuggle in another.
        return count.where(embedding.pending(), *where).limit(1)

    def still_wanting(self) -> Select[Any]:
        """Which of the bound ``keys`` still want the vectors of the bound ``digests``."""
        bare = self._target.bare
        given = self._unnest(k=sql.bound_lines("keys"), d=sql.digests())
        return (
            select(given.c.k)
            .select_from(bare.table.join(given, self._matches(bare.table, given.c.k)))
            .where(bare.wanted().is_not_distinct_from(given.c.d), self._lacks(given.c.d))
        )

    def writable(self) -> Select[Any]:
        """Those of :meth:`still_wanting` that no session has locked; this locks them."""
        table = self._target.bare.table
        return self.still_wanting().with_for_update(key_share=True, of=table, skip_locked=True)

    def has_after_trigger(self) -> Select[Any]:
        """Whether the table has a user's trigger that fires after updates."""
        return select(
            exists().where(
                _trigger.c.tgrelid == self._target.oid,
                ~_trigger.c.tgisinternal,
                cast(_trigger.c.tgtype, Integer).op("&")(_UPDATE | _BEFORE) == _UPDATE,
            )
        )

    def changed_since(self) -> Select[Any]:
        """``(key, again)`` as of :meth:`write`, of the bound ``keys``, where an AFTER UPDATE trigger has made
        them pending again. To be run in the same transaction, which has the rows locked."""
        bare = self._target.bare
        given = self._unnest(k=sql.bound_lines("keys"))
        return (
            select(given.c.k, func.coalesce(cast(bare.wanted(), Text), ""))
            .select_from(bare.table.join(given, self._matches(bare.table, given.c.k)))
            .where(bare.pending())
        )

    def may_write(self) -> Select[Any]:
        """Whether this role may write vector and digest at all."""
        bare = self._target.bare
        names = [bare.digest.name, *([bare.vector.name] if isinstance(bare, EmbeddingColumn) else [])]
        return select(
            and_(*(func.pg_catalog.has_column_privilege(self._target.oid, name, "UPDATE") for name in names))
        )

    # --- writing ----------------------------------------------------------------------------------

    def write(self) -> Executable:
        """Write the bound ``vectors`` and ``digests`` into the rows of ``keys`` that still want them; where
        rows have parts, the digests alone.

        Returns ``(key, again)`` of the rows that were written; ``again`` is NULL but for a row that is
        pending even then, because triggers change it: the digest of its text, empty if it has none.
        """
        target = self._target
        bare = target.bare
        t = bare.table.alias("t")
        arrays = {"k": sql.bound_lines("keys"), "d": sql.digests()}
        if isinstance(bare, EmbeddingColumn):
            arrays["e"] = self._vectors()
        v = self._unnest(**arrays)
        names = [key.key for key in bare.table.primary_key.columns]
        locked = (
            select(*(t.c[name].label(f"key_{i}") for i, name in enumerate(names)), *v.c)
            .select_from(t.join(v, self._matches(t, v.c.k)))
            .order_by(*(t.c[name] for name in names))
            .with_for_update(key_share=True, of=t, skip_locked=True)
            .cte(self._apart("pgembed_locked"))
            .prefix_with("MATERIALIZED")
        )
        return (
            update(bare.table)
            .values(
                {
                    **(
                        {bare.vector: case((locked.c.d.is_not(None), locked.c.e))}
                        if isinstance(bare, EmbeddingColumn)
                        else {}
                    ),
                    bare.digest: locked.c.d,
                }
            )
            .where(
                *(
                    sql.equal(bare.table.c[name], locked.c[f"key_{i}"], target.builtin_keys[i])
                    for i, name in enumerate(names)
                )
            )
            .where(bare.wanted().is_not_distinct_from(locked.c.d), self._lacks(locked.c.d))
            .returning(
                locked.c.k.label("key"),
                case((bare.pending(), func.coalesce(cast(bare.wanted(), Text), ""))).label("again"),
            )
        )

    # --- parts ------------------------------------------------------------------------------------

    def key(self, table: FromClause) -> ColumnElement[str]:
        """The primary key of a row as one text."""
        return cast(func.pg_catalog.jsonb_build_array(*self._keys(table)), Text)

    def _vectors(self) -> ColumnElement[Any]:
        """The bound ``vectors`` as an array of the column's type."""
        array = VectorArrayType(self._target.vector_type, self._target.vector_type_oid)
        return cast(bindparam("vectors", type_=array), array)

    def sweepable(self) -> Select[Any]:
        """Keys of failures that are over: the row was filled since, is gone, or has another text.

        They are locked in order, so that concurrent sweeps do not wait for each other.
        """
        embedding = self._target.embedding
        table = embedding.table
        alive: Select[Any] = (
            select(literal_column("1"))
            .select_from(table)
            .where(self._matches(table, self._failure.c.key), embedding.pending())
            .where(embedding.wanted().is_not_distinct_from(self._failure.c.digest))
            .correlate(self._failure)
        )
        return (
            select(self._failure.c.key)
            .where(*self._mine(self._failure), ~alive.exists())
            .order_by(self._failure.c.key)
            .with_for_update(skip_locked=True)
        )

    def _apart(self, name: str) -> str:
        """A name for a part of a statement that is not the user's table's."""
        return f"{name}_" if name == self._target.embedding.table.name else name

    def _unnest(self, **arrays: ColumnElement[Any]) -> TableValuedAlias:
        """``unnest(<array>, ...) AS pgembed_given(k, ...)``, each column under the name of its array."""
        given = func.unnest(*arrays.values()).table_valued(*map(column, arrays))
        return given.render_derived(name=self._apart("pgembed_given"))

    def _keys(self, table: FromClause) -> list[ColumnElement[Any]]:
        by_name = {column.name: column for column in table.c}
        return [by_name[column.name] for column in self._target.embedding.table.primary_key.columns]

    def _parsed(self, key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """The columns of a key; see :meth:`key`."""
        parts: list[ColumnElement[Any]] = []
        for position, name in enumerate(self._target.key_types):
            part = cast(key, JSONB).op("->>")(literal_column(str(position)))
            parts.append(cast(part, NamedType(name)))
        return parts

    def _matches(self, table: FromClause, key: ColumnElement[Any]) -> ColumnElement[bool]:
        pairs = zip(self._keys(table), self._parsed(key), strict=True)
        return and_(
            *(
                sql.equal(*pair, builtin)
                for pair, builtin in zip(pairs, self._target.builtin_keys, strict=True)
            )
        )

    def _after(self, table: FromClause) -> ColumnElement[bool]:
        own, given = self._keys(table), self._parsed(bindparam("after", type_=Text()))
        if len(own) == 1:
            return sql.compared(own[0], ">", given[0]) if self._target.builtin_keys[0] else own[0] > given[0]
        return tuple_(*own) > tuple_(*given)

    def _lacks(self, digest: ColumnElement[Any]) -> ColumnElement[bool]:
        """The row does not hold the vector of that digest."""
        return self._target.bare.held().is_distinct_from(digest)

    def _mine(self, table: FromClause) -> tuple[ColumnElement[bool], ...]:
        return (
            sql.same(table.c.relation, self._target.oid),
            sql.same(table.c.column_name, self._target.column_name),
        )

    def _leased(self) -> Select[Any]:
        return select(func.pg_catalog.unnest(self._lease.c["keys"])).where(
            *self._mine(self._lease), self._lease.c.expires_at > func.clock_timestamp()
        )

    def _of_failure(self, what: ColumnElement[bool]) -> ColumnElement[bool]:
        """``what`` of the failure of the row with its present text, false if there is none.

        It stays a look-up for each row, made only where the column has failures at all, and never becomes a
        join, which could lose the order of the index.
        """
        embedding = self._target.embedding
        table = embedding.table
        mine: Select[Any] = (
            select(what)
            .where(*self._mine(self._failure), self._failure.c.key == self.key(table))
            .where(self._failure.c.digest.is_not_distinct_from(embedding.wanted()))
            .correlate(table)
        )
        any_failed = select(exists().where(*self._mine(self._failure))).scalar_subquery()
        return func.coalesce(case((any_failed, mine.scalar_subquery())), literal_column("false"))
