"""``count_within`` and ``facets``: how many rows, within a distance or by a column."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import SQLColumnExpression, func, select
from sqlalchemy.orm import Mapped

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import comparable, real
from pgembed.queries.core.nearest import Stale
from pgembed.queries.core.statement import LOCK, SearchSelect, Votes, refused
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.core.vectors import Query, query_sql

_T = TypeVar("_T")
_COUNTED = "its rows are counted already; pass where= to the search"
_COUNT = "its rows are counted already; pass where= to {helper}()"
_ONE = "{helper}() gives one row"


class Facets(Votes[_T, int]):
    """The statement of ``facets``: its rows may be cut, for the counting is over."""

    inherit_cache = True
    helper = "facets"

    where = refused("where", _COUNTED)
    filter = refused("filter", _COUNTED)
    filter_by = refused("filter_by", _COUNTED)


class Counted(SearchSelect[int]):
    """The statement of ``count_within``."""

    inherit_cache = True
    helper = "count_within"

    where = refused("where", _COUNT)
    filter = refused("filter", _COUNT)
    filter_by = refused("filter_by", _COUNT)
    limit = refused("limit", _ONE)
    offset = refused("offset", _ONE)
    with_for_update = refused("with_for_update", LOCK)


def count_within(
    column: VectorColumn,
    query: Query,
    max_distance: float,
    *,
    where: Any = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Counted:
    """How many rows are within a distance of ``query``, that distance included: one row ``(count,)``.

    ::

        session.scalar(count_within(Article.embedding, "reset my password", 0.3))

    All rows that ``where`` leaves are compared, without an index::

        SELECT count(*) FROM article WHERE embedding <=> :query <= :max_distance AND <conditions>

    :param column: as in :func:`~pgembed.queries.semantic_search`, as are the other arguments.
    :raises QueryError: at construction, for whatever cannot give the right number.
    :raises DimensionMismatchError: the vector is of other dimensions than the column.
    """
    subject = resolve(column, metric)
    most = real("max_distance", max_distance)
    vector, conditions = query_sql(subject, query)
    near = [subject.distance(vector) <= most, *subject.conditions(where, stale), *conditions]
    return Counted.sealing(select(func.count().label("count")).select_from(subject.entity).where(*near))


def facets(statement: SearchSelect[*tuple[Any, ...]], by: SQLColumnExpression[_T] | Mapped[_T]) -> Facets[_T]:
    """How many of the rows of a search have each value of a column: rows ``(value, count)``.

    ::

        found = semantic_search(Article.embedding, "printer", limit=100)
        session.execute(facets(found, Article.section)).all()

    The most frequent value comes first, equal counts in the order of the values, and NULL is one of them. The
    rows counted are those that the statement gives, up to its ``limit``; for all within a distance, pass
    ``max_distance`` and a ``limit`` that is large enough. ``.limit(5)`` gives the five most frequent values.

    :param statement: of a helper whose rows are those of an entity, such as
        :func:`~pgembed.queries.semantic_search`; of ``search_many``, the rows of all queries count.
    :param by: a column of the entity, or of what its ``base=`` joins, or an expression over them.
    :raises QueryError: another statement, or ``by`` is not of its rows.
    """
    if not isinstance(statement, SearchSelect) or getattr(statement, "_searched", None) is None:
        raise QueryError(
            f"facets() takes the statement of a search, as of semantic_search(); found {statement!r:.60}"
        )
    value: Any = comparable("by", by, "Article.section")
    counted = statement.add_columns(value.label("pgembed_value"))
    if len(counted.get_final_froms()) > len(statement.get_final_froms()):
        raise QueryError(
            f"by={by} is not a column of the rows of {statement.helper}(): join its table in base=, as in "
            "select(Article).outerjoin(Article.author)"
        )
    found = counted.subquery().c.pgembed_value
    number = func.count().label("count")
    return Facets.sealing(select(found.label("value"), number).group_by(found).order_by(number.desc(), found))
