"""The words of an embedding column's texts: a generated ``tsvector``, its GIN index, and their statistics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    DateTime,
    Float,
    Index,
    String,
    Table,
    Text,
    cast,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSVECTOR
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns.names import LONGEST_NAME, octets, shortened
from pgembed.columns.types import on_postgres
from pgembed.constants import WORD_SEPARATORS
from pgembed.exc import DeclarationError

#: The key in ``Column.info``, of the tsvector column and its index, for the bound :class:`WordsColumn`.
WORDS = "pgembed.words"

_PART = r"(?:\"(?:[^\"]|\"\")+\"|[^\W\d][\w$]*)"
#: The name of a text search configuration, with or without a schema, as Postgres reads it.
CONFIGURATION = re.compile(rf"{_PART}(?:\.{_PART})?")

#: As many characters of a text are read. A tsvector holds a megabyte, an entry of it takes at most four bytes
#: for each character (words of one letter beyond ASCII), and its positions end at the 16,383rd word anyway.
CHARACTERS = 130_000


@dataclass(frozen=True, init=False)
class Words:
    """How the texts of a column are searched by their words; see ``words=`` of :func:`embedding_column`.

    ::

        embedding_column("title", "body", encoder=minilm, words=Words("title", "body", config="english"))

    :param sources: names of attributes that hold text, in the same table; without any, those that the vector
        is made of.
    :param config: the text search configuration, which decides stems and stop words.
    :param k1: how slowly further occurrences of a word cease to count (BM25).
    :param b: how much long texts are discounted, from 0 (not at all) to 1 (BM25).
    :param name: of the generated column and, behind the table's name, of the table of statistics; the
        embedding column's name and ``_words`` if left out. One that outlives the embedding column keeps the
        words through a change of encoder.
    :raises DeclarationError: one of them has a value that it cannot have.
    """

    sources: tuple[str, ...]
    config: str
    k1: float
    b: float
    name: str | None

    def __init__(
        self,
        *sources: str,
        config: str = "english",
        k1: float = 1.2,
        b: float = 0.75,
        name: str | None = None,
    ) -> None:
        if not all(isinstance(source, str) for source in sources) or len(set(sources)) < len(sources):
            raise DeclarationError(f"Words{sources!r}; expected the names of different source attributes")
        if not isinstance(config, str) or not CONFIGURATION.fullmatch(config):
            raise DeclarationError(
                f"Words(config={config!r}); expected the name of a text search configuration, such as "
                "'english' or 'public.mine'"
            )
        for key, value, most in (("k1", k1, 1000), ("b", b, 1)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise DeclarationError(f"Words({key}={value!r}); expected a number from 0 to {most}")
        if name is not None and (not isinstance(name, str) or not 0 < octets(name) <= LONGEST_NAME):
            raise DeclarationError(f"Words(name={name!r}); expected a name of 1 to {LONGEST_NAME} bytes")
        for key, given in (("sources", sources), ("config", config), ("k1", float(k1)), ("b", float(b))):
            object.__setattr__(self, key, given)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, eq=False)
class WordsColumn:
    """Words bound to a table.

    :ivar column: the generated ``tsvector``.
    :ivar statistics: the table of document frequencies: a row for each word that more than one row has, and
        one for the empty word, with the number of all rows, the mean length and the time of the refresh.
    :ivar sources: the columns whose texts are read.
    """

    declaration: Words
    column: Column[Any]
    statistics: Table
    sources: tuple[Column[Any], ...]

    @property
    def config(self) -> ColumnElement[Any]:
        """The configuration as SQL."""
        return configuration_sql(self.declaration.config)


def bind_words(
    declaration: Words, table: Table, vector: Column[Any], sources: tuple[Column[Any], ...]
) -> WordsColumn:
    """Put the column, its index and the table of statistics beside an embedding column, or find them there.

    Emitted by ``create_all`` for ``article.embedding``, beside what the vector needs::

        embedding_words TSVECTOR GENERATED ALWAYS AS (
            to_tsvector('english', translate(left(coalesce(title, '') || ' ' || coalesce(body, ''), 130000),
                                             '/.-_@:~+<>&', '           '))) STORED
        CREATE INDEX ix_article_embedding_words ON article USING gin (embedding_words)
        CREATE TABLE article_embedding_words (lexeme TEXT COLLATE "C" PRIMARY KEY, rows BIGINT NOT NULL,
                                              mean_length FLOAT, refreshed_at TIMESTAMP WITH TIME ZONE)

    :raises DeclarationError: a source is generated itself, or another column has the name.
    """
    name = declaration.name or f"{vector.name}_words"
    owner = f"{table.fullname}.{vector.name}"
    for source in sources:
        if source.computed is not None:
            raise DeclarationError(
                f"{owner}: words= reads {source.name!r}, which is a generated column, and Postgres computes "
                "no generated column from another: name the columns that it is made of"
            )
    if octets(name) > LONGEST_NAME:
        raise DeclarationError(
            f"{owner}: {name!r} has more than {LONGEST_NAME} bytes: give words=Words(name=...) a shorter name"
        )
    expression = words_sql(sources, declaration.config)
    column = next((column for column in table.c if name in (column.name, column.key)), None)
    if column is None:
        column = Column(name, TSVECTOR, Computed(expression, persisted=True), nullable=True)
        table.append_column(column)
    elif WORDS in column.info and column.computed is not None:
        # Copied with its table, or bound by the names of columns where those of attributes differ.
        column.computed.sqltext = expression
    else:
        raise DeclarationError(
            f"{table.fullname}.{name} is declared as {column.type!r}, and it is the name of the words of "
            f"{vector.name}: rename it, or give words=Words(name=...) another name"
        )
    bound = WordsColumn(declaration, column, _statistics(table, name), sources)
    index = Index(shortened(f"ix_{table.name}_{name}"), column, postgresql_using="gin")
    index.ddl_if(callable_=on_postgres)
    # A part of the column, so that Table.to_metadata leaves it to the binding of the copied column.
    index._column_flag = True
    table.indexes -= {other for other in table.indexes if other is not index and other.name == index.name}
    column.info[WORDS] = index.info[WORDS] = bound
    return bound


def _statistics(table: Table, name: str) -> Table:
    statistics = shortened(f"{table.name}_{name}")
    key = statistics if table.schema is None else f"{table.schema}.{statistics}"
    present = table.metadata.tables.get(key)
    if present is not None:
        return present
    return Table(
        statistics,
        table.metadata,
        Column("lexeme", Text(collation="C"), primary_key=True),
        Column("rows", BigInteger, nullable=False),
        Column("mean_length", Float(53)),
        Column("refreshed_at", DateTime(timezone=True)),
        schema=table.schema,
        comment="how many rows have a word, as of the last refresh; written by pgembed",
    )


def configuration_sql(config: str) -> ColumnElement[Any]:
    """A configuration as a literal, which an immutable expression needs."""
    quoted = config.replace("'", "''")
    return cast(literal_column(f"'{quoted}'"), REGCONFIG)


def words_sql(sources: Sequence[ColumnElement[Any]], config: str) -> ColumnElement[Any]:
    """The expression of the generated column."""
    blank, space = literal_column("''", String), literal_column("' '", String)
    whole: ColumnElement[Any] = func.coalesce(sources[0], blank)
    for source in sources[1:]:
        whole = whole.op("||")(space).op("||")(func.coalesce(source, blank))
    beginning = func.pg_catalog.left(whole, literal_column(str(CHARACTERS)))
    return func.to_tsvector(configuration_sql(config), separated(beginning), type_=TSVECTOR)


def separated(text: ColumnElement[Any]) -> ColumnElement[Any]:
    """A text whose words are separated; see :data:`WORD_SEPARATORS`."""
    return func.pg_catalog.translate(
        text, literal_column(f"'{WORD_SEPARATORS}'"), literal_column(f"'{' ' * len(WORD_SEPARATORS)}'")
    )
