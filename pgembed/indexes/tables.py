"""Vector indexes and their tables: what an index becomes when it meets its table, also the copy of one, and
which indexes a column has."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Column, Index, MetaData, Table, event
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.schema import conv

from pgembed.columns.embedding import INFO
from pgembed.columns.names import NAMES, shortened, written
from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.indexed import EXPRESSION, Indexed, element_of, expression_of, indexed
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.parts import parts_of

#: An index, or a column, mapped attribute or relationship to parts that one is declared on.
IndexTarget: TypeAlias = Index | Column[Any] | QueryableAttribute[Any]

#: The key in ``Column.info``, which every copy of a column keeps, of the indexes to declare on a copy too.
_INDEXES = "pgembed.indexes"

#: SQLAlchemy's own convention for the names of indexes, which every MetaData has that states none.
_NO_CONVENTION = MetaData().naming_convention["ix"]


def vector_index_of(column: Column[Any]) -> Index | None:
    """The approximate index that is declared on ``column``, ours or a plain :class:`sqlalchemy.Index`.

    Of several, that on the whole vectors of all rows.
    """
    found = indexes_on(column)
    return found[0].index if found else None


def indexes_on(column: Column[Any]) -> list[Indexed]:
    """What the approximate indexes hold that are declared on ``column``: those of all rows first, then those
    of whole vectors, then those of smaller values that lose least."""
    indexes = column.table.indexes if isinstance(column.table, Table) else ()
    found = [each for index in indexes if (each := indexed(index)) is not None and each.column is column]
    return sorted(
        found,
        key=lambda each: (each.where is not None, not each.whole, each.oversample, str(each.index.name)),
    )


def access_method_of(index: Index) -> str:
    """The access method of an index: ``"hnsw"``, ``"ivfflat"``, ``"btree"``, ..."""
    return index.dialect_options["postgresql"]["using"] or "btree"


def name_of(index: Index) -> str:
    """The name of an index in the database: a long one is shortened on the way there."""
    rendered: str = NAMES.format_index(index)
    return rendered[1:-1].replace('""', '"') if rendered.startswith('"') else rendered


def relation_of(index: Index) -> str:
    """The table of an index, as SQL writes it."""
    return written(_table(index))


def _table(index: Index) -> Table:
    if index.table is None:
        raise DeclarationError(f"{index.name or type(index).__name__} is not an index of a table yet")
    return index.table


def declared_index(target: IndexTarget) -> Index:
    """The vector index meant by ``target``.

    :raises DeclarationError: no index is declared on the column, or it is neither an index nor a column.
    """
    if isinstance(target, Index):
        return target
    mapped = getattr(getattr(target, "property", None), "columns", None)
    parts = parts_of(target)
    column = mapped[0] if mapped else target if parts is None else parts.vector
    if not isinstance(column, Column):
        raise DeclarationError(
            f"expected an index, or the column that it is declared on (Article.embedding), got {target!r}"
        )
    index = vector_index_of(column)
    if index is None:
        raise DeclarationError(f"no vector index is declared on {column}; declare it with index=HNSW()")
    return index


def what_is_indexed(index: Index) -> Indexed:
    """What a declared index holds.

    :raises DeclarationError: it is not on one vector column, nor on an expression over one.
    """
    found = indexed(index)
    if found is None:
        raise DeclarationError(f"{index.name} is not an index on one vector column, which is needed here")
    return found


def stated_parameters(index: Index) -> dict[str, Any]:
    """The storage parameters that a declaration states, ``"auto"`` among them."""
    return dict(getattr(index, "parameters", None) or index.dialect_options["postgresql"]["with"] or {})


def parameters_of(index: Index) -> dict[str, int]:
    """The storage parameters of a declared index that are known, pgvector's defaults included."""
    stated = index.dialect_options["postgresql"]["with"] or {}
    known = ACCESS_METHODS.get(access_method_of(index))
    return (known.defaults if known else {}) | {name: int(value) for name, value in stated.items()}


@event.listens_for(VectorIndex, "after_parent_attach", propagate=True)
def _attached(index: VectorIndex, table: Any) -> None:
    """The table is known, and with it the column's type: check it, choose expression, operators and name."""
    if not isinstance(table, Table):
        return
    column = next(iter(index.columns), None)
    if column is None:
        name = type(index).__name__
        raise DeclarationError(
            f'{name}() of {table.name} names no column; expected one, as in {name}("embedding")'
        )
    metric = index.metric
    index.check(column.type, metric)
    expression = expression_of(column, index.quantize, index.dimensions)
    key = column.key
    if expression is not column:
        index.expressions = index._table_bound_expressions = [element_of(expression)]
        key = EXPRESSION
    opclass = index._operators(metric).opclass(shape_of(expression.type)[0])
    index.dialect_kwargs["postgresql_ops"] = {key: opclass}
    if index.declared_name is None and table.metadata.naming_convention["ix"] == _NO_CONVENTION:
        index.name = _default_name(index, column)
    for other in table.indexes:
        same_name = other is not index and other.name == index.name
        if same_name and isinstance(other, VectorIndex) and other._options() != index._options():
            raise DeclarationError(
                f"{table.name} has two vector indexes called {index.name}: name them with name="
            )
    # As with Column(index=True), Table.to_metadata leaves it to the column; it would make a plain Index.
    index._column_flag = True
    column.info[_INDEXES] = (*column.info.get(_INDEXES, ()), index)


@event.listens_for(Table, "after_parent_attach")
def _table_complete(table: Table, _parent: MetaData) -> None:
    """Declare on a copied table what was declared on the original, but for what embedding columns declare."""
    for column in table.c:
        for index in column.info.pop(_INDEXES, ()):
            if index.table is table:
                column.info[_INDEXES] = (*column.info.get(_INDEXES, ()), index)
            elif INFO not in index.info:
                index.bound_to(column, index.metric)


def _default_name(index: VectorIndex, column: Column[Any]) -> conv:
    forms = [str(form) for form in (index.dimensions, index.quantize) if form is not None]
    return shortened("_".join(["ix", column.table.name, column.name, index.access_method, *forms]))
