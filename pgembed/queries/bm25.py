"""The ranking of declared words: BM25, computed in SQL over a stored tsvector and a table of statistics.

BM25 as Lucene and bm25s (its method "lucene") have it, k1 and b being those of ``words=``::

    score = sum over the question's lexemes of idf * tf / (tf + k1 * (1 - b + b * length / mean_length))
    idf = ln(1 + (rows - n + 0.5) / (n + 0.5))

A lexeme that the question has twice counts twice. Lengths and frequencies are those of the tsvector, whose
positions end at 255 for each lexeme. Unnesting it would cost 50 us a row, so both are read from ``ts_rank``,
from which they come back exactly: for one lexeme and weights of 1 it is sum(1/i^2 for i = 1..tf) * 6/pi^2,
whose distance to 1 is (to within 0.05 in tf) 6/pi^2 / (tf + 0.5); its normalisation 2 divides by the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Float,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    not_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, array
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Select, Subquery

from pgembed import constants
from pgembed.columns.words import WordsColumn, separated
from pgembed.queries.nearest import literal_rows
from pgembed.queries.statement import materialized
from pgembed.queries.subject import Subject, keys_of

_DOUBLE = Float(53)
_ONES: ColumnElement[Any] = literal_column("CAST('{1,1,1,1}' AS real[])")
#: With their type, without which SQLAlchemy divides by numerics.
_ZERO, _HALF, _ONE, _LIMIT = (
    literal_column(f"{number!r}::float8", _DOUBLE) for number in (0.0, 0.5, 1.0, 6 / math.pi**2)
)


def best_matches(
    subject: Subject,
    words: WordsColumn,
    terms: ColumnElement[str],
    conditions: Sequence[ColumnElement[bool]],
    rows: int,
) -> Subquery:
    """The rows that match best: ``key_1``, ..., ``text_score``, in no order.

    ::

        WITH question AS MATERIALIZED (<lexemes, idf, what to look for>),
        candidates AS MATERIALIZED (
            SELECT key_1, (SELECT sum(<BM25>) FROM unnest(<queries>, <idfs>)) AS text_score FROM (
                SELECT id AS key_1, embedding_words AS words, <k1 * (1 - b + b * length / mean)> AS norm
                FROM article WHERE embedding_words @@ <rare lexemes> AND <conditions> OFFSET 0)
            ORDER BY text_score DESC, key_1 LIMIT <rows>)
        SELECT * FROM candidates WHERE NOT <short>
        UNION ALL (<the same of all lexemes> AND <short> ...)

    Candidates are the rows that have one of the rarest lexemes, as many lexemes as give some thousands of
    rows, or the next ones all together where those are too frequent alone. ``short`` is that these are fewer
    than the rows asked for. Statistics that were never refreshed are counted as the question needs them.
    """
    question = _question(words, terms)
    vector = subject.own(words.column)
    first = _scored(subject, words, vector, question, question.c.rare, conditions, rows)
    candidates = materialized(first, "candidates")
    short = (
        select(and_(func.count() < rows, select(question.c.rare != question.c.all).scalar_subquery()))
        .select_from(candidates)
        .scalar_subquery()
    )
    every = _scored(subject, words, vector, question, question.c.all, [*conditions, short], rows)
    return union_all(select(candidates).where(not_(short)), every).subquery()


def _scored(
    subject: Subject,
    words: WordsColumn,
    vector: ColumnElement[Any],
    question: CTE,
    wanted: ColumnElement[Any],
    conditions: Sequence[ColumnElement[bool]],
    rows: int,
) -> Select[Any]:
    """The best of the rows that match ``wanted``."""
    either = select(question.c.all).scalar_subquery()
    length = func.round(
        func.ts_rank(vector, either, type_=_DOUBLE)
        / func.nullif(func.ts_rank(vector, either, literal_column("2")), _ZERO, type_=_DOUBLE),
        type_=_DOUBLE,
    )
    k1, b = words.declaration.k1, words.declaration.b
    mean = select(question.c.mean_length).scalar_subquery()
    norm = literal(k1 * (1 - b), _DOUBLE) + literal(k1 * b, _DOUBLE) * length / mean
    # OFFSET keeps the length from being computed for each lexeme.
    matches = (
        select(
            *(key.label(f"key_{n}") for n, key in enumerate(subject.keys, 1)),
            vector.label("words"),
            norm.label("norm"),
        )
        .where(vector.op("@@", is_comparison=True)(select(wanted).scalar_subquery()), *conditions)
        .offset(literal_column("0"))
        .subquery()
    )
    lexemes = (
        func.unnest(
            select(question.c.queries).scalar_subquery(), select(question.c.weights).scalar_subquery()
        )
        .table_valued(column("query", TSQUERY), column("weight", _DOUBLE))
        .render_derived()
    )
    rank = func.ts_rank(_ONES, matches.c.words, lexemes.c.query, type_=_DOUBLE)
    frequency = func.round(_LIMIT / (_ONE - rank) - _HALF, type_=_DOUBLE)
    score = (
        select(
            func.sum(
                lexemes.c.weight / (_ONE + matches.c.norm / func.nullif(frequency, _ZERO, type_=_DOUBLE))
            )
        )
        .select_from(lexemes)
        .correlate(matches)
        .scalar_subquery()
        .label("text_score")
    )
    keys = keys_of(subject, matches)
    return select(*keys, score).order_by(score.desc(), *keys).limit(literal_rows(rows))


def _question(words: WordsColumn, terms: ColumnElement[str]) -> CTE:
    """One row: ``queries`` and ``weights`` of the lexemes (arrays), ``rare`` and ``all`` (to look for), and
    ``mean_length``. All are NULL where the question has no lexeme."""
    statistics, table = words.statistics.alias(), words.column.table.alias()
    column_words = table.c[words.column.key]
    whole = words.statistics.alias()
    known = select(whole.c.rows).where(whole.c.lexeme == literal_column("''")).scalar_subquery()
    total = func.coalesce(known, select(func.count()).select_from(table).scalar_subquery())
    read = lexemes_of(words.config, separated(terms)).alias("read")
    # A question does not wait for the first refresh: what it needs is counted through the index.
    counted = (
        select(func.count())
        .select_from(table)
        .where(column_words.op("@@", is_comparison=True)(quoted(read.c.lexeme).cast(TSQUERY)))
        .correlate(read)
        .scalar_subquery()
    )
    # Words that only one row has are not in the statistics, nor are those that have come since.
    rows = case((known.is_(None), counted), else_=func.coalesce(statistics.c.rows, literal_column("1")))
    asked = (
        select(
            quoted(read.c.lexeme).label("quoted"),
            func.cardinality(read.c.positions).label("times"),
            cast(func.greatest(rows, _ONE), _DOUBLE).label("n"),
            cast(total, _DOUBLE).label("rows"),
        )
        .select_from(read.outerjoin(statistics, statistics.c.lexeme == read.c.lexeme))
        .subquery()
    )
    rarest = (asked.c.n, asked.c.quoted)
    running = select(
        asked.c.quoted,
        asked.c.times,
        asked.c.n,
        func.greatest(asked.c.rows, asked.c.n, type_=_DOUBLE).label("rows"),
        func.sum(asked.c.n).over(order_by=rarest).label("so_far"),
        (
            literal(constants.WORDS_WORK, _DOUBLE)
            / (literal(constants.WORDS_OVERHEAD, _DOUBLE) + func.count().over())
        ).label("budget"),
    ).subquery()
    c = running.c
    share = func.sum(func.ln(c.n / c.rows)).filter(c.so_far > c.budget).over(order_by=(c.n, c.quoted))
    graded = select(
        *running.c,
        (c.so_far <= c.budget).label("alone"),
        # The first that is too frequent, and further ones as long as rows enough have them all.
        ((c.so_far - c.n <= c.budget) | (c.rows * func.exp(share) >= c.budget)).label("together"),
    ).subquery()
    c = graded.c
    together = func.string_agg(c.quoted, literal_column("' & '")).filter(and_(c.together, not_(c.alone)))
    alone = func.string_agg(c.quoted, literal_column("' | '")).filter(c.alone)
    rare = func.concat_ws(
        literal_column("' | '"),
        alone,
        literal_column("'('").op("||")(together).op("||")(literal_column("')'")),
    )
    idf = func.ln(_ONE + (c.rows - c.n + _HALF) / (c.n + _HALF))
    return materialized(
        select(
            func.array_agg(c.quoted.cast(TSQUERY)).label("queries"),
            func.array_agg(c.times * idf, type_=ARRAY(_DOUBLE)).label("weights"),
            func.nullif(rare, literal_column("''")).cast(TSQUERY).label("rare"),
            func.string_agg(c.quoted, literal_column("' | '")).cast(TSQUERY).label("all"),
            _mean_length(words).label("mean_length"),
        ),
        "question",
    )


def _mean_length(words: WordsColumn) -> ColumnElement[Any]:
    """As of the last refresh, or of the first rows; never zero."""
    whole, table = words.statistics.alias(), words.column.table.alias()
    known = select(whole.c.mean_length).where(whole.c.lexeme == literal_column("''")).scalar_subquery()
    first = select(table.c[words.column.key].label("words")).order_by(*table.primary_key)
    some = first.limit(literal_column(str(constants.WORDS_SAMPLE))).subquery()
    entries = func.unnest(some.c.words).table_valued("lexeme", "positions", "weights").render_derived()
    length = select(func.sum(func.cardinality(entries.c.positions))).correlate(some).scalar_subquery()
    sampled = select(func.avg(func.coalesce(length, literal_column("0")))).select_from(some).scalar_subquery()
    return func.greatest(cast(func.coalesce(known, sampled), _DOUBLE), _ONE, type_=_DOUBLE)


def lexemes_of(config: ColumnElement[Any], terms: ColumnElement[str]) -> Any:
    """The lexemes of a text, as a table: ``lexeme``, ``positions``."""
    vector = func.to_tsvector(config, terms)
    return func.unnest(vector).table_valued("lexeme", "positions", "weights").render_derived()


def quoted(lexeme: ColumnElement[Any]) -> ColumnElement[Any]:
    """A lexeme as it is written in a tsquery, whatever characters it has."""
    return cast(func.array_to_tsvector(array([lexeme])), Text)
