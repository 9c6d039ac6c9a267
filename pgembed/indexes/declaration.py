"""Index declarations: real :class:`sqlalchemy.Index` objects that know what pgvector can do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self, TypeAlias

from sqlalchemy import Column, Index, Table, event
from sqlalchemy.schema import conv
from sqlalchemy.types import TypeEngine

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.metrics import Metric
from pgembed.metrics import metric as metric_named

Build: TypeAlias = Literal["deferred", "immediate"]


class VectorIndex(Index):
    """Base of the index declarations; a subclass says what its access method accepts.

    Without a column it is a declaration for ``embedding_column(index=...)``, which binds a copy of it to the
    column and its metric. With a column it is an index for ``__table_args__``, on any pgvector column.
    """

    inherit_cache = True

    access_method: ClassVar[str]
    #: The metrics that it serves.
    metrics: ClassVar[tuple[str, ...]] = ("cosine", "l2", "inner_product")
    #: The most dimensions that it takes, by the type of the column.
    max_dimensions: ClassVar[dict[str, int]] = {"vector": 2000, "halfvec": 4000}

    def __init__(self, *columns: Any, name: str | None, metric: str | None, build: Build) -> None:
        if len(columns) > 1:
            raise DeclarationError(f"{type(self).__name__} indexes one vector column, found {len(columns)}")
        if build not in ("deferred", "immediate"):
            raise DeclarationError(f'build={build!r}; needed "deferred" or "immediate"')
        self.declared_metric = None if metric is None else metric_named(metric)
        self.declared_name = name
        self.build = build
        super().__init__(
            name,
            *columns,
            postgresql_using=self.access_method,
            postgresql_with=self.parameters,
        )
        if build == "deferred":
            self.ddl_if(callable_=_never)

    @property
    @abstractmethod
    def parameters(self) -> dict[str, int]:
        """The storage parameters, by pgvector's names."""

    @property
    def metric(self) -> Metric:
        """The metric of an index on a column."""
        return self.declared_metric or metric_named("cosine")

    def check(self, type_: TypeEngine[Any], metric: Metric) -> None:
        """Refuse what pgvector would refuse, and what no query could use.

        :raises MetricNotSupportedError: the access method does not serve the metric.
        :raises DeclarationError: another metric than the column's, or a column that cannot be indexed.
        """
        kind = type(self).__name__
        if metric.name not in self.metrics:
            raise MetricNotSupportedError(metric.name, self.metrics, by=kind)
        if self.declared_metric not in (None, metric):
            raise DeclarationError(
                f"{kind} is declared for the metric {self.metric.name} and the column for {metric.name}: "
                "no query of the column would use it. Leave the metric of the index out"
            )
        storage, dimensions = shape_of(type_)
        if dimensions is None:
            raise DeclarationError(
                f"{kind} needs a column with a fixed number of dimensions, as in Vector(384)"
            )
        limit = self.max_dimensions[storage]
        if dimensions > limit:
            wider = max(self.max_dimensions.values())
            raise DeclarationError(
                f"{kind} indexes at most {limit} dimensions of a {storage} column, found {dimensions}. "
                + (f'type="halfvec" allows {wider}; ' if dimensions <= wider else "")
                + "the encoder's dimensions= keeps fewer"
            )

    def bound_to(self, column: Column[Any], metric: Metric) -> Self:
        """This declaration as an index on ``column``, attached to its table."""
        return type(self)(
            column,
            name=self.declared_name or _default_name(column, self.access_method),
            metric=metric.name,
            build=self.build,
            **self.parameters,
        )


class HNSW(VectorIndex):
    """A pgvector HNSW index (https://github.com/pgvector/pgvector#hnsw; Malkov and Yashunin 2016).

    ::

        CREATE INDEX ix_article_embedding_hnsw ON article USING hnsw (embedding vector_cosine_ops)
        WITH (m = 16, ef_construction = 64)

    Rows load several times faster without it, so ``create_all`` leaves it out: build it once there is
    something to index, with :func:`pgembed.indexes.create`. Until then searches are exact.

    :param columns: one vector column, or its name; none in ``embedding_column(index=...)``.
    :param m: connections of a node, 2 to 100.
    :param ef_construction: size of the candidate list while building, 4 to 1000 and at least 2 m.
    :param metric: left out, the column's metric (``"cosine"`` in ``__table_args__``).
    :param build: ``"deferred"``, or ``"immediate"`` to have ``create_all`` create it.
    :raises DeclarationError: a parameter out of its range, or a column that cannot be indexed.
    :raises MetricNotSupportedError: the metric is not one of cosine, l2, inner_product.
    """

    inherit_cache = True
    access_method = "hnsw"

    def __init__(
        self,
        *columns: Any,
        m: int = 16,
        ef_construction: int = 64,
        metric: str | None = None,
        name: str | None = None,
        build: Build = "deferred",
    ) -> None:
        self.m = _within("m", m, 2, 100)
        self.ef_construction = _within("ef_construction", ef_construction, 4, 1000)
        if ef_construction < 2 * m:
            raise DeclarationError(
                f"ef_construction={ef_construction} is below 2 m = {2 * m}, which pgvector refuses"
            )
        super().__init__(*columns, name=name, metric=metric, build=build)

    @property
    def parameters(self) -> dict[str, int]:
        return {"m": self.m, "ef_construction": self.ef_construction}


class IVFFlat(VectorIndex):
    """A pgvector IVFFlat index (https://github.com/pgvector/pgvector#ivfflat).

    ::

        CREATE INDEX ix_article_embedding_ivfflat ON article USING ivfflat (embedding vector_cosine_ops)
        WITH (lists = 100)

    Its lists are the clusters of the rows that are there when it is built: build it after the load, and
    again when the data has changed a lot.

    :param columns: one vector column, or its name; none in ``embedding_column(index=...)``.
    :param lists: number of clusters, 1 to 32768; about rows / 1000 serves up to a million rows.
    :param metric: left out, the column's metric (``"cosine"`` in ``__table_args__``).
    :param build: ``"deferred"``, or ``"immediate"`` to have ``create_all`` create it.
    :raises DeclarationError: a parameter out of its range, or a column that cannot be indexed.
    :raises MetricNotSupportedError: the metric is not one of cosine, l2, inner_product.
    """

    inherit_cache = True
    access_method = "ivfflat"

    def __init__(
        self,
        *columns: Any,
        lists: int = 100,
        metric: str | None = None,
        name: str | None = None,
        build: Build = "deferred",
    ) -> None:
        self.lists = _within("lists", lists, 1, 32768)
        super().__init__(*columns, name=name, metric=metric, build=build)

    @property
    def parameters(self) -> dict[str, int]:
        return {"lists": self.lists}


def vector_index_of(column: Column[Any]) -> Index | None:
    """The approximate index that is declared on ``column``, ours or a plain :class:`sqlalchemy.Index`."""
    indexes = column.table.indexes if isinstance(column.table, Table) else ()
    for index in indexes:
        if access_method_of(index) in ("hnsw", "ivfflat") and column in index.columns.values():
            return index
    return None


def access_method_of(index: Index) -> str:
    """The access method of an index: ``"hnsw"``, ``"ivfflat"``, ``"btree"``, ..."""
    return index.dialect_options["postgresql"]["using"] or "btree"


def _default_name(column: Column[Any], access_method: str) -> conv:
    return conv(f"ix_{column.table.name}_{column.name}_{access_method}")


def _within(name: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, int) or not low <= value <= high:
        raise DeclarationError(f"{name}={value!r}; pgvector takes {low} to {high}")
    return value


def _never(*_: Any, **__: Any) -> bool:
    return False


@event.listens_for(VectorIndex, "after_parent_attach", propagate=True)
def _attached(index: VectorIndex, table: Any) -> None:
    """The table is known, and with it the column's type: check it, choose operator class and name."""
    if not isinstance(table, Table):
        return
    column = next(iter(index.columns))
    index.check(column.type, index.metric)
    storage, _ = shape_of(column.type)
    index.dialect_kwargs["postgresql_ops"] = {column.key: index.metric.opclass(storage)}
    if index.declared_name is None:
        index.name = _default_name(column, index.access_method)
