"""Index declarations: real :class:`sqlalchemy.Index` objects that know what pgvector can do."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Literal, Self, TypeAlias

from sqlalchemy import Column, Index, text
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import replacement_traverse
from sqlalchemy.types import TypeEngine

from pgembed.columns.conditions import check_sql
from pgembed.columns.embedding import INFO
from pgembed.columns.types import on_postgres, shape_of
from pgembed.exc import DeclarationError, MetricNotSupportedError
from pgembed.indexes.indexed import Indexed, Quantize, expression_of, indexed
from pgembed.indexes.methods import AccessMethod, access_method
from pgembed.metrics import BY_NAME, Metric, metrics_of
from pgembed.metrics import metric as metric_named

Build: TypeAlias = Literal["deferred", "immediate"]


class VectorIndex(Index):
    """An index of any access method in :data:`pgembed.indexes.methods.ACCESS_METHODS`.

    Without a column it is a declaration for ``embedding_column(index=...)``, which binds a copy of it to the
    column and its metric. With a column it is an index for ``__table_args__``, on any pgvector column.

    Rows load several times faster without it, so ``create_all`` leaves it out: build it once there is
    something to index, with :func:`pgembed.indexes.create`. Until then searches are exact.

    :param columns: one vector column, or its name; none in ``embedding_column(index=...)``.
    :param using: the access method.
    :param parameters: its storage parameters.
    :param metric: left out, that of the embedding column; of other columns ``"cosine"``, or for bits
        ``"hamming"``.
    :param quantize: ``"half"`` indexes ``embedding::halfvec(n)``, half the size; ``"bit"`` indexes
        ``binary_quantize(embedding)::bit(n)``, the signs, 1/32 of the size. Searches sort what comes back by
        the whole vectors.
    :param dimensions: index the first N dimensions, ``subvector(embedding, 1, n)::vector(n)``, for
        vectors whose first dimensions say most (Matryoshka); sorted again by the whole vectors too.
    :param oversample: how many candidates to compare again for each requested row; left out, 2 of
        ``quantize="half"``, 10 of ``"bit"``, 4 of ``dimensions=``.
    :param where: the predicate of a partial index, as SQL text or as an expression over the table's columns.
    :param name: left out, the naming convention of the MetaData, or else
        ``ix_<table>_<column>_<access method>``, with ``_half``, ``_bit`` or the number of dimensions.
    :param build: ``"deferred"``, or ``"immediate"`` to have ``create_all`` create it.
    :raises DeclarationError: what the access method would refuse, with its limit.
    :raises MetricNotSupportedError: it has no operator class for the metric and the type.
    """

    inherit_cache = True

    def __init__(
        self,
        *columns: Any,
        using: str,
        parameters: Mapping[str, int | str] | None = None,
        metric: str | None = None,
        quantize: Quantize | None = None,
        dimensions: int | None = None,
        oversample: int | None = None,
        where: str | ColumnElement[bool] | None = None,
        name: str | None = None,
        build: Build = "deferred",
    ) -> None:
        self.method: AccessMethod = access_method(using)
        if len(columns) > 1:
            raise DeclarationError(f"{self.kind} indexes one vector column, found {len(columns)}")
        if build not in ("deferred", "immediate"):
            raise DeclarationError(f'build={build!r}; expected "deferred" or "immediate"')
        if oversample is not None and not (isinstance(oversample, int) and 1 <= oversample <= 100):
            raise DeclarationError(f"oversample={oversample!r}; expected 1 to 100")
        if oversample is not None and quantize is None and dimensions is None:
            raise DeclarationError("oversample= is for quantize= and dimensions=; whole vectors need none")
        if isinstance(where, str):
            check_sql(where, within=True)
        self.declared_metric = None if metric is None else metric_named(metric)
        self.declared_name = name
        self.quantize = quantize
        self.dimensions = dimensions
        self.oversample = oversample
        self.where = where
        self.build = build
        self.parameters: dict[str, int | str] = dict(parameters or {})
        self.method.check_parameters(self.parameters)
        super().__init__(
            name,
            *columns,
            postgresql_using=using,
            postgresql_with=self.numbers,
            postgresql_where=text(where) if isinstance(where, str) else where,
        )
        self.ddl_if(callable_=_never if build == "deferred" else on_postgres)

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        own = type(self) is not VectorIndex
        return type(self).__name__ if own else self.method.name

    @property
    def access_method(self) -> str:
        """The name of its access method."""
        return self.method.name

    @property
    def numbers(self) -> dict[str, int]:
        """The storage parameters that are known now; ``lists="auto"`` is not among them."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, int)}

    def parameters_for(self, rows: int) -> dict[str, int]:
        """The storage parameters of an index that is built on that many rows."""
        return self.method.parameters_for(self.parameters, rows)

    @property
    def indexed(self) -> Indexed:
        """What it holds of each row: expression, type, dimensions, predicate. For an index on a table."""
        found = indexed(self)
        assert found is not None, "it was checked when it met its table"
        return found

    @property
    def metric(self) -> Metric:
        """The metric of the searches that it serves, once it is on a column."""
        if self.declared_metric is not None:
            return self.declared_metric
        column = next(iter(self.columns), None)
        if column is None:
            return metric_named("cosine")
        declaration = column.info.get(INFO)
        if declaration is not None:
            found: Metric = declaration.metric
            return found
        return metric_named(metrics_of(shape_of(column.type)[0])[0])

    def check(self, type_: TypeEngine[Any], metric: Metric) -> None:
        """Refuse what pgvector would refuse, and what no query could use.

        :raises MetricNotSupportedError: the access method does not serve the metric.
        :raises DeclarationError: another metric than the column's, or a column that cannot be indexed.
        """
        if self.declared_metric not in (None, metric):
            raise DeclarationError(
                f"{self.kind} is declared for the metric {self.metric.name} and the column for "
                f"{metric.name}: no query of the column would use it. Leave the metric of the index out"
            )
        column: Column[Any] = Column("the column", type_)
        storage, dimensions = shape_of(expression_of(column, self.quantize, self.dimensions).type)
        given = shape_of(type_)[0]
        if metric.name not in metrics_of(given):
            raise MetricNotSupportedError(metric.name, metrics_of(given), by=f"a {given} column")
        if storage not in self.method.metrics:
            known = ", ".join(self.method.metrics)
            raise DeclarationError(f"{self.kind} does not index {storage}; it indexes {known}")
        if self._operators(metric).name not in self.method.metrics[storage]:
            supported = self.method.metrics[storage]
            raise MetricNotSupportedError(metric.name, supported, by=f"{self.kind} on {storage}")
        if dimensions is None:
            raise DeclarationError(
                f"{self.kind} needs a column with a fixed number of dimensions, as in Vector(384)"
            )
        least = self.method.least.get(self._operators(metric).name, 1)
        if dimensions < least:
            raise DeclarationError(
                f"{self.kind} needs at least {least} dimensions for {metric.name}, found {dimensions}"
            )
        limit = self.method.dimensions[storage]
        if dimensions > limit:
            raise DeclarationError(
                f"{self.kind} indexes at most {limit} dimensions of a {storage}, found {dimensions}. "
                + self._wider(given, dimensions)
            )

    def _wider(self, given: str, dimensions: int) -> str:
        """What takes more dimensions."""
        limits = self.method.dimensions
        ways = []
        if given == "vector" and self.quantize is None and dimensions <= limits.get("halfvec", 0):
            ways.append(f'type="halfvec" or quantize="half" allows {limits["halfvec"]}')
        if given in ("vector", "halfvec") and self.quantize != "bit" and dimensions <= limits.get("bit", 0):
            ways.append(f'quantize="bit" allows {limits["bit"]}')
        if given in ("vector", "halfvec"):
            ways.append("dimensions= indexes the first of them, and the encoder's dimensions= keeps fewer")
        return "; ".join(ways)

    def _operators(self, metric: Metric) -> Metric:
        """The metric of the operator class: bits are compared by bits, whatever the vectors are."""
        return BY_NAME["hamming"] if self.quantize == "bit" else metric

    def bound_to(self, column: Column[Any], metric: Metric) -> Self:
        """This declaration as an index on ``column``, attached to its table."""
        arguments = self._arguments()
        if isinstance(self.where, ColumnElement):
            arguments["where"] = _over(self.where, column.table)
        return type(self)(column, **{**arguments, "metric": metric.name})

    def with_parameters(self, parameters: Mapping[str, int]) -> Self:
        """The same index of the same table with other storage parameters, as an element of DDL."""
        other = copy(self)
        for memoized in ("dialect_options", "dialect_kwargs"):  # the second by older versions of SQLAlchemy
            other.__dict__.pop(memoized, None)
        other.parameters = dict(parameters)
        for name, value in self.dialect_kwargs.items():
            other.dialect_kwargs[name] = value
        other.dialect_kwargs["postgresql_with"] = dict(parameters)
        return other

    def _arguments(self) -> dict[str, Any]:
        """What it was constructed with."""
        return {**self._options(), "using": self.method.name, "parameters": self.parameters}

    def _options(self) -> dict[str, Any]:
        names = ("quantize", "dimensions", "oversample", "where", "build")
        return {name: getattr(self, name) for name in names} | {"name": self.declared_name}


class HNSW(VectorIndex):
    """A pgvector HNSW index (https://github.com/pgvector/pgvector#hnsw; Malkov and Yashunin 2016).

    ::

        CREATE INDEX ix_article_embedding_hnsw ON article USING hnsw (embedding vector_cosine_ops)
        WITH (m = 16, ef_construction = 64)

    :param m: connections of a node, 2 to 100.
    :param ef_construction: size of the candidate list while building, 4 to 1000 and at least 2 m.
    :param options: those of :class:`VectorIndex`: ``metric``, ``quantize``, ``dimensions``, ``oversample``,
        ``where``, ``name``, ``build``.
    :raises DeclarationError: a parameter out of its range, or a column that cannot be indexed.
    :raises MetricNotSupportedError: no operator class for the metric and the type.
    """

    inherit_cache = True

    def __init__(
        self,
        *columns: Any,
        m: int = 16,
        ef_construction: int = 64,
        metric: str | None = None,
        quantize: Quantize | None = None,
        dimensions: int | None = None,
        oversample: int | None = None,
        where: str | ColumnElement[bool] | None = None,
        name: str | None = None,
        build: Build = "deferred",
    ) -> None:
        super().__init__(
            *columns,
            using="hnsw",
            parameters={"m": m, "ef_construction": ef_construction},
            metric=metric,
            quantize=quantize,
            dimensions=dimensions,
            oversample=oversample,
            where=where,
            name=name,
            build=build,
        )

    def _arguments(self) -> dict[str, Any]:
        return {**self._options(), **self.parameters}


class IVFFlat(VectorIndex):
    """A pgvector IVFFlat index (https://github.com/pgvector/pgvector#ivfflat).

    ::

        CREATE INDEX ix_article_embedding_ivfflat ON article USING ivfflat (embedding vector_cosine_ops)
        WITH (lists = 100)

    Its lists are the clusters of the rows that are there when it is built: build it after the load, and
    again when the data has changed a lot.

    :param lists: number of clusters, 1 to 32768. ``"auto"`` counts the rows when the index is built by
        pgembed or by a migration, and takes rows / 1000, above a million rows their square root; where
        ``create_all`` or a migration's offline script creates it, pgvector's 100.
    :param options: those of :class:`VectorIndex`: ``metric``, ``quantize``, ``dimensions``, ``oversample``,
        ``where``, ``name``, ``build``.
    :raises DeclarationError: a parameter out of its range, or a column that cannot be indexed.
    :raises MetricNotSupportedError: no operator class for the metric and the type.
    """

    inherit_cache = True

    def __init__(
        self,
        *columns: Any,
        lists: int | Literal["auto"] = 100,
        metric: str | None = None,
        quantize: Quantize | None = None,
        dimensions: int | None = None,
        oversample: int | None = None,
        where: str | ColumnElement[bool] | None = None,
        name: str | None = None,
        build: Build = "deferred",
    ) -> None:
        super().__init__(
            *columns,
            using="ivfflat",
            parameters={"lists": lists},
            metric=metric,
            quantize=quantize,
            dimensions=dimensions,
            oversample=oversample,
            where=where,
            name=name,
            build=build,
        )

    def _arguments(self) -> dict[str, Any]:
        return {**self._options(), **self.parameters}


def _over(where: ColumnElement[Any], table: Any) -> ColumnElement[bool]:
    """A condition over the columns of another table of the same names."""
    columns: ColumnElement[bool] = replacement_traverse(
        where, {}, lambda element, **_: table.c.get(element.key) if isinstance(element, Column) else None
    )
    return columns


def _never(*_: Any, **__: Any) -> bool:
    return False
