"""``op.alter_vector_column`` and ``op.assert_backfilled``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column, ColumnElement, MetaData, Table, cast, column, func, null, select
from sqlalchemy.types import NullType, TypeEngine

from pgembed.columns.digest import digest_sql, held_sql, recipe
from pgembed.columns.names import written
from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError
from pgembed.migrations.definitions import Facts, MigrationError, PendingIndexDefinition, sql
from pgembed.migrations.operations.base import NothingOp, PgembedOp, Statement
from pgembed.migrations.reflection import indexes_of
from pgembed.migrations.rendering import call, comment, vector_type

_CHECK_BACKFILLED = """DO $pgembed$
DECLARE
    relation regclass := :relation;
    predicate text;
    filled text;
    problem text;
    pending bigint;
    allowed bigint := :allowed;
BEGIN
    SELECT r.problem, pgembed.pending_predicate(r.facts),
           CASE WHEN r.facts -> 'parts' IS NULL THEN :column ELSE r.facts ->> 'digest' END
      INTO problem, predicate, filled
      FROM pgembed.registrations AS r
     WHERE r.relation = CAST(:relation AS regclass) AND r.column_name = :column;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no embedding column %', relation, quote_ident(:column);
    ELSIF problem IS NOT NULL THEN
        RAISE EXCEPTION '%.%: %', relation, quote_ident(:column), problem;
    END IF;
    EXECUTE format('SELECT count(*) FROM %s WHERE %s', relation, predicate) INTO pending;
    IF :share < 1 AND pending > allowed THEN
        EXECUTE format('SELECT floor((1 - :share) * count(*)) FROM %s WHERE %I IS NOT NULL OR (%s)',
                       relation, filled, predicate) INTO allowed;
    END IF;
    IF pending > greatest(allowed, :allowed) THEN
        RAISE EXCEPTION '%.%: % rows are pending', relation, quote_ident(:column), pending;
    END IF;
END
$pgembed$"""


@dataclass(eq=False)
class AlterVectorColumnOp(PgembedOp):
    """Change dimensions or storage of a vector column."""

    names = ("alter_vector_column",)

    table_name: str
    column_name: str
    type_: TypeEngine[Any]
    existing_type: TypeEngine[Any]
    discard: bool = False
    schema: str | None = None

    @classmethod
    def alter_vector_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        existing_type: TypeEngine[Any],
        discard: bool = False,
        schema: str | None = None,
    ) -> None:
        """Change dimensions or storage of a vector column.

        ::

            ALTER TABLE article ALTER COLUMN embedding TYPE HALFVEC(8) USING CAST(embedding AS HALFVEC(8));
            ALTER TABLE article ALTER COLUMN embedding TYPE VECTOR(9) USING CAST(NULL AS VECTOR(9))

        Vectors of other dimensions cannot be converted: ``discard=True`` sets them to NULL. Their rows are
        pending afterwards, and are filled again. The table is locked and, unless ``vector(n)`` becomes
        ``vector``, rewritten.

        :param existing_type: the type that the column has now.
        :param discard: set all vectors to NULL.
        :raises MigrationError: the dimensions change and ``discard`` is false.
        """
        operations.invoke(cls(table_name, column_name, type_, existing_type, discard, schema))

    def run(self, operations: Operations) -> None:
        existing, wanted = self.existing_type, self.type_
        if discards(existing, wanted) and not self.discard:
            raise MigrationError(
                f"{self.table_name}.{self.column_name}: vectors of {shape_of(existing)[1]} dimensions "
                f"cannot become vectors of {shape_of(wanted)[1]}. discard=True gives them up, and their "
                "rows are filled again; a second embedding column keeps searches going meanwhile"
            )
        using: Any = None
        if self.discard:
            using = cast(null(), wanted)
        elif shape_of(existing)[0] != shape_of(wanted)[0]:
            using = cast(column(self.column_name), wanted)
        operations.alter_column(
            self.table_name,
            self.column_name,
            type_=wanted,
            existing_type=existing,
            schema=self.schema,
            postgresql_using=None if using is None else sql(using),
        )

    def render(self, context: AutogenContext) -> list[str]:
        text = call(
            context,
            "alter_vector_column",
            [self.table_name, self.column_name, vector_type(self.type_, context)],
            existing_type=vector_type(self.existing_type, context),
            discard=self.discard or None,
            schema=self.schema,
        )
        if not self.discard:
            return [text]
        reason = (
            f"Vectors of other dimensions cannot be converted: those in {self.table_name}."
            f"{self.column_name} are set to NULL, and searches find nothing until their rows are filled "
            "again. The table is rewritten, and nobody reads it meanwhile."
        )
        return [*comment(reason), text]

    def reverse(self) -> MigrateOperation:
        return replace(self, type_=self.existing_type, existing_type=self.type_)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        column = (self.schema, self.table_name, self.column_name)
        return ("modify_vector_type", *column, self.existing_type, self.type_)


@dataclass(eq=False)
class AssertBackfilledOp(PgembedOp):
    """Stop while rows of an embedding column are pending."""

    names = ("assert_backfilled",)

    table_name: str
    column_name: str
    allowed: int = 0
    share: float = 1.0
    schema: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise MigrationError(f"share={self.share!r}; expected a share of the rows, 0 to 1")

    @classmethod
    def assert_backfilled(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        allowed: int = 0,
        share: float = 1.0,
        schema: str | None = None,
    ) -> None:
        """Stop the migration while rows of an embedding column are pending.

        ::

            SELECT count(*) FROM article WHERE <the predicate of its pending index>

        Write it before what needs the vectors: the index of a new column, the drop of the old one. It changes
        nothing, so a downgrade has nothing to undo. Offline it is a ``DO`` block that does the same.

        :param allowed: the number of pending rows that do not stop the migration.
        :param share: the share that must be fresh of the rows with a vector or a text. Where the table is
            written all the time, a few rows are pending at any moment.
        :raises MigrationError: more rows are pending, or the column has no pending index.
        """
        operations.invoke(cls(table_name, column_name, allowed=allowed, share=share, schema=schema))

    def run(self, operations: Operations) -> None:
        table = Table(self.table_name, MetaData(), Column(self.column_name, NullType()), schema=self.schema)
        if operations.get_context().as_sql:
            values: dict[str, Any] = {"relation": written(table), "column": str(self.column_name)}
            values |= {"allowed": int(self.allowed), "share": float(self.share)}
            operations.execute(Statement(_CHECK_BACKFILLED, **values))
            return
        connection = operations.get_bind()
        facts: Facts | None = next(
            (
                definition.registration
                for definition in indexes_of(connection, table, set()).values()
                if isinstance(definition, PendingIndexDefinition)
                and (definition.registration or {}).get("column") == self.column_name
            ),
            None,
        )
        name = f"{table.fullname}.{self.column_name}"
        if facts is None:
            raise MigrationError(f"{name} is not an embedding column: it has no registered pending index")
        # Of the registration, not the predicate of the index, which is not run as it is found.
        sources: list[ColumnElement[Any]] = [column(source) for source in facts["sources"]]
        parts = facts.get("parts")
        made = facts["fingerprint"] if parts is None else f"{facts['fingerprint']} {parts['how']}"
        wanted = digest_sql(recipe(made, facts.get("template")), sources)
        digest: ColumnElement[Any] = column(facts["digest"])
        links: list[ColumnElement[Any]] = [column(link) for link in facts.get("duplicate_of") or ()]
        is_pending = (digest if parts else held_sql(column(facts["column"]), digest, links)).is_distinct_from(
            wanted
        )
        pending = connection.scalar(select(func.count()).select_from(table).where(is_pending)) or 0
        allowed = self.allowed
        if pending > allowed and self.share < 1:
            filled = (digest if parts else table.c[self.column_name]).is_not(None)
            counted = select(func.count()).select_from(table)
            rows = connection.scalar(counted.where(filled | is_pending)) or 0
            allowed = max(allowed, math.floor((1 - self.share) * rows + 1e-9))
        if pending > allowed:
            raise MigrationError(
                f"{name}: {pending} rows are pending, at most {allowed} may be. Let a worker or "
                "`pgembed backfill` fill them, then run the migration again"
            )

    def render(self, context: AutogenContext) -> list[str]:
        text = call(
            context,
            "assert_backfilled",
            [self.table_name, self.column_name],
            allowed=self.allowed or None,
            share=self.share if self.share < 1 else None,
            schema=self.schema,
        )
        return [*comment(self.reason), text]

    def reverse(self) -> MigrateOperation:
        return NothingOp(self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("assert_backfilled", self.schema, self.table_name, self.column_name)


def discards(existing: TypeEngine[Any], wanted: TypeEngine[Any]) -> bool:
    """Whether vectors of one type have no equivalent in the other, because the dimensions differ."""
    (storage, before), (wanted_storage, after) = shape_of(existing), shape_of(wanted)
    if "bit" in (storage, wanted_storage):
        raise DeclarationError("bits are a type of Postgres, changed by op.alter_column()")
    return before is not None and after is not None and before != after
