"""``op.create_meaning_guard`` and ``op.drop_meaning_guard``: the trigger of ``unique_within=``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import MetaData, Table

from pgembed.columns.declaration import check_unique, names_of
from pgembed.columns.embedding import OnDuplicate
from pgembed.columns.guards import CreateGuard, DropGuard, guard_name
from pgembed.metrics import metric as metric_named
from pgembed.migrations.operations.base import PgembedOp
from pgembed.migrations.rendering import call


@dataclass(eq=False)
class CreateMeaningGuardOp(PgembedOp):
    """Refuse vectors within a score of another row's.

    :ivar trigger: the trigger's name, where the column was renamed since.
    """

    names = ("create_meaning_guard",)

    table_name: str
    column: str
    unique_within: float
    unique_per: tuple[str, ...]
    metric: str
    duplicate_of: tuple[str, ...] = ()
    schema: str | None = None
    trigger: str | None = None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the trigger does."""
        return (self.column, self.unique_within, self.unique_per, self.metric, self.duplicate_of)

    @classmethod
    def create_meaning_guard(
        cls,
        operations: Operations,
        table_name: str,
        column: str,
        unique_within: float,
        *,
        unique_per: Iterable[str] = (),
        on_duplicate: OnDuplicate = "raise",
        duplicate_of: str | Iterable[str] = (),
        metric: str = "cosine",
        trigger: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Guard a column as ``embedding_column(..., unique_within=)`` does.

        ::

            CREATE TRIGGER pgembed_guard_embedding AFTER INSERT OR UPDATE OF embedding, tenant_id ON article
            FOR EACH ROW WHEN (NEW.embedding IS NOT NULL)
            EXECUTE FUNCTION pgembed.guard_meaning('0.95', 'cosine')

        Rows that are there are not looked at: ``near_duplicates`` finds those that would be refused.

        :param unique_within: a score.
        :param unique_per: names of columns; only rows that agree in all of them are compared.
        :param on_duplicate: ``"return"`` stores a row without its vector, and links it: the trigger runs
            ``BEFORE INSERT OR UPDATE OF embedding, tenant_id, duplicate_of_id, embedding_digest``.
        :param duplicate_of: with it, the name of the column of the link; one for each column of the key. The
            predicate of the pending index says that such rows are fresh: let autogenerate write both.
        :param trigger: the trigger's name, where it is not that of its column.
        :raises DeclarationError: it is no score of the metric, or the arguments do not fit together.
        """
        per, name = names_of("unique_per", unique_per), metric_named(metric).name
        links = check_unique(metric, unique_within, per, on_duplicate, duplicate_of)
        operations.invoke(cls(table_name, column, unique_within, per, name, links, schema, trigger))

    def run(self, operations: Operations) -> None:
        table = Table(self.table_name, MetaData(), schema=self.schema)
        operations.execute(
            CreateGuard(
                table,
                self.column,
                self.unique_per,
                self.unique_within,
                self.metric,
                self.duplicate_of,
                self.trigger,
            )
        )

    def render(self, context: AutogenContext) -> list[str]:
        links = self.duplicate_of
        text = call(
            context,
            "create_meaning_guard",
            [self.table_name, self.column, self.unique_within],
            unique_per=list(self.unique_per) or None,
            on_duplicate="return" if links else None,
            duplicate_of=list(links) if len(links) > 1 else links[0] if links else None,
            metric=None if self.metric == "cosine" else self.metric,
            trigger=self.trigger,
            schema=self.schema,
        )
        return [text]

    def reverse(self) -> MigrateOperation:
        return DropMeaningGuardOp(self.table_name, self.column, self.schema, self.trigger, existing=self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("add_meaning_guard", self.schema, self.table_name, *self.settings)


@dataclass(eq=False)
class DropMeaningGuardOp(PgembedOp):
    """Let all vectors in again."""

    names = ("drop_meaning_guard",)

    table_name: str
    column: str
    schema: str | None = None
    trigger: str | None = None
    existing: CreateMeaningGuardOp | None = None

    @classmethod
    def drop_meaning_guard(
        cls,
        operations: Operations,
        table_name: str,
        column: str,
        *,
        trigger: str | None = None,
        schema: str | None = None,
    ) -> None:
        """``DROP TRIGGER pgembed_guard_<column> ON <table>``

        :param trigger: its name, where it is not that of its column.
        """
        operations.invoke(cls(table_name, column, schema, trigger))

    def run(self, operations: Operations) -> None:
        table = Table(self.table_name, MetaData(), schema=self.schema)
        operations.execute(DropGuard(table, self.trigger or guard_name(self.column)))

    def render(self, context: AutogenContext) -> list[str]:
        names = [self.table_name, self.column]
        return [call(context, "drop_meaning_guard", names, trigger=self.trigger, schema=self.schema)]

    def reverse(self) -> MigrateOperation:
        assert self.existing is not None
        return self.existing

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("remove_meaning_guard", self.schema, self.table_name, self.column)
