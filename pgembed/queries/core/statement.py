"""The statements that searches return: selects that refuse what would act on the wrong rows."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVarTuple, cast

from sqlalchemy import Label, Select, and_, select
from sqlalchemy.sql.elements import ColumnElement, _anonymous_label
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CTE, FromClause, Join, SelectBase

from pgembed.exc import LateClauseError, QueryError
from pgembed.queries.core.subject import Subject, keys_of

_Ts = TypeVarTuple("_Ts")

if TYPE_CHECKING:
    # What SQLModel's session.exec() takes; where SQLModel is not installed, this is Any to type checkers.
    from sqlmodel.sql.expression import Select as SQLModelSelect

    class _Select(SQLModelSelect[*_Ts], Select[*_Ts]): ...

    class Entity(Any):  # type: ignore[misc]
        """An entity or a key, which type checkers cannot tell from a column: it passes for any type.

        (With ``Any`` itself, they could not choose among the overloads of ``session.execute()``, and
        distances would be ``Any`` too.)
        """

else:
    Entity = Any

    class _Select(Select):
        # SQLAlchemy 2.0 has one type parameter, 2.1 any number of them: type checkers see those of 2.1.
        inherit_cache = True

        def __class_getitem__(cls, _types):
            return cls


def refused(method: str, reason: str) -> Any:
    def refuse(self: SearchSelect[*tuple[Any, ...]], *_: Any, **__: Any) -> NoReturn:
        raise LateClauseError(method, reason.format(helper=self.helper))

    refuse.__name__ = method
    refuse.__doc__ = f"Refused: {reason.format(helper='the helper')}."
    return refuse


_WHERE = "it would filter after the LIMIT and leave too few rows; pass where= to {helper}()"
_LIMIT = "the search has to know how many rows are wanted; pass limit= and offset= to {helper}()"
_ORDER = "rows come best first; to sort them otherwise, select from its .subquery()"
LOCK = "{helper}() computes its rows; to lock those of a table, select them by their keys"
_AGGREGATE = "an aggregate takes rows without an order: select it from the .subquery()"
_PAIRS = "its rows are found already; pass where= to {helper}(), or select from its .subquery()"
#: The aggregates of rows without more that SQL needs (count(*) OVER () is none of them).
_AGGREGATES = {"count", "sum", "avg", "min", "max", "array_agg", "string_agg", "aggregate_strings"}
_AGGREGATES |= {"json_agg", "jsonb_agg", "bool_and", "bool_or"}
_GROUP = "it would act after the LIMIT; select from its .subquery(), or count votes with knn_classify()"


class OwnLabel(Label[Any]):
    """A column that a search adds to those of its entity, such as ``score``."""

    inherit_cache = True


def _as_from(method: str) -> Any:
    build = getattr(Select, method)

    def as_from(self: SearchSelect[*tuple[Any, ...]], *args: Any, **kwargs: Any) -> Any:
        return build(self._unambiguous(), *args, **kwargs)

    as_from.__name__ = method
    as_from.__doc__ = build.__doc__
    return as_from


class SearchSelect(_Select[*_Ts]):
    """A ``Select`` whose LIMIT has been decided within.

    It is executed, joined, extended by columns and loader options, and made a subquery like any other. What
    would filter, cut or sort the rows that the search has chosen raises
    :class:`~pgembed.exc.LateClauseError`, which says what to use instead.

    ``.with_for_update()`` locks the rows of the entity that was searched.

    Where its columns stand beside the entity's (rows of a Core table, a subquery), those of the entity keep
    their names, and ``score`` of the search becomes ``score_1`` beside another ``score``.
    """

    inherit_cache = True
    #: The function that made the statement, for messages.
    helper = "semantic_search"

    where = refused("where", _WHERE)
    filter = refused("filter", _WHERE)
    filter_by = refused("filter_by", _WHERE)
    limit = refused("limit", _LIMIT)
    offset = refused("offset", _LIMIT)
    fetch = refused("fetch", _LIMIT)
    slice = refused("slice", _LIMIT)
    order_by = refused("order_by", _ORDER)
    having = refused("having", _GROUP)
    group_by = refused("group_by", _GROUP)
    distinct = refused("distinct", _GROUP)

    if not TYPE_CHECKING:

        def __getstate__(self):
            # Elsewhere, it is a statement and no more.
            return super().__getstate__() | {"_page": None, "_legs": ()}

        subquery = _as_from("subquery")
        alias = _as_from("alias")
        cte = _as_from("cte")
        lateral = _as_from("lateral")

        def with_for_update(self, *, of=None, **options):
            # The subquery that has found the rows cannot be locked, nor what an outer join may lack.
            return super().with_for_update(of=self._searched if of is None else of, **options)

        def add_columns(self, *entities):
            self._refuse_aggregates("add_columns", entities)
            return super().add_columns(*entities)

        def with_only_columns(self, *entities, **options):
            self._refuse_aggregates("with_only_columns", entities)
            return super().with_only_columns(*entities, **options)

    @classmethod
    def sealing(
        cls,
        statement: Select[Any],
        searched: Any = None,
        /,
        legs: Sequence[Any] = (),
        page: Any = None,
        **own: ColumnElement[Any],
    ) -> Self:
        """``statement`` as a search; the statement given is left as it is.

        :param searched: the entity whose rows it selects.
        :param legs: the searches that it is made of, to explain it by: by vectors, and the subjects of those
            by words.
        :param page: the search and the base select, where the search can be asked for another page.
        :param own: the columns that the search adds.
        """
        taken = {described["name"] for described in statement.column_descriptions} if own else ()
        labels = (OwnLabel(free_name(name, taken), column) for name, column in own.items())
        copy: Any = statement.add_columns(*labels)
        copy.__class__ = cls
        copy._searched = searched
        copy._legs = legs
        copy._page = page
        return cast("Self", copy)

    def _refuse_aggregates(self, method: str, entities: Collection[Any]) -> None:
        for entity in entities:
            found = entity.element if isinstance(entity, Label) else entity
            if isinstance(found, FunctionElement) and getattr(found, "name", None) in _AGGREGATES:
                raise LateClauseError(method, _AGGREGATE)

    def _unambiguous(self) -> Self:
        """The same rows with names that are told apart where entities are spelt out as columns."""
        own = [column for column in self._raw_columns if isinstance(column, OwnLabel)]
        if not own:
            return self
        others = [column for column in self._raw_columns if not isinstance(column, OwnLabel)]
        spelt = select(*others).selected_columns
        taken = {*spelt.keys(), *(str(getattr(column, "name", "")) for column in spelt)}
        renamed: Any = self.execution_options()
        renamed._raw_columns = [
            OwnLabel(free_name(column.name, taken), column.element)
            if isinstance(column, OwnLabel)
            else column
            for column in self._raw_columns
        ]
        return cast("Self", renamed)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it if it is taken."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(free for free in names if free not in taken)


class Votes(SearchSelect[*_Ts]):
    """The statement of ``knn_classify``: its rows may be cut, as in ``.limit(1)``, for the voting is over."""

    inherit_cache = True
    helper = "knn_classify"

    with_for_update = refused("with_for_update", LOCK)

    if TYPE_CHECKING:

        def limit(self, limit: Any) -> Self: ...
        def offset(self, offset: Any) -> Self: ...

    else:
        limit = Select.limit
        offset = Select.offset
        fetch = Select.fetch
        slice = Select.slice


class DuplicatePairs(Votes[*_Ts]):
    """The statement of ``near_duplicates``: its rows may be cut and sorted."""

    inherit_cache = True
    helper = "near_duplicates"

    where = refused("where", _PAIRS)
    filter = refused("filter", _PAIRS)
    filter_by = refused("filter_by", _PAIRS)
    having = refused("having", _PAIRS)
    group_by = refused("group_by", _PAIRS)

    if not TYPE_CHECKING:
        order_by = Select.order_by
        distinct = Select.distinct


def selecting(
    subject: Subject,
    base: Select[Any] | None,
    found: FromClause,
    *,
    helper: str,
    first: Sequence[ColumnElement[Any]] = (),
) -> Select[Any]:
    """``base``, or a select of the entity, of the rows whose keys are in ``found``.

    Parts are selected behind the entity that they belong to.

    :param first: columns of ``found`` that come before what is selected.
    :raises QueryError: the base filters or sorts by itself, or does not select from the entity.
    """
    same = and_(*(key == other for key, other in zip(subject.keys, keys_of(subject, found), strict=True)))
    selected = _selected(subject) if base is None else _checked(subject, base, helper)
    joined: Any = selected.join_from(subject.entity, found, same)
    joined._raw_columns = [*first, *joined._raw_columns]
    return cast("Select[Any]", joined)


def _selected(subject: Subject) -> Select[Any]:
    owner = subject.owner
    if owner is None:
        return select(subject.entity)
    return select(owner.entity, subject.entity).join(owner.attribute)


def _checked(subject: Subject, base: Select[Any], helper: str) -> Select[Any]:
    """:raises QueryError: not a select, filters or sorts by itself, or does not select from the entity."""
    if not isinstance(base, Select):
        raise QueryError(f"base={base!r}; expected a select, as in select(Article.id, Article.title)")
    clauses = {
        "WHERE": (base._where_criteria, f"pass where= to {helper}()"),
        "GROUP BY": (base._group_by_clauses, "group a select from the search's .subquery()"),
        "HAVING": (base._having_criteria, "group a select from the search's .subquery()"),
        "DISTINCT": (base._distinct, "select from the search's .subquery()"),
        "ORDER BY": (base._order_by_clauses, "rows come in the order of the search"),
        "LIMIT": (base._limit_clause is not None or base._fetch_clause is not None, "pass limit= instead"),
        "OFFSET": (base._offset_clause is not None, "pass offset= instead"),
        "FOR UPDATE": (base._for_update_arg is not None, "call .with_for_update() on the search"),
    }
    for clause, (present, instead) in clauses.items():
        if present:
            raise QueryError(f"base= has a {clause} of its own, which would act on the rows found: {instead}")
    froms = {table for found in base.get_final_froms() for table in _tables(found)}
    if not froms & set(_tables(subject.selectable)):
        owner = subject.owner
        if owner is not None and froms & set(_tables(owner.selectable)):
            return base.join(owner.attribute)
        raise QueryError(
            f"base= does not select from {subject.selectable}, whose rows are searched: start it with "
            "select(...) of the searched entity, or .select_from() it"
        )
    return base


def _tables(found: FromClause) -> list[FromClause]:
    return [*_tables(found.left), *_tables(found.right)] if isinstance(found, Join) else [found]


def materialized(statement: SelectBase, name: str) -> CTE:
    """``pgembed_<name>_1 AS MATERIALIZED (statement)``: a name that no table of the user's has.

    The number is given when the statement is compiled, so that several searches can meet in one statement.
    (``statement.cte().prefix_with(...)`` would be called after an object that is gone by then, whose place
    in memory, and thereby its name, may be taken over by another one.)
    """
    label = _anonymous_label.safe_construct(id(statement), f"pgembed_{name}")
    return statement.cte(label).prefix_with("MATERIALIZED")
