"""The full-text leg of a hybrid search: text columns as tsvector, a question as tsquery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import String, bindparam, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY, TSVECTOR
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery

from pgembed.exc import QueryError
from pgembed.queries.nearest import literal_rows
from pgembed.queries.target import Target

#: A column of the type tsvector, a text column, or several text columns.
TextColumns: TypeAlias = (
    QueryableAttribute[Any] | ColumnElement[Any] | Sequence[QueryableAttribute[Any] | ColumnElement[Any]]
)


def matching(
    target: Target,
    text: TextColumns,
    terms: str | ColumnElement[Any],
    config: str,
    conditions: Sequence[ColumnElement[bool]],
    rows: int,
) -> Subquery:
    """The rows that share a word with the terms: ``key_1``, ..., ``text_rank`` (1 is the best).

    ::

        SELECT id AS key_1, row_number() OVER (ORDER BY ts_rank_cd(<text>, <terms>) DESC, id) AS text_rank
        FROM article WHERE <text> @@ <terms> AND <conditions> ORDER BY text_rank LIMIT <rows>
    """
    # The configuration is a literal in the SQL, since an index on to_tsvector('english', title) only serves
    # an expression that is the same before parameters are known.
    named = cast(bindparam("config", config, String, literal_execute=True, unique=True), REGCONFIG)
    vector = _tsvector(target, text, named)
    question = _any_of(terms, named)
    rank = func.row_number().over(order_by=(func.ts_rank_cd(vector, question).desc(), *target.keys))
    keys = (key.label(f"key_{n}") for n, key in enumerate(target.keys, 1))
    return (
        select(*keys, rank.label("text_rank"))
        .where(vector.op("@@", is_comparison=True)(question), *conditions)
        .order_by(literal_column("text_rank"))
        .limit(literal_rows(rows))
        .subquery()
    )


def _tsvector(target: Target, text: TextColumns, config: ColumnElement[Any]) -> ColumnElement[Any]:
    columns: list[Any] = list(text) if isinstance(text, list | tuple) else [text]
    if not columns:
        raise QueryError("text= is empty; needed is a tsvector column, or text columns")
    for column in columns:
        if not isinstance(column, QueryableAttribute | ColumnElement):
            raise QueryError(f"text={column!r} is not a column; needed is one such as Article.title")
        target.check_own(column.is_not(None), "text=")
    if isinstance(columns[0].type, TSVECTOR):
        if len(columns) > 1:
            raise QueryError("text= holds several columns of which one is a tsvector: pass that one alone")
        only: ColumnElement[Any] = columns[0]
        return only
    if not all(isinstance(column.type, String) for column in columns):
        raise QueryError("text= needs a column of the type tsvector, or columns of text types")
    if len(columns) == 1:
        return func.to_tsvector(config, columns[0], type_=TSVECTOR)
    blank, space = literal_column("''", String), literal_column("' '", String)
    whole: ColumnElement[Any] = func.coalesce(columns[0], blank)
    for column in columns[1:]:
        whole = whole.op("||")(space).op("||")(func.coalesce(column, blank))
    return func.to_tsvector(config, whole, type_=TSVECTOR)


def _any_of(terms: str | ColumnElement[Any], config: ColumnElement[Any]) -> ColumnElement[Any]:
    """The words of a question, joined by OR: joined by AND, a long question would match nothing."""
    words = cast(func.plainto_tsquery(config, cast(terms, String)), String)
    either = func.replace(words, literal_column("' & '"), literal_column("' | '"))
    return cast(func.nullif(either, literal_column("''")), TSQUERY)  # a NULL matches nothing
