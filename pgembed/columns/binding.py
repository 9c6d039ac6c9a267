"""What SQLAlchemy's events make of :func:`~pgembed.columns.declaration.embedding_column`.

The column carries its declaration in ``Column.info``, which survives every copy that SQLAlchemy makes
(mixins, abstract bases, ``to_metadata``). When its table is complete, the digest column is appended; when a
class is mapped, the sources are resolved from attribute names. Both lead to :func:`_bind`, which puts the
indexes on the table; the :class:`PendingIndex` holds the bound :class:`EmbeddingColumn`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any
from weakref import WeakSet

from sqlalchemy import Column, FetchedValue, Index, MetaData, Table, Uuid, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.sql.selectable import Join

from pgembed.columns.embedding import (
    INFO,
    SOURCES,
    Embedding,
    EmbeddingColumn,
    Freshness,
    PendingIndex,
    bound_in,
    unsettled,
)
from pgembed.columns.names import LONGEST_NAME, octets
from pgembed.columns.types import copied
from pgembed.columns.words import WORDS, bind_words
from pgembed.exc import DeclarationError

_POSTGRESQL: Any = postgresql.dialect()  # type: ignore[no-untyped-call]


def _bind(table: Table, vector: Column[Any], read: tuple[Column[Any], ...]) -> EmbeddingColumn:
    """Put the columns and indexes of an embedding on its table, unless it has them, over the same sources.

    :param read: the sources, and those of ``words=`` behind them.
    """
    declaration: Embedding = vector.info[INFO]
    sources, texts = read[: len(declaration.sources)], read[len(declaration.sources) :]
    present = next((each for each in bound_in(table) if each.vector is vector), None)
    if present is not None and present.read == read:
        return present
    if declaration.replaces == vector.name:
        raise DeclarationError(
            f"{table.fullname}.{vector.name} replaces itself: the new column needs a name of its own, "
            f'name="{vector.name}_2"'
        )
    digest = digest_column(table, vector.name)
    declared = declaration.words
    words = None if declared is None else bind_words(declared, table, vector, texts or sources)
    links = _links(table, vector, declaration, sources)
    embedding = EmbeddingColumn(declaration, table, digest, sources, vector, words, links)
    vector.info[SOURCES] = tuple(column.key for column in read)
    # Constructed over columns of a table, an index attaches itself. They count as part of the column, as
    # with Column(index=True), so that Table.to_metadata leaves them to the binding of the copied column.
    add_index(PendingIndex(embedding), embedding)
    if declaration.index is not None:
        add_index(declaration.index.bound_to(vector, declaration.metric), embedding)
    return embedding


class ByGuard(FetchedValue):
    """The default of a link; migrations know it from the user's own."""


def _links(
    table: Table, vector: Column[Any], declaration: Embedding, sources: tuple[Column[Any], ...]
) -> tuple[Column[Any], ...]:
    """The columns that the key of another row is written into, by ``on_duplicate="return"``.

    The database assigns them, so that a flush gets them back from its INSERT.

    :raises DeclarationError: they cannot hold a key.
    """
    named = {column.name: column for column in table.c}
    for name in declaration.duplicate_of:
        if name not in named:
            raise DeclarationError(
                f"{table.fullname}.{vector.name}: duplicate_of names {name!r}, which is not a column of the "
                f"table; there are {', '.join(named)}"
            )
    keys, taken = table.primary_key.columns.values(), {vector, *sources, *table.primary_key.columns}
    found = tuple(named[name] for name in declaration.duplicate_of)
    if found and len(found) != len(keys):
        raise DeclarationError(
            f"{table.fullname}.{vector.name}: duplicate_of={list(declaration.duplicate_of)}; expected one "
            f"column for each of the primary key: {', '.join(key.name for key in keys)}"
        )
    others = [each for each in bound_in(table) if each.vector is not vector and {*found} & {*each.links}]
    if others:
        raise DeclarationError(
            f"{table.fullname}.{vector.name}: duplicate_of={list(declaration.duplicate_of)} is that of "
            f"{others[0]} too, whose guard would undo what this one writes; expected columns of its own"
        )
    for link, key in zip(found, keys, strict=False):
        # A foreign key may have yet to find its type.
        types = {str(each.type.compile(_POSTGRESQL)) for each in (link, key) if each.type._isnull is False}
        if link in taken or not link.nullable or link.computed is not None or len(types) > 1:
            raise DeclarationError(
                f"{table.fullname}.{vector.name}: duplicate_of names {link.name!r}; expected a column of its "
                f"own that can be NULL and has the type of {key.name!r}"
            )
        if link.server_default is None and link.server_onupdate is None:
            link.server_default, link.server_onupdate = ByGuard(), ByGuard(for_update=True)
    return found


def add_index(index: Index, owner: Freshness) -> None:
    """Make an index a part of a declaration; another of its name, of an earlier binding, is replaced.

    :raises DeclarationError: the user's own index has the name.
    """
    table = owner.table
    index._column_flag = True
    index.info[INFO] = owner.declaration
    others = {other for other in table.indexes if other is not index and other.name == index.name}
    if any(INFO not in other.info for other in others):
        raise DeclarationError(
            f"{table.fullname} has an index called {index.name}, as {owner} has: rename it"
        )
    table.indexes -= others


def digest_column(table: Table, owner: str) -> Column[Any]:
    """The column of the digest of what has the name ``owner``; it is appended where it is missing.

    :raises DeclarationError: its name is too long, or another column has it.
    """
    name = f"{owner}_digest"
    if octets(name) > LONGEST_NAME:
        room = LONGEST_NAME - octets("_digest")
        raise DeclarationError(
            f"{table.fullname}.{owner}: the name of an embedding column has {room} bytes at most, "
            f"found {octets(owner)}: Postgres would cut {name!r}, its digest, at {LONGEST_NAME}; "
            'give it a shorter one, with name="..."'
        )
    column = next((column for column in table.c if name in (column.name, column.key)), None)
    if column is None:
        column = Column(name, UUID(as_uuid=True), nullable=True)
        table.append_column(column)
    kind: Any = column.type
    fits = isinstance(kind, Uuid) and kind.as_uuid and kind.native_uuid and column.name == name
    if not fits or not column.nullable or column.computed is not None:
        null = "" if column.nullable else ", NOT NULL"
        raise DeclarationError(
            f"{table.fullname}.{name} is declared as {kind!r}{null}, and it is the name of the digest of "
            f"{owner}: rename it, or the embedding column, with name=. Declared as the digest, it is "
            "Mapped[uuid.UUID | None]"
        )
    return column


_complete: WeakSet[Table] = WeakSet()


@event.listens_for(Table, "after_parent_attach")
def _table_complete(table: Table, _parent: MetaData) -> None:
    """Append digests; bind what can be bound by the names of columns (all that a Core table needs)."""
    _complete.add(table)
    for vector in _vectors(table):
        digest_column(table, vector.name)
        keys = _source_keys(vector)
        linked = {*vector.info[INFO].duplicate_of} <= {column.name for column in table.c}
        if all(key in table.c for key in keys) and linked and table.primary_key.columns:
            _bind(table, vector, tuple(table.c[key] for key in keys))
    _note(table)


def attached(vector: Column[Any], table: Any) -> None:
    """A column that is added to a table that was complete: ``append_column``, ``extend_existing=True``."""
    if table in _complete and INFO in vector.info:
        _table_complete(table, table.metadata)


def _vectors(table: Table) -> list[Column[Any]]:
    return [column for column in table.c if INFO in column.info]


def _source_keys(vector: Column[Any]) -> tuple[str, ...]:
    keys: tuple[str, ...] = vector.info.get(SOURCES, vector.info[INFO].read)
    return keys


def _note(table: Table) -> None:
    """Remember whether a table has an embedding that is still to be bound: its sources may be attributes of a
    class that is not mapped yet, or columns that are added later."""
    if {*_vectors(table)} == {each.vector for each in bound_in(table)}:
        unsettled.pop(table, None)
    else:
        unsettled[table] = _settle


def _settle(table: Table) -> None:
    """
    :raises DeclarationError: an embedding cannot be bound, now that the table is used.
    """
    for vector in {*_vectors(table)} - {each.vector for each in bound_in(table)}:
        keys = _source_keys(vector)
        for key in keys:
            if key not in table.c:
                near = get_close_matches(key, table.c.keys(), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(table.c.keys())}"
                what = f"the source {key!r} is not a column of the table; {hint}"
                raise DeclarationError(f"{table.fullname}.{vector.name}: {what}")
        _bind(table, vector, tuple(table.c[key] for key in keys))
    _note(table)


@event.listens_for(Mapper, "instrument_class")
def _digest_is_free(mapper: Mapper[Any], owner: type[Any]) -> None:
    """Before SQLAlchemy maps the digest: it would combine it with another column of the attribute's name."""
    table = mapper.local_table
    if isinstance(table, Table) and (words := {column for column in table.c if WORDS in column.info}):
        # Mapped, they would be fetched after every INSERT, as what the server has generated.
        mapper.exclude_properties = {*(mapper.exclude_properties or ()), *words}
    given = mapper._init_properties
    listed = (prop if isinstance(prop, list | tuple) else [prop] for prop in given.values())
    placed = {column for props in listed for prop in props for column in getattr(prop, "columns", (prop,))}
    for vector in _vectors(table) if isinstance(table, Table) else ():
        digest = table.c.get(f"{vector.name}_digest")
        if digest is not None and digest.key in given and digest not in placed:
            _forget_table(mapper)
            raise _taken(owner, digest.key, vector.key)


def _taken(owner: type[Any], attribute: str, vector: str) -> DeclarationError:
    return DeclarationError(
        f"{owner.__name__}.{attribute} is declared as something else, and it is the name of the digest of "
        f"{vector}: rename one of the two"
    )


@event.listens_for(Mapper, "after_mapper_constructed")
def _class_mapped(mapper: Mapper[Any], _class: type[Any]) -> None:
    """Resolve sources by the names of attributes, and map the digest as the vector is."""
    vectors = [
        (key, column)
        for key, column in mapper.columns.items()
        if isinstance(column, Column) and INFO in column.info and column.table in mapper.tables
    ]
    try:
        for key, vector in vectors:
            map_embedding(mapper, key, vector)
    except DeclarationError:
        # SQLAlchemy would keep the half-mapped class, and fail on it when other mappers are configured.
        forget(mapper)
        raise


def map_embedding(mapper: Mapper[Any], key: str, vector: Column[Any]) -> None:
    """Bind the embedding of an attribute and map its digest, if that is still to do.

    :raises DeclarationError: a source is not an attribute, or the digest's attribute is taken.
    """
    declaration: Embedding = vector.info[INFO]
    embedding = _bind(vector.table, vector, mapped_sources(mapper, key, declaration))
    _note(vector.table)
    map_digest(mapper, key, embedding.digest)
    attribute = getattr(mapper.class_, key)
    if not event.contains(attribute, "set", copied):
        event.listen(attribute, "set", copied, retval=True)
    if declaration.deferred:
        defer(mapper, vector, group=key)
        defer(mapper, embedding.digest, group=key)


def mapped_sources(mapper: Mapper[Any], key: str, declaration: Embedding) -> tuple[Column[Any], ...]:
    """The columns of the attributes that a declaration reads.

    :raises DeclarationError: one of them is not a column attribute of the class.
    """
    owner = mapper.class_.__name__
    sources = []
    for name in declaration.read:
        if name not in mapper.columns:
            raise DeclarationError(
                f"{owner}.{key}: the source {name!r} is not a column attribute of {owner}; "
                f"there are {', '.join(mapper.columns.keys())}"
            )
        if not isinstance(mapper.columns[name], Column):
            raise DeclarationError(
                f"{owner}.{key}: the source {name!r} is an SQL expression (column_property()); expected a "
                "column of the table, such as a generated one: Computed(..., persisted=True)"
            )
        sources.append(mapper.columns[name])
    return tuple(sources)


def map_digest(mapper: Mapper[Any], key: str, digest: Column[Any]) -> None:
    """Map the digest of an attribute, if that is still to do.

    :raises DeclarationError: its attribute is taken.
    """
    if digest not in mapper.columns.values():
        attribute = f"{key}_digest"
        if attribute in mapper.all_orm_descriptors or hasattr(mapper.class_, attribute):
            raise _taken(mapper.class_, attribute, key)
        if isinstance(mapper.persist_selectable, Join):
            # With the base's table; it was made of the columns that were there, and only those are written.
            mapper.persist_selectable._refresh_for_new_column(digest)
        mapper.add_property(attribute, ColumnProperty(digest))
    combined = mapper.get_property_by_column(digest).columns
    if len(combined) > 1:
        raise DeclarationError(
            f"{mapper.class_.__name__}.{key}: its digest {digest} and {combined[-1]} are one attribute: "
            "rename the column of the parent's table, or the embedding column, with name="
        )


def defer(mapper: Mapper[Any], column: Column[Any], *, group: str) -> None:
    """Load vector and digest on access, always together.

    A vector means little without its digest: merging a detached object that has only the vector would count
    that as the user's own. Mappers read the attributes that are set here when they are configured.
    """
    prop = mapper.get_property_by_column(column)
    assert isinstance(prop, ColumnProperty)
    prop.deferred = True
    prop.group = group
    prop.strategy_key = (("deferred", True), ("instrument", True))


def forget(mapper: Mapper[Any]) -> None:
    """Remove a refused class from its registry, and its table from the metadata."""
    manager = mapper.class_manager
    mapper.registry._dispose_manager_and_mapper(manager)
    mapper.registry._managers.pop(manager, None)
    _forget_table(mapper)


def _forget_table(mapper: Mapper[Any]) -> None:
    table = mapper.local_table
    if isinstance(table, Table) and (mapper.inherits is None or mapper.inherits.local_table is not table):
        table.metadata.remove(table)
