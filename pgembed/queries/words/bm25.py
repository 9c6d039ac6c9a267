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
    Integer,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, array
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Select, Subquery

from pgembed import constants
from pgembed.columns.words import WordsColumn, separated
from pgembed.queries.core.nearest import literal_rows
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, keys_of

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

        WITH asked AS MATERIALIZED (<lexemes, and how many rows have them>),
        sets AS (<lexemes, and sets of them>),
        question AS MATERIALIZED (<what to look for, and what it weighs>),
        candidates AS MATERIALIZED (
            SELECT key_1, (SELECT sum(<BM25>) FROM unnest(<queries>, <weights>)) AS text_score FROM (
                SELECT key_1, words, <k1 * (1 - b + b * length / mean)> AS norm FROM (
                    SELECT id AS key_1, ts_delete(embedding_words, '') AS words
                    FROM article WHERE embedding_words @@ <rare sets> AND <conditions> OFFSET 0) OFFSET 0)
            ORDER BY text_score DESC, key_1 LIMIT <rows>)
        SELECT * FROM candidates WHERE NOT <short>
        UNION ALL (<the same of all lexemes> AND <short> ...)

    Candidates are the rows that have a rare lexeme of the question, or two or three of its lexemes that few
    rows have together: that is what the best rows by BM25 have, and the index finds it without reading the
    rows (:func:`_sets`); of a small table, all that match. ``short`` is that these are fewer than the rows
    asked for; under conditions, which rows outside of the candidates may fulfil as well, than four times as
    many. Statistics that were never refreshed are counted as the question needs them.
    """
    question = _question(words, terms, rows, filtered=bool(conditions))
    vector = subject.own(words.column)
    believed = rows * constants.WORDS_FILTERED if conditions else rows
    candidates = materialized(
        _scored(subject, words, vector, question, question.c.rare, conditions, believed), "candidates"
    )
    short = (
        select(and_(func.count() < believed, select(question.c.partly).scalar_subquery()))
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
    # Deletes nothing: a long tsvector is read from where long values are stored once, not for each rank.
    read = func.ts_delete(vector, literal_column("''", Text))
    found = (
        select(*(key.label(f"key_{n}") for n, key in enumerate(subject.keys, 1)), read.label("words"))
        .where(vector.op("@@", is_comparison=True)(select(wanted).scalar_subquery()), *conditions)
        .offset(literal_column("0"))
        .subquery()
    )
    either = select(question.c.all).scalar_subquery()
    length = func.round(
        func.ts_rank(found.c.words, either, type_=_DOUBLE)
        / func.nullif(func.ts_rank(found.c.words, either, literal_column("2")), _ZERO, type_=_DOUBLE),
        type_=_DOUBLE,
    )
    k1, b = words.declaration.k1, words.declaration.b
    mean = select(question.c.mean_length).scalar_subquery()
    norm = literal(k1 * (1 - b), _DOUBLE) + literal(k1 * b, _DOUBLE) * length / mean
    # OFFSET keeps the length from being computed for each lexeme.
    matches = select(*found.c, norm.label("norm")).offset(literal_column("0")).subquery()
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


def _question(words: WordsColumn, terms: ColumnElement[str], rows: int, *, filtered: bool) -> CTE:
    """One row: ``queries`` and ``weights`` of the lexemes (arrays), ``rare`` and ``all`` (to look for),
    ``partly``, whether ``rare`` leaves rows out that ``all`` finds, and ``mean_length``. All but the last are
    NULL where the question has no lexeme."""
    asked = _asked(words, terms)
    sets = _sets(asked, rows, filtered=filtered)
    idf = func.ln(_ONE + (asked.c.rows - asked.c.n + _HALF) / (asked.c.n + _HALF))
    either: ColumnElement[str] = literal_column("' | '")
    # Sets that hold another set which is looked for would find nothing more.
    rare = select(func.string_agg(sets.c.said, either)).where(
        sets.c.n <= sets.c.most, sets.c.most < sets.c.wider
    )
    return materialized(
        select(
            func.array_agg(asked.c.quoted.cast(TSQUERY)).label("queries"),
            func.array_agg(asked.c.times * idf, type_=ARRAY(_DOUBLE)).label("weights"),
            rare.scalar_subquery().cast(TSQUERY).label("rare"),
            func.string_agg(asked.c.quoted, either).cast(TSQUERY).label("all"),
            (func.max(asked.c.n) > select(func.max(sets.c.most)).scalar_subquery()).label("partly"),
            _mean_length(words).label("mean_length"),
        ),
        "question",
    )


def _sets(asked: CTE, rows: int, *, filtered: bool) -> CTE:
    """Lexemes and sets of lexemes: ``said`` (as a tsquery), ``n`` (the rows that can be expected to have all
    of them, if they stood in rows independently of each other), ``wider`` (those of the set without its most
    frequent lexeme), and ``most``, up to which they are looked for.

    The score of a row is about the sum of what its lexemes weigh, and that is about ``ln(rows / n)`` of the
    set that they are. So the best rows have one of the sets that the fewest rows have; those are taken, as
    many as give some thousands of rows, and at least one; of a table that has no more rows, all. Pairs are
    made of the rarest lexemes, threes of fewer, and of four and more the rarest ones: enough for any table,
    and few enough to look for at once.
    """
    place = asked.c.place
    infinite = literal_column("CAST('Infinity' AS float8)", _DOUBLE)
    one = literal_column("1", Integer)
    sets = select(
        asked.c.quoted.label("said"), asked.c.n, infinite.label("wider"), place, one.label("size")
    ).cte(recursive=True)
    more, size = asked.alias(), sets.c.size
    paired, tripled = (
        literal_column(str(each), Integer) for each in (constants.WORDS_PAIRED, constants.WORDS_TRIPLED)
    )
    last = case((size == one, paired), (size == one + one, tripled), else_=func.least(size + one, tripled))
    sets = sets.union_all(
        select(
            sets.c.said.op("||")(literal_column("' & '")).op("||")(more.c.quoted),
            sets.c.n * more.c.n / more.c.rows,
            sets.c.n,
            more.c.place,
            size + one,
        ).join_from(sets, more, and_(more.c.place > sets.c.place, more.c.place <= last))
    )
    c = (
        select(
            *sets.c,
            func.sum(sets.c.n).over(order_by=sets.c.n).label("so_far"),
            func.min(sets.c.n).over().label("least"),
        )
        .subquery()
        .c
    )
    times = constants.WORDS_FILTERED if filtered else 1
    most = literal(float(constants.WORDS_CANDIDATES * times), _DOUBLE)
    budget = func.greatest(literal(float(rows * constants.WORDS_PER_ROW * times), _DOUBLE), most)
    is_small = select(func.max(asked.c.rows) <= most).scalar_subquery()
    taken = or_(c.so_far <= budget, c.n == c.least, is_small)
    return materialized(
        select(c.said, c.n, c.wider, func.max(c.n).filter(taken).over().label("most")), "sets"
    )


def _asked(words: WordsColumn, terms: ColumnElement[str]) -> CTE:
    """The lexemes of the question: ``quoted``, ``times`` (how often it has them), ``n`` and ``rows`` (how
    many rows have them, and of how many), ``place`` (from the rarest)."""
    statistics, table = words.statistics.alias(), words.column.table.alias()
    column_words = table.c[words.column.key]
    whole = words.statistics.alias()
    known = select(whole.c.rows).where(whole.c.lexeme == literal_column("''")).scalar_subquery()
    total = func.coalesce(known, select(func.count()).select_from(table).scalar_subquery())
    read = lexemes_of(words.config, separated(terms)).alias("read")
    # A question does not wait for the first refresh: what it needs is counted through the index.
    having = (
        select(func.count())
        .select_from(table)
        .where(column_words.op("@@", is_comparison=True)(quoted(read.c.lexeme).cast(TSQUERY)))
        .correlate(read)
        .scalar_subquery()
    )
    # Words that only one row has are not in the statistics, nor are those that have come since.
    n = case((known.is_(None), having), else_=func.coalesce(statistics.c.rows, literal_column("1")))
    counted = (
        select(
            quoted(read.c.lexeme).label("quoted"),
            func.cardinality(read.c.positions).label("times"),
            cast(func.greatest(n, _ONE), _DOUBLE).label("n"),
            cast(total, _DOUBLE).label("rows"),
        )
        .select_from(read.outerjoin(statistics, statistics.c.lexeme == read.c.lexeme))
        .offset(literal_column("0"))  # so that rows are counted once
        .subquery()
    )
    place = func.row_number().over(order_by=(counted.c.n, counted.c.quoted))
    of = func.greatest(counted.c.rows, counted.c.n, type_=_DOUBLE)
    return materialized(
        select(counted.c.quoted, counted.c.times, counted.c.n, of.label("rows"), place.label("place")),
        "asked",
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
