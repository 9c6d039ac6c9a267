"""Rows by the words of their texts: the leg of a keyword search, and of a hybrid one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from sqlalchemy import (
    BindParameter,
    Column,
    Dialect,
    Float,
    String,
    TypeDecorator,
    bindparam,
    cast,
    false,
    func,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY, TSVECTOR
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Subquery
from sqlalchemy.sql.visitors import iterate

from pgembed.columns.words import separated
from pgembed.constants import GROUPS_WIDER, QUESTION
from pgembed.exc import QueryError
from pgembed.indexes.readiness import holds
from pgembed.queries.core.arguments import MOST, configuration, expression, words
from pgembed.queries.core.eligibility import sql_of
from pgembed.queries.core.nearest import literal_rows
from pgembed.queries.core.subject import Subject, keys_of
from pgembed.queries.core.vectors import typed
from pgembed.queries.search.groups import best_parts, owners_of
from pgembed.queries.words.bm25 import best_matches, lexemes_of, quoted

#: A column of the type tsvector, a text column, or several text columns.
TextColumns: TypeAlias = Mapped[Any] | ColumnElement[Any] | Sequence[Mapped[Any] | ColumnElement[Any]]


#: Texts of more bytes are searched by their first characters, so many that their words fit into a tsvector
#: (of a megabyte) whatever they are: an entry takes at most 3.8 bytes for each of the text's, where short
#: words are joined by hyphens and listed whole and in parts, and 7.5 for each character, of up to 4 bytes.
_WHOLE_BYTES = 250_000
_CHARACTERS = 130_000


class QuestionType(TypeDecorator[str]):
    """The type of the words that are looked for, of which the beginning counts."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else asked("terms", value)[:QUESTION]

    def accepted(self, query: Any) -> str:
        """A question as the value of a parameter."""
        return asked("query", query)


def asked(name: str, value: Any) -> str:
    """A text to look for. A NUL character, which no text in Postgres can have, is a sign between words.

    :raises QueryError: it is not a string.
    """
    return words(name, value.replace("\0", " ") if isinstance(value, str) else value)


def matching(
    subject: Subject,
    text: TextColumns | None,
    terms: str | ColumnElement[Any],
    config: str | None,
    conditions: Sequence[ColumnElement[bool]],
    rows: int,
) -> Subquery:
    """The rows that share a word with the terms: ``key_1``, ..., ``text_score``, ``text_rank`` (from 1).

    By BM25 where words are declared, see :mod:`pgembed.queries.words.bm25`, and otherwise::

        SELECT key_1, text_score, row_number() OVER (ORDER BY text_score DESC, key_1) AS text_rank FROM (
            SELECT id AS key_1, ts_rank(<text>, <terms>, 1) AS text_score FROM article
            WHERE <text> @@ <terms> AND (octet_length(title) <= 250000 OR <indexed>) AND <conditions>
            UNION ALL
            <the same of left(title, 130000), for other rows>) AS matches
        ORDER BY text_rank LIMIT <rows>

    Of parts, it is the best one of each row that has them, with that one's key as ``owner_1``, ...; by BM25,
    of ten times as many parts as rows are asked for.

    Where an index holds the words, all of them have fitted into it. (Postgres looks at the length first,
    since ``to_tsvector`` is a hundred times as dear.) A ``tsvector`` column needs no second leg.
    """
    looked_for = terms_sql(terms)
    declared = None if subject.embedding is None else subject.embedding.words
    if text is None and declared is not None:
        if config is not None:
            raise QueryError(
                f"config={config!r} is for text=; the words of {subject} are declared in "
                f"{declared.declaration.config!r}"
            )
        parts = rows if subject.owner is None else min(GROUPS_WIDER * rows, MOST)
        matches = best_matches(subject, declared, looked_for, conditions, parts)
    else:
        chosen = _columns(subject, _sources(subject) if text is None else text)
        matches = _ranked(subject, chosen, looked_for, "english" if config is None else config, conditions)
    keys = keys_of(subject, matches)
    if subject.owner is not None:
        matches = best_parts(subject, matches, (matches.c.text_score.desc(), *keys))
        keys = keys_of(subject, matches)
    rank = func.row_number().over(order_by=(matches.c.text_score.desc(), *keys))
    return (
        select(*keys, *owners_of(matches), matches.c.text_score, rank.label("text_rank"))
        .order_by(literal_column("text_rank"))
        .limit(literal_rows(rows))
        .subquery()
    )


def _sources(subject: Subject) -> list[Any]:
    """The texts that the vectors are made of.

    :raises QueryError: nothing says which they are.
    """
    if subject.parts is not None:
        if not subject.parts.declaration.keeps_text:
            raise QueryError(
                f"the parts of {subject.parts} are stored without their texts (text=False), so that their "
                "words are not searched: use semantic_search()"
            )
        return [subject.own(subject.parts.parts.c.text)]
    if subject.embedding is None:
        raise QueryError(
            f"{subject} is not declared with embedding_column(): pass the columns of text as text=[...]"
        )
    return [subject.own(source) for source in subject.embedding.sources]


def _ranked(
    subject: Subject,
    columns: Sequence[Any],
    terms: ColumnElement[str],
    config: str,
    conditions: Sequence[ColumnElement[bool]],
) -> Subquery:
    # The configuration is a literal in the SQL, since an index on to_tsvector('english', title) only serves
    # an expression that is the same before parameters are known.
    name = configuration("config", config)
    named = cast(bindparam("config", name, String, literal_execute=True, unique=True), REGCONFIG)
    question = _any_of(terms, named)
    legs = [
        select(
            *(key.label(f"key_{n}") for n, key in enumerate(subject.keys, 1)),
            cast(func.ts_rank(vector, question, literal_column("1")), Float(53)).label("text_score"),
        ).where(vector.op("@@", is_comparison=True)(question), *gate, *conditions)
        for vector, gate in _vectors(columns, name, named)
    ]
    return (legs[0] if len(legs) == 1 else union_all(*legs)).subquery()


def _columns(subject: Subject, text: TextColumns) -> list[Any]:
    """:raises QueryError: no columns of text, or of another table."""
    columns: list[Any] = list(text) if isinstance(text, list | tuple) else [text]
    if not columns:
        raise QueryError("text= is empty; expected a tsvector column, or text columns")
    for column in columns:
        subject.check_own(expression("text", column, "Article.title").is_not(None), "text=")
        is_vector = isinstance(column.type, TSVECTOR)
        if column.type._type_affinity is not String and not is_vector:
            raise QueryError(
                f"text={column} is of the type {column.type!r}; expected a column of the type tsvector, or "
                "columns of text types (another one becomes text by sqlalchemy.cast(..., Text))"
            )
        if is_vector and len(columns) > 1:
            raise QueryError(f"text= holds several columns, and {column} is a tsvector: pass that one alone")
    return columns


def _vectors(
    columns: Sequence[Any], config: str, named: ColumnElement[Any]
) -> Iterator[tuple[Any, Sequence[ColumnElement[bool]]]]:
    """The text as tsvector, and for which rows."""
    if isinstance(columns[0].type, TSVECTOR):
        yield columns[0], ()
        return
    whole = columns[0]
    if len(columns) > 1:
        blank, space = literal_column("''", String), literal_column("' '", String)
        whole = func.coalesce(whole, blank)
        for column in columns[1:]:
            whole = whole.op("||")(space).op("||")(func.coalesce(column, blank))
    lengths = [func.coalesce(func.octet_length(column), 0) for column in columns]
    is_long = sum(lengths[1:], lengths[0]) > literal_column(str(_WHOLE_BYTES))
    indexed = _is_indexed(whole, config)
    yield func.to_tsvector(named, whole, type_=TSVECTOR), [or_(~is_long, indexed)]
    beginning = func.left(whole, literal_column(str(_CHARACTERS)))
    yield func.to_tsvector(named, beginning, type_=TSVECTOR), [is_long, ~indexed]


def _is_indexed(whole: Any, config: str) -> ColumnElement[bool]:
    """SQL: an index holds the words of the text."""
    tables = {
        base.table for found in iterate(whole) if isinstance(found, Column) for base in found.base_columns
    }
    table = next(iter(tables), None)
    sql = None if table is None or len(tables) > 1 else sql_of(whole, table)
    if table is None or sql is None:
        return false()
    name = config.removeprefix("pg_catalog.")
    return holds(table, f"to_tsvector('{name}', {sql})")


def _any_of(terms: ColumnElement[str], config: ColumnElement[Any]) -> ColumnElement[Any]:
    """The words of a question, joined by OR: joined by AND, a long question would match nothing.

    Both as Postgres reads them and apart: "dog/cat" is a path to it, no word of which is in other texts.
    """
    both = terms.op("||")(literal_column("' '")).op("||")(separated(terms))
    lexemes = lexemes_of(config, both).alias("lexemes")
    either = func.string_agg(quoted(lexemes.c.lexeme), literal_column("' | '"))
    return select(cast(either, TSQUERY)).select_from(lexemes).scalar_subquery()


def question(terms: str) -> BindParameter[str]:
    """A text to look for as a parameter."""
    return bindparam("terms", terms, QuestionType, unique=True)


def terms_sql(terms: str | ColumnElement[Any]) -> ColumnElement[str]:
    """What is looked for, as SQL: of a text the first 2,000 characters."""
    given: Any = terms
    if isinstance(terms, str):
        given = question(terms)
    elif isinstance(terms, BindParameter):
        given = terms if isinstance(terms.type, QuestionType) else typed(terms, QuestionType())
    else:
        return func.left(cast(terms, String), QUESTION)
    return cast(given, String)
