"""``op.create_meaning_guard`` and ``op.drop_meaning_guard``: the trigger of ``unique_within=``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alembic.operations import Operations
from sqlalchemy import MetaData, Table

from pgembed.columns.declaration import check_score
from pgembed.columns.guards import CreateGuard, DropGuard
from pgembed.metrics import metric as metric_named
from pgembed.migrations.operations.base import PgembedOp


@dataclass(eq=False)
class CreateMeaningGuardOp(PgembedOp):
    """Refuse vectors within a score of another row's."""

    names = ("create_meaning_guard",)

    table_name: str
    column: str
    unique_within: float
    unique_per: tuple[str, ...]
    metric: str
    schema: str | None = None

    @classmethod
    def create_meaning_guard(
        cls,
        operations: Operations,
        table_name: str,
        column: str,
        unique_within: float,
        *,
        unique_per: Iterable[str] = (),
        metric: str = "cosine",
        schema: str | None = None,
    ) -> None:
        """Guard a column as ``embedding_column(..., unique_within=)`` does; autogenerate does not write it.

        ::

            CREATE TRIGGER pgembed_guard_embedding AFTER INSERT OR UPDATE OF embedding, tenant_id ON article
            FOR EACH ROW WHEN (NEW.embedding IS NOT NULL)
            EXECUTE FUNCTION pgembed.guard_meaning('0.95', 'cosine')

        Rows that are there are not looked at: ``near_duplicates`` finds those that would be refused.

        :param unique_within: a score.
        :param unique_per: names of columns; only rows that agree in all of them are compared.
        :raises DeclarationError: it is no score of the metric.
        """
        check_score(metric, unique_within)
        name = metric_named(metric).name
        operations.invoke(cls(table_name, column, unique_within, tuple(unique_per), name, schema))

    def run(self, operations: Operations) -> None:
        table = Table(self.table_name, MetaData(), schema=self.schema)
        operations.execute(CreateGuard(table, self.column, self.unique_per, self.unique_within, self.metric))


@dataclass(eq=False)
class DropMeaningGuardOp(PgembedOp):
    """Let all vectors in again."""

    names = ("drop_meaning_guard",)

    table_name: str
    column: str
    schema: str | None = None

    @classmethod
    def drop_meaning_guard(
        cls, operations: Operations, table_name: str, column: str, *, schema: str | None = None
    ) -> None:
        """``DROP TRIGGER pgembed_guard_<column> ON <table>``"""
        operations.invoke(cls(table_name, column, schema))

    def run(self, operations: Operations) -> None:
        operations.execute(DropGuard(Table(self.table_name, MetaData(), schema=self.schema), self.column))
