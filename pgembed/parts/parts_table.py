"""What mapping a class makes of :func:`~pgembed.parts.part.embedding_parts`: the table of parts, its
class, and on the table of the text the digest and the pending index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    event,
)
from sqlalchemy.orm import Mapper, RelationshipProperty, deferred
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns import Freshness, PendingIndex, VectorType
from pgembed.columns.binding import add_index, defer, digest_column, forget, map_digest, mapped_sources
from pgembed.columns.names import shortened
from pgembed.exc import DeclarationError
from pgembed.parts.part import ENTITY, PARTS, Part, PartsDeclaration, declared

#: The key in the ``info`` of the relationship, and of the vectors' column, for the bound :class:`PartsTable`.
_TABLE = "pgembed.parts.table"


@dataclass(frozen=True, eq=False)
class PartsTable(Freshness):
    """A declaration of parts bound to a table.

    :ivar table: that of the text.
    :ivar called: the name of the attribute.
    :ivar parts: the table of the parts.
    :ivar owner: the columns of ``parts`` that hold the primary key of ``table``, in its order.
    """

    declaration: PartsDeclaration
    called: str
    parts: Table
    owner: tuple[Column[Any], ...]

    @property
    def kind(self) -> str:
        return "embedding_parts"

    @property
    def name(self) -> str:
        return self.called

    @property
    def vector(self) -> Column[Any]:
        """The vectors of the parts."""
        found: Column[Any] = self.parts.c.embedding
        return found

    def held(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[Any]:
        found: ColumnElement[Any] = (self.table.c if columns is None else columns)[self.digest.key]
        return found

    def lacking(self, columns: ReadOnlyColumnCollection[str, Any] | None = None) -> ColumnElement[bool]:
        return self.held(columns).is_(None)

    @property
    def facts(self) -> dict[str, Any]:
        return {"parts": {"table": self.parts.name, "how": self.declaration.how}}


def parts_of(attribute: Any) -> PartsTable | None:
    """The parts that a relationship attribute is declared with, or ``None`` for anything else.

    Their class is ``attribute.property.entity.class_``.
    """
    found: PartsTable | None = getattr(getattr(attribute, "property", None), "info", {}).get(_TABLE)
    return found


def parts_with(vector: Column[Any]) -> PartsTable | None:
    """The parts that have a column as their vectors, or ``None`` for any other column."""
    found: PartsTable | None = vector.info.get(_TABLE)
    return found if found is not None and found.vector is vector else None


def add_parts(table: Table, name: str, *sources: str, **options: Any) -> PartsTable:
    """Parts of a text in a Core table, as :func:`~pgembed.embedding_parts` declares them in a class.

    ``backfill``, workers and migrations know them; ``parts`` of the result is their table, whose
    ``c.embedding`` is searched as any other column.

    :param name: what they are called: the table is ``<table>_<name>``, the digest ``<name>_digest``.
    :param sources: the name of the column that holds the text.
    :param options: those of :func:`~pgembed.embedding_parts`, but for those of the relationship.
    :raises DeclarationError: for whatever cannot work.
    """
    declaration = declared(sources, **options)
    missing = [source for source in declaration.sources if source not in table.c]
    if missing:
        raise DeclarationError(
            f"{table.fullname}.{name}: the source {missing[0]!r} is not a column of the table; there are "
            f"{', '.join(table.c.keys())}"
        )
    return bind_parts(declaration, name, table, [table.c[source] for source in declaration.sources])


def bind_parts(
    declaration: PartsDeclaration,
    name: str,
    table: Table,
    sources: Sequence[Column[Any]],
    *,
    called: str | None = None,
) -> PartsTable:
    """Put the digest and the pending index on a table, and make the table of its parts.

    :param called: the name of the table of parts; by default ``<table>_<name>``.
    :raises DeclarationError: another table has the name of the new one.
    """
    digest = digest_column(table, name)
    keys = list(table.primary_key.columns)
    if not keys:
        raise DeclarationError(f"{table.fullname}.{name}: the table has no primary key, which parts refer to")
    called = called or shortened(f"{table.name}_{name}")
    if (called if table.schema is None else f"{table.schema}.{called}") in table.metadata.tables:
        raise DeclarationError(
            f"{table.fullname}.{name}: there is a table {called}, which is the name of its parts: rename one"
        )
    owner = [Column(f"{table.name}_{key.name}", key.type, nullable=False) for key in keys]
    parts = Table(
        called,
        table.metadata,
        Column("id", BigInteger, Identity(), primary_key=True),
        *owner,
        Column("number", Integer, nullable=False),
        Column("start", Integer, nullable=False),
        Column("end", Integer, nullable=False),
        Column("text", Text),
        Column("digest", Uuid, nullable=False),
        Column("embedding", VectorType(declaration.encoder.dimensions, declaration.storage)),
        ForeignKeyConstraint(
            owner, keys, ondelete="CASCADE", onupdate="CASCADE", deferrable=True, initially="IMMEDIATE"
        ),
        # Not with the number, whose changes would then write to every index of the table, the vectors' too.
        Index(shortened(f"ix_{called}_{'_'.join(column.name for column in owner)}"), *owner),
        schema=table.schema,
        comment=f"the parts of {table.name}.{sources[0].name} and their vectors; written by pgembed",
    )
    try:
        bound = PartsTable(declaration, table, digest, tuple(sources), name, parts, tuple(owner))
        bound.vector.info[_TABLE] = bound
        add_index(PendingIndex(bound), bound)
        if declaration.index is not None:
            declaration.index.bound_to(bound.vector, declaration.metric)
    except DeclarationError:
        table.metadata.remove(parts)
        raise
    return bound


@event.listens_for(Mapper, "after_mapper_constructed")
def _class_mapped(mapper: Mapper[Any], _class: type[Any]) -> None:
    found = [
        (key, prop)
        for key, prop in mapper._props.items()
        if isinstance(prop, RelationshipProperty) and PARTS in prop.info and prop.parent is mapper
    ]
    try:
        for key, prop in found:
            _map_parts(mapper, key, prop)
    except DeclarationError:
        forget(mapper)
        raise


def _map_parts(mapper: Mapper[Any], key: str, prop: RelationshipProperty[Any]) -> None:
    declaration: PartsDeclaration = prop.info[PARTS]
    sources = mapped_sources(mapper, key, declaration)
    bound = bind_parts(declaration, key, sources[0].table, sources)
    map_digest(mapper, key, bound.digest)
    defer(mapper, bound.digest, group=key)
    for change in ("append", "remove"):
        event.listen(getattr(mapper.class_, key), change, _refuse, propagate=True)
    owner = mapper.class_
    camel = "".join(word.capitalize() for word in key.split("_"))
    entity = type(
        f"{owner.__name__}{camel}", (Part,), {"__module__": owner.__module__, "__doc__": Part.__doc__}
    )
    mapper.registry.map_imperatively(entity, bound.parts, properties={"embedding": deferred(bound.vector)})
    prop.info.update({ENTITY: entity, _TABLE: bound})


def _refuse(target: Any, *_: Any) -> None:
    raise DeclarationError(
        f"the parts of {type(target).__name__} are written by pgembed alone: they follow from the text"
    )
