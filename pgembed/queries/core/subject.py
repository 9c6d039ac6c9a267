"""What is searched: the entity or table, its vector column, its key, and how distances are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, and_, func, inspect, literal_column, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import ColumnProperty, Mapped, QueryableAttribute
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Alias, FromClause, Select, Subquery
from sqlalchemy.sql.util import ClauseAdapter
from sqlalchemy.sql.visitors import cloned_traverse, iterate

from pgembed.columns import Embedding, EmbeddingColumn, bound
from pgembed.columns.embedding import INFO
from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, MetricNotSupportedError, QueryError
from pgembed.indexes import Indexed, indexes_on
from pgembed.metrics import Metric, metrics_of
from pgembed.metrics import metric as metric_named
from pgembed.parts import PartsTable, parts_with
from pgembed.queries.core.arguments import choice, conditions
from pgembed.queries.core.owners import Owner, owner_of

#: A mapped attribute (of a class or of an alias), or a column of a Core table or of its alias.
VectorColumn: TypeAlias = Mapped[Any] | ColumnElement[Any]


@dataclass(frozen=True)
class Subject:
    """A vector column, ready to be searched.

    :ivar entity: what ``select()`` takes: a mapped class, an alias of one, a table or an alias of one.
    :ivar selectable: the FROM clause of the entity.
    :ivar vector: the vector column as an expression over the entity.
    :ivar column: the table's column behind it.
    :ivar keys: the primary key as expressions over the entity.
    :ivar indexes: the approximate indexes that are declared on the column and serve the metric.
    :ivar parts: what declares the vectors, where they are those of parts.
    :ivar owner: whose parts are searched, where that is asked for.
    """

    entity: Any
    selectable: FromClause
    vector: ColumnElement[Any]
    column: Column[Any]
    keys: tuple[ColumnElement[Any], ...]
    storage: str
    dimensions: int | None
    metric: Metric
    embedding: EmbeddingColumn | None
    indexes: tuple[Indexed, ...]
    parts: PartsTable | None = None
    owner: Owner | None = None

    def __str__(self) -> str:
        return str(self.column)

    @property
    def declaration(self) -> Embedding | None:
        """How the column is filled; ``None`` for a column without an encoder."""
        return self.column.info.get(INFO) if self.parts is None else self.parts.declaration

    def distance(self, other: Any) -> ColumnElement[float]:
        """SQL: the distance of the entity's vector to ``other``."""
        return self.metric.between(self.vector, other)

    def conditions(
        self, where: Any, stale: str, asked: FromClause | None = None
    ) -> list[ColumnElement[bool]]:
        """What a row must fulfil to take part at all: ``where=`` and ``stale=``.

        :param asked: the rows that hold the queries, to whose columns ``where`` may refer as well.
        :raises QueryError: ``where`` refers to other tables, or ``stale`` cannot be known.
        """
        found = conditions(where)
        if asked is not None:
            own = self._froms | self._of_owner
            adapter = ClauseAdapter(asked, include_fn=lambda part: own.isdisjoint(part._from_objects))
            found = [correlated(adapter.traverse(each), [asked, *own]) for each in found]
        for each in found:
            self.check_own(each, "where=", asked, self._of_owner)
        choice("stale", stale, ("include", "exclude"))
        fresh = [self._fresh()] if stale == "exclude" else []
        if self.owner is None:
            return [*found, *fresh]
        of_owner = [self._is_of_owner(each) for each in found]
        owned = [each for each, is_owned in zip(found, of_owner, strict=True) if is_owned]
        found = [each for each, is_owned in zip(found, of_owner, strict=True) if not is_owned]
        if not owned and not self.owner.is_subclass:
            return [*found, *fresh]
        return [*found, *fresh, self.owner.having(owned, [] if asked is None else [asked])]

    @property
    def _of_owner(self) -> frozenset[FromClause]:
        return frozenset() if self.owner is None else self.owner.froms

    def _is_of_owner(self, expression: Any) -> bool:
        return not self._of_owner.isdisjoint(select(expression).get_final_froms())

    def over(self, expression: Any, what: str) -> Any:
        """An expression over the entity: one over the owner of parts becomes one over the part.

        :raises QueryError: it is over other tables.
        """
        self.check_own(expression, what, None, self._of_owner)
        return self.owner.value(expression) if self.owner and self._is_of_owner(expression) else expression

    @property
    def _froms(self) -> set[FromClause]:
        return set(select(*self.keys).get_final_froms())

    def check_own(
        self, expression: Any, what: str, asked: FromClause | None = None, also: Set[FromClause] = frozenset()
    ) -> None:
        """Refuse an expression over other tables: it would multiply the rows that are searched.

        :param asked: the rows that hold the queries, which may be referred to.
        :param also: what else may be referred to.
        :raises QueryError: ``expression`` refers to a table outside of the entity.
        """
        own = self._froms | {asked} | also
        referred = select(*self.keys).where(expression).get_final_froms()
        foreign = [
            str(found.element if isinstance(found, Alias) else found)
            for found in referred
            if found not in own
        ]
        if foreign and asked is not None:
            raise QueryError(
                f"{what} refers to {', '.join(foreign)}; expected columns of {_name(self.entity)}, and "
                "columns that the select of the queries has: add them to it, behind the vector"
            )
        if foreign:
            instead = (
                "Put the other table into EXISTS: Article.author.has(...), Article.tags.any(...) or "
                "exists().where(...)"
                if what == "where="
                else "Pass a subquery for a value of another table: "
                "select(Author.country).where(Author.id == Article.author_id).scalar_subquery()"
            )
            raise QueryError(
                f"{what} refers to {', '.join(foreign)}, and the rows searched are those of "
                f"{_name(self.entity)} alone. {instead}"
            )

    def _fresh(self) -> ColumnElement[bool]:
        if self.parts is not None:
            text = self.parts.table.alias()
            fresh: Select[Any] = select(literal_column("1"))
            fresh = fresh.where(self.of_text(text), ~self.parts.pending(text.c))
            return fresh.correlate(self.selectable).exists()
        if self.embedding is None:
            raise QueryError(
                f'stale="exclude" needs a column declared with embedding_column(); {self} has no digest that '
                "would say what its vectors were made from"
            )
        fresh_row: ColumnElement[bool] = ~self.own(self.embedding.pending())
        return fresh_row

    def of_text(self, text: FromClause, parts: FromClause | None = None) -> ColumnElement[bool]:
        """SQL: a row of the table of a text has the part.

        :param parts: those meant, instead of the parts that are searched.
        """
        assert self.parts is not None
        owner = [self.own(column) if parts is None else parts.c[column.key] for column in self.parts.owner]
        keys = self.parts.table.primary_key
        return and_(*(text.c[key.key] == column for key, column in zip(keys, owner, strict=True)))

    def own(self, expression: Any) -> Any:
        """An expression over the table as one over the entity, which may be an alias."""
        if self.selectable is self.column.table:
            return expression
        return ClauseAdapter(self.selectable).traverse(expression)


def resolve(
    column: VectorColumn, metric: str | None = None, *, keys: Sequence[ColumnElement[Any]] = ()
) -> Subject:
    """Find out what ``column`` is a column of.

    :param metric: how to measure; ``None`` for the column's own metric (that of its embedding, else that of
        its index, else cosine).
    :param keys: what identifies a row of a Core table; its primary key if left out.
    :raises QueryError: not a vector column of a mapped class or a table, or no primary key.
    :raises DeclarationError: a column of another type.
    :raises MetricNotSupportedError: no such metric, or not for values of this type.
    """
    owner = owner_of(column)
    found: Any = column if owner is None else owner.vector
    try:
        inspected = inspect(found) if isinstance(found, QueryableAttribute) else None
    except NoInspectionAvailable:
        inspected = None
    if inspected is not None:
        entity, selectable, base, key = _mapped(inspected)
    elif isinstance(column, ColumnElement) and isinstance(getattr(column, "table", None), FromClause):
        entity, selectable, base, key = _core(column, keys)
    else:
        raise QueryError(
            f"{column!r} is not a column; expected one such as Article.embedding or table.c.embedding"
        )
    try:
        storage, dimensions = shape_of(base.type)
    except DeclarationError as error:
        raise DeclarationError(f"{base} cannot be searched: {error}") from None
    embedding = bound(base)
    parts = parts_with(base)
    declaration: Embedding | None = base.info.get(INFO) if parts is None else parts.declaration
    candidates = indexes_on(base)
    if metric is not None:
        chosen = metric_named(metric)
    elif declaration is not None:
        chosen = declaration.metric
    else:
        of_index = next((each.search_metric for each in candidates if each.search_metric), None)
        chosen = of_index or metric_named(metrics_of(storage)[0])
    if chosen.name not in metrics_of(storage):
        raise MetricNotSupportedError(chosen.name, metrics_of(storage), by=f"{base}, a {storage} column,")
    return Subject(
        entity=entity,
        selectable=selectable,
        vector=found,
        column=base,
        keys=key,
        storage=storage,
        dimensions=dimensions,
        metric=chosen,
        embedding=embedding,
        indexes=tuple(each for each in candidates if each.serves(chosen)),
        parts=parts,
        owner=owner,
    )


def correlated(condition: ColumnElement[bool], froms: Sequence[FromClause]) -> ColumnElement[bool]:
    """The condition with its subqueries correlated to what is outside of the search's own subquery as well,
    which SQLAlchemy would take for a table that they select from.

    As SQLAlchemy does it, a subquery that selects from one table alone means that table, and what stands in
    FROM or is a CTE refers to nothing outside.
    """

    def correlate(inner: Any) -> None:
        selected = inner.get_final_froms()
        if len(selected) == 1 and not isinstance(selected[0], CTE):
            return
        inner._correlate = (*(inner._correlate or ()), *froms)
        inner._auto_correlate = False

    apart = [each for each in iterate(condition) if isinstance(each, Subquery | CTE)]
    return cloned_traverse(condition, {"stop_on": apart}, {"select": correlate})


def keys_of(subject: Subject, found: FromClause) -> list[ColumnElement[Any]]:
    """The columns of a result that hold the key of the entity."""
    return [found.c[f"key_{n}"] for n in range(1, len(subject.keys) + 1)]


def key_of(keys: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    """The columns of a key as one value: a composite key is a JSON array."""
    return keys[0] if len(keys) == 1 else func.jsonb_build_array(*keys, type_=JSONB)


def differ(keys: Sequence[ColumnElement[Any]], others: Iterable[Any]) -> ColumnElement[bool]:
    """SQL: whether rows with these keys are two."""
    return ~and_(true(), *(key == other for key, other in zip(keys, others, strict=True)))


def _mapped(attribute: Any) -> tuple[Any, FromClause, Column[Any], tuple[ColumnElement[Any], ...]]:
    prop = getattr(attribute, "property", None)
    if not isinstance(prop, ColumnProperty) or not isinstance(prop.columns[0], Column):
        raise QueryError(f"{attribute} is not a column attribute; expected one such as Article.embedding")
    parent = attribute.parent
    mapper, entity = parent.mapper, parent.entity
    keys = tuple(getattr(entity, mapper.get_property_by_column(key).key) for key in mapper.primary_key)
    return entity, parent.selectable, prop.columns[0], keys


def _core(
    column: ColumnElement[Any], keys: Sequence[ColumnElement[Any]]
) -> tuple[Any, FromClause, Column[Any], tuple[ColumnElement[Any], ...]]:
    selectable: FromClause = column.table
    base = next((found for found in column.base_columns if isinstance(found, Column)), None)
    if base is None:
        raise QueryError(f"{column} does not come from a table's column")
    key = tuple(keys or selectable.primary_key)
    if not key:
        raise QueryError(f"{selectable} has no primary key, which the rows found are told apart by")
    return selectable, selectable, base, key


def _name(entity: Any) -> str:
    return getattr(entity, "__name__", None) or str(entity)
