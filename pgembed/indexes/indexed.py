"""What a vector index holds of each row: the column, or an expression over it that is smaller.

An expression is written once, as the SQLAlchemy expression of the index. A search orders by the same
expression, over the column on one side and over the query on the other, so that the planner finds the index,
and then sorts the candidates that come back by the distance of the whole vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Column, Index, Integer, cast, func, literal_column, text
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.sql.elements import ColumnElement, Grouping, Label, TextClause
from sqlalchemy.sql.selectable import FromClause
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.sql.visitors import replacement_traverse

from pgembed.columns.types import VectorType, shape_of
from pgembed.constants import OVERSAMPLE
from pgembed.exc import DeclarationError
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.metrics import BY_NAME, Metric, metrics_of

Quantize: TypeAlias = Literal["half", "bit"]

#: The key under which an index knows the operator class of an expression.
EXPRESSION = "indexed"


@dataclass(frozen=True)
class Indexed:
    """A vector index as searches see it.

    :ivar column: the vector column.
    :ivar expression: what is indexed: the column, or an expression over it.
    :ivar storage: the type of the expression: ``"vector"``, ``"halfvec"``, ``"sparsevec"`` or ``"bit"``.
    :ivar metric: the metric of the operator class; ``None`` for one that pgembed does not know.
    :ivar where: the predicate of a partial index.
    :ivar oversample: how many candidates are compared again for each requested row; 1 where the index holds
        whole vectors, whose distances are the right ones.
    """

    index: Index
    column: Column[Any]
    expression: ColumnElement[Any]
    storage: str
    dimensions: int | None
    metric: Metric | None
    where: ColumnElement[bool] | None
    oversample: int

    @property
    def whole(self) -> bool:
        """Whether it holds the vectors themselves."""
        return self.expression is self.column

    @property
    def search_metric(self) -> Metric | None:
        """The metric of the searches that it was declared for, where that can be told."""
        stated: Metric | None = getattr(self.index, "metric", self.metric)
        served = stated is not None and stated.name in metrics_of(shape_of(self.column.type)[0])
        return stated if served else None

    @property
    def value_size(self) -> int | None:
        """Bytes of one indexed value; ``None`` for a sparsevec, whose values take 8 for each number but 0."""
        if self.dimensions is None or self.storage == "sparsevec":
            return None
        if self.storage == "bit":
            return (self.dimensions + 7) // 8 + 8
        return {"vector": 4, "halfvec": 2}[self.storage] * self.dimensions + 8

    def serves(self, metric: Metric) -> bool:
        """Whether it finds candidates for searches by ``metric``: bits of vectors do for any metric."""
        if self.whole or self.storage != "bit":
            return self.metric is metric
        return self.metric is not None and self.metric.name == "hamming"

    def over(self, vector: ColumnElement[Any]) -> ColumnElement[Any]:
        """The indexed expression over another vector than the column: one of an alias, or of a query."""
        if self.whole:
            return vector
        replaced: ColumnElement[Any] = replacement_traverse(
            self.expression, {}, lambda element, **_: vector if element is self.column else None
        )
        return replaced

    def distance(self, vector: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[float]:
        """SQL: the distance that the index orders by, of the column (or an alias's) and a query."""
        assert self.metric is not None
        return self.metric.between(self.over(vector), self.over(other))

    def predicate(self, selectable: FromClause) -> ColumnElement[bool] | None:
        """Its predicate, over the table or an alias of it.

        ``None`` for a text where the columns of several tables meet, which it may not tell apart.
        """
        assert self.where is not None
        if selectable is self.column.table:
            return self.where
        is_text = isinstance(self.where, Grouping) and isinstance(self.where.element, TextClause)
        if is_text and getattr(selectable, "element", None) is not self.column.table:
            return None
        adapted: ColumnElement[bool] = ClauseAdapter(selectable).traverse(self.where)
        return adapted

    def candidates(self, rows: int, ef_search: int | None = None) -> int:
        """How many rows to take from the index, of which the ``rows`` nearest are kept.

        HNSW looks at ``ef_search`` rows anyway: a higher setting compares more of them again.
        """
        return rows if self.whole else max(rows * self.oversample, ef_search or 0)


def indexed(index: Index) -> Indexed | None:
    """What a vector index holds, one of pgembed's or a plain :class:`sqlalchemy.Index`.

    ``None`` for an index of another access method, or on something else than one vector column.
    """
    options = index.dialect_options["postgresql"]
    if options["using"] not in ACCESS_METHODS:
        return None
    elements: list[Any] = list(index.expressions)
    columns = list(index.columns)
    if len(elements) != 1 or len(columns) != 1:
        return None
    column: Column[Any] = columns[0]
    expression = bare(elements[0])
    try:
        storage, dimensions = shape_of(expression.type)
        shape_of(column.type)
    except (DeclarationError, AttributeError):  # not of a vector, or a piece of text
        return None
    named = options["ops"] or {}
    opclass = named.get(getattr(elements[0], "key", None)) or named.get(column.name)
    opclass = opclass or ACCESS_METHODS[options["using"]].default_opclass
    whole = expression is column
    stated = getattr(index, "oversample", None)
    return Indexed(
        index=index,
        column=column,
        expression=expression,
        storage=storage,
        dimensions=dimensions,
        metric=next((metric for metric in BY_NAME.values() if metric.opclass(storage) == opclass), None),
        where=_condition(options["where"]),
        oversample=1 if whole else stated or OVERSAMPLE[storage],
    )


def expression_of(
    column: Column[Any], quantize: Quantize | None, dimensions: int | None
) -> ColumnElement[Any]:
    """What an index with these options holds of a column::

        subvector(embedding, 1, 256)::vector(256)           -- dimensions=256
        embedding::halfvec(384)                             -- quantize="half"
        binary_quantize(embedding)::bit(384)                -- quantize="bit"

    :raises DeclarationError: the type of the column has no such expression.
    """
    storage, present = shape_of(column.type)
    vector: ColumnElement[Any] = column
    if quantize not in (None, "half", "bit"):
        raise DeclarationError(f'quantize={quantize!r}; expected "half" or "bit"')
    if dimensions is not None:
        if storage not in ("vector", "halfvec"):
            raise DeclarationError(
                f"dimensions= takes a part of a vector or halfvec, {column} is a {storage}"
            )
        if not isinstance(dimensions, int) or not 1 <= dimensions <= (present or dimensions):
            raise DeclarationError(
                f"dimensions={dimensions!r}; {column} has {present}, counted from the first"
            )
        vector = func.subvector(column, literal_column("1"), literal_column(str(dimensions), Integer))
    elif quantize is None:
        return column
    length = dimensions or present
    if length is None:
        raise DeclarationError(
            f"{column} needs a fixed number of dimensions, as in Vector(384); an index on "
            "dimensions=256 of them takes the first of a column without"
        )
    if quantize == "bit":
        if storage not in ("vector", "halfvec"):
            raise DeclarationError(
                f'quantize="bit" takes the signs of a vector or halfvec, {column} is a {storage}'
            )
        return cast(func.binary_quantize(vector), BIT(length))
    if quantize == "half" and storage != "vector":
        raise DeclarationError(f'quantize="half" halves a vector, {column} is a {storage}')
    return cast(vector, VectorType(length, "halfvec" if quantize == "half" else storage))  # type: ignore[arg-type]


def element_of(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    """An expression as an element of an index: in parentheses, with a name for its operator class."""
    return Grouping(expression).label(EXPRESSION)


def bare(element: Any) -> Any:
    """An element of an index without its name and parentheses."""
    while isinstance(element, Label | Grouping):
        element = element.element
    return element


def _condition(where: Any) -> ColumnElement[bool] | None:
    """A text in parentheses: it may contain OR, and is joined to other conditions."""
    found = text(where) if isinstance(where, str) else where
    return Grouping(found) if isinstance(found, TextClause) else found
