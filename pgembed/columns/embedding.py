"""What an embedding column is: the declaration, and the declaration bound to the columns of a table."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import CHAR, NCHAR, Column, Enum, Index, String, Table
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from pgembed.columns import digest
from pgembed.columns.composition import rendered
from pgembed.columns.names import shortened
from pgembed.columns.text_encoder import TextEncoder
from pgembed.columns.types import on_postgres
from pgembed.columns.values import Storage
from pgembed.columns.words import Words, WordsColumn
from pgembed.exc import DeclarationError
from pgembed.metrics import Metric

Fill: TypeAlias = Literal["flush", "worker"]
OnError: TypeAlias = Literal["raise", "pending"]
OnDuplicate: TypeAlias = Literal["raise", "return"]

#: The key in ``Column.info`` under which a vector column carries its declaration.
INFO = "pgembed"
#: The key for the keys of the source columns, once they are known.
SOURCES = "pgembed.sources"


class IndexDeclaration(Protocol):
    """What a column needs of ``index=``; :class:`pgembed.HNSW` is one."""

    def check(self, type_: TypeEngine[Any], metric: Metric) -> None: ...
    def bound_to(self, column: Column[Any], metric: Metric) -> Index: ...


@dataclass(frozen=True, eq=False)
class Embedding:
    """The arguments of :func:`pgembed.embedding_column`, checked; shared by all copies of the column."""

    sources: tuple[str, ...]
    encoder: TextEncoder = field(repr=False)
    template: str | None
    metric: Metric
    storage: Storage
    index: IndexDeclaration | None
    fill: Fill
    on_error: OnError
    deferred: bool
    replaces: str | None = None
    words: Words | None = None
    unique_within: float | None = None
    unique_per: tuple[str, ...] = ()
    duplicate_of: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """All attributes that are read: the sources, and those of ``words`` behind them."""
        return (*self.sources, *(self.words.sources if self.words else ()))

    @property
    def fingerprint(self) -> str:
        """The encoder's.

        :raises DeclarationError: the encoder's fingerprint is not a string.
        """
        fingerprint = self.encoder.fingerprint
        if not isinstance(fingerprint, str) or not fingerprint:
            raise DeclarationError(
                f"encoder {self.encoder.name!r} has the fingerprint {fingerprint!r}; expected a text that "
                "changes when the vectors of documents do"
            )
        return fingerprint

    @cached_property
    def recipe(self) -> str:
        """What the digest knows of the encoder and the template.

        :raises DeclarationError: as :attr:`fingerprint`.
        """
        return digest.recipe(self.fingerprint, self.template)

    def compose(self, texts: Sequence[str | None]) -> str:
        """The text to encode, composed from those of the sources.

        With a template, its fields are filled in (NULL as the empty text); without one, the texts that are
        neither NULL nor empty are joined by newlines.
        """
        if self.template is None:
            return "\n".join(text for text in texts if text)
        return rendered(self.template, dict(zip(self.sources, texts, strict=True)))

    def digest(self, texts: Sequence[str | None]) -> uuid.UUID | None:
        """The digest that a vector of these texts is stored with."""
        return digest.digest(self.recipe, texts)


@dataclass(frozen=True, eq=False)
class Freshness(ABC):
    """What is made of the texts of each row of a table, and the digest that says of which texts it was made.

    Attributes are column objects of ``table``; :meth:`held`, :meth:`wanted` and :meth:`pending` are SQL over
    them, or over columns of the same names, those of an alias of the table for example.
    """

    declaration: Embedding
    table: Table
    digest: Column[Any]
    sources: tuple[Column[Any], ...]

    def __post_init__(self) -> None:
        for source in self.read:
            if source.table is not self.table:
                raise DeclarationError(
                    f"{self}: the source {source.name!r} belongs to the table {source.table}, not to "
                    f"{self.table}; declare {self.kind} on the class that has the source, or "
                    "copy the text into a column of this table"
                )
            _check_source(str(self), source)
        if not self.table.primary_key.columns:
            raise DeclarationError(f"{self}: the table has no primary key, which pending rows are found by")

    def __str__(self) -> str:
        return f"{self.table.fullname}.{self.name}"

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is called in messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the database calls it, beside its table."""

    @abstractmethod
    def held(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[Any]:
        """SQL: the digest of the texts that it was made of; NULL where there is nothing."""

    @abstractmethod
    def lacking(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[bool]:
        """SQL: there is nothing, not even of an older text."""

    @property
    def read(self) -> tuple[Column[Any], ...]:
        """All columns that are read; see :attr:`Embedding.read`."""
        return self.sources

    @property
    def facts(self) -> dict[str, Any]:
        """What its registration holds beside what all registrations do."""
        return {}

    @property
    def pending_index_name(self) -> str:
        """Name of the index of the pending rows, shortened where Postgres would cut it."""
        return shortened(f"ix_{self.table.name}_{self.name}_pending")

    def wanted(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[Any]:
        """SQL: the digest of what the sources hold now."""
        c = self.table.c if columns is None else columns
        return digest.digest_sql(self.declaration.recipe, [c[source.key] for source in self.sources])

    def pending(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[bool]:
        """SQL: it is not made of the texts of now. Never NULL; served by the pending index."""
        return self.held(columns).is_distinct_from(self.wanted(columns))


@dataclass(frozen=True, eq=False)
class EmbeddingColumn(Freshness):
    """An embedding bound to a table: the vector column, its digest column and its source columns."""

    vector: Column[Any]
    words: WordsColumn | None = None
    links: tuple[Column[Any], ...] = ()

    @property
    def kind(self) -> str:
        return "the embedding column"

    @property
    def name(self) -> str:
        return str(self.vector.name)

    @property
    def read(self) -> tuple[Column[Any], ...]:
        named = self.declaration.words is not None and self.declaration.words.sources
        return (*self.sources, *(self.words.sources if self.words and named else ()))

    def held(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[Any]:
        c = self.table.c if columns is None else columns
        return digest.held_sql(c[self.vector.key], c[self.digest.key], [c[link.key] for link in self.links])

    def lacking(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[bool]:
        c = self.table.c if columns is None else columns
        found: ColumnElement[bool] = c[self.vector.key].is_(None)
        return found

    @property
    def facts(self) -> dict[str, Any]:
        facts = {"duplicate_of": [link.name for link in self.links]} if self.links else {}
        if self.words is None:
            return facts
        words = self.words.declaration
        return facts | {
            "words": {
                "column": self.words.column.name,
                "statistics": self.words.statistics.name,
                "config": words.config,
                "k1": words.k1,
                "b": words.b,
            }
        }


class PendingIndex(Index):
    """The index of the pending rows: on the primary key, partial, and so empty when all is fresh.

    On another database than Postgres it would hold all rows, and ``create_all`` leaves it out.
    """

    inherit_cache = True

    def __init__(self, embedding: Freshness) -> None:
        self.embedding = embedding
        super().__init__(
            embedding.pending_index_name,
            *embedding.table.primary_key.columns,
            postgresql_where=embedding.pending(),
        )
        self.ddl_if(callable_=on_postgres)


#: Tables with an embedding whose sources or key are still to be found, and what looks again.
unsettled: WeakKeyDictionary[Table, Callable[[Table], None]] = WeakKeyDictionary()


def embeddings_of(table: Table) -> tuple[EmbeddingColumn, ...]:
    """The embeddings of ``table``, in the order of its columns.

    :raises DeclarationError: one has a source that the table does not have, or the table has no primary key.
    """
    settle = unsettled.get(table)
    if settle is not None:
        settle(table)
    return bound_in(table)


def fresh_of(table: Table) -> tuple[Freshness, ...]:
    """All that is filled from the texts of ``table``, in the order of their digests.

    :raises DeclarationError: as :func:`embeddings_of`.
    """
    embeddings_of(table)
    found = {index.embedding.digest: index.embedding for index in _pending_indexes(table)}
    return tuple(found[column] for column in table.c if column in found)


def bound_in(table: Table) -> tuple[EmbeddingColumn, ...]:
    """The embeddings that have their pending index on ``table``."""
    found = {
        embedding.vector: embedding
        for index in _pending_indexes(table)
        if isinstance(embedding := index.embedding, EmbeddingColumn)
    }
    return tuple(found[column] for column in table.c if column in found)


def _pending_indexes(table: Table) -> Iterator[PendingIndex]:
    return (index for index in table.indexes if isinstance(index, PendingIndex))


def bound(column: Any) -> EmbeddingColumn | None:
    """The embedding that ``column`` is the vector of, or ``None`` for any other column.

    :raises DeclarationError: as :func:`embeddings_of`.
    """
    table = getattr(column, "table", None)
    if not isinstance(table, Table):
        return None
    return next((embedding for embedding in embeddings_of(table) if embedding.vector is column), None)


def _check_source(owner: str, source: Column[Any]) -> None:
    """Only plain text is the same in Python and in SQL, and its digest immutable."""
    kind: Any = source.type
    changes = False
    while isinstance(kind, TypeDecorator):
        changes = changes or type(kind).process_bind_param is not TypeDecorator.process_bind_param
        kind = kind.impl
    if changes:
        reason = "it changes texts on their way into the database, so that Python and SQL see different ones"
    elif isinstance(kind, Enum):
        reason = "the text of an enum can be renamed, so Postgres does not call the cast immutable"
    elif isinstance(kind, CHAR | NCHAR):
        reason = "Postgres pads CHAR with blanks, so that the text differs from the one that was written"
    elif not isinstance(kind, String):
        reason = "it is not a text type"
    elif source.computed is not None and source.computed.persisted is not True:
        raise DeclarationError(
            f"{owner}: the source {source.name!r} is a generated column that Postgres 18 does not store, so "
            "that it cannot be indexed; declare it as Computed(..., persisted=True)"
        )
    else:
        return
    raise DeclarationError(
        f"{owner}: the source {source.name!r} has the type {source.type!r}: {reason}. Expected Text or "
        "String; a generated column, Computed(..., persisted=True), can hold the text of anything else"
    )
