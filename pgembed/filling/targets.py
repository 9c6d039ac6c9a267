"""The columns to fill: found in models or in the database, and checked against the database.

Workers with and without models run the same SQL: both have an :class:`~pgembed.columns.EmbeddingColumn`,
whose predicate is that of the pending index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    Text,
    cast,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import RelationshipProperty

from pgembed.columns import EmbeddingColumn, Freshness, TextEncoder, VectorType, bound
from pgembed.columns.trust import require_trust
from pgembed.exc import DeclarationError, NotInstalledError, PgembedError, RegistrationError
from pgembed.filling import registry
from pgembed.parts import PartsTable, parts_of

#: Types that cannot be cast back from what ``jsonb ->> 0`` gives.
_UNUSABLE_KEYS = re.compile(r"\[\]$|^(json|jsonb|record)$")

_RELATION = """
SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = CAST(:name AS text) AND c.relkind IN ('r', 'p')
  AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_catalog.pg_table_is_visible(c.oid)
           ELSE n.nspname = CAST(:schema AS text) END
"""


@dataclass(frozen=True, eq=False)
class Target:
    """An embedding column of a database, or the parts of a text, ready to be filled.

    :ivar embedding: its declaration, over the table that the user's conditions name.
    :ivar bare: the same over a table of names alone, which no ``onupdate`` of a model acts on.
    :ivar relation: the table's oid.
    :ivar name: schema, table and column as SQL writes them, for people.
    :ivar key_types: SQL types of the primary key's columns.
    :ivar builtin_keys: for each, whether Postgres's own operators compare it, not those of an extension.
    :ivar vector_type: SQL type of the vectors, without their dimensions; the extension's schema is named.
    :ivar vector_type_oid: its oid.
    :ivar parts: the oid of the table of parts; ``None`` of a column.
    :ivar words: what the registration says of the column's words; ``None`` without ``words=``.
    """

    embedding: Freshness
    relation: int
    name: str
    key_types: tuple[str, ...]
    builtin_keys: tuple[bool, ...]
    vector_type: str
    vector_type_oid: int
    words: dict[str, Any] | None
    parts: int | None = None
    bare: Freshness = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bare", _bare(self.embedding))

    def __str__(self) -> str:
        return self.name

    @property
    def encoder(self) -> TextEncoder:
        """What fills the column."""
        return self.embedding.declaration.encoder

    @property
    def column(self) -> EmbeddingColumn:
        """:attr:`embedding`, of a column.

        :raises DeclarationError: it is the parts of a text.
        """
        if not isinstance(self.embedding, EmbeddingColumn):
            raise DeclarationError(
                f"{self} is declared with embedding_parts, expected a column: the encoder of parts "
                "changes by a migration, after which workers fill them anew, in place"
            )
        return self.embedding

    @property
    def tables(self) -> list[tuple[int, Table]]:
        """The tables that are read and written, each with its oid."""
        found = [(self.relation, self.embedding.table)]
        if self.parts is not None and isinstance(self.embedding, PartsTable):
            found.append((self.parts, self.embedding.parts))
        return found

    @property
    def oid(self) -> ColumnElement[int]:
        """:attr:`relation` as SQL."""
        return cast(literal(self.relation, BigInteger), OID)

    @property
    def column_name(self) -> str:
        """The vector column's name."""
        return self.embedding.name


@dataclass(frozen=True)
class Refused:
    """A column that cannot be filled from here, and why; the others are filled all the same."""

    name: str
    error: PgembedError


def registered_targets(connection: Connection) -> list[Target | Refused]:
    """Every embedding column that the database's registry (``pgembed.embedding_columns``) knows.

    Encoders are made from their names and fingerprints, and looked up at first use.

    :raises NotInstalledError: the database has no SQL objects of pgembed.
    """
    found: list[Target | Refused] = []
    for entry in registry.entries(connection):
        try:
            columns = registry.columns_of(connection, entry["relation"])
            parts = registry.parts_of(connection, entry)
            declared = registry.declared(entry, columns, parts and parts[1])
            found.append(_opened(declared, entry, columns, parts))
        except PgembedError as error:
            found.append(Refused(registry.name_of(entry), error))
        except SQLAlchemyError as error:  # SQLAlchemy does not accept a table of these names
            if isinstance(error, DBAPIError):
                raise
            name = registry.name_of(entry)
            found.append(Refused(name, RegistrationError(name, str(error))))
    found += [Refused(problem.name, problem) for problem in registry.problems(connection).values()]
    return found


def model_targets(connection: Connection, embeddings: Sequence[Freshness]) -> list[Target | Refused]:
    """The columns of models, checked against the database.

    :param embeddings: such as :func:`embeddings_in` finds.
    :raises NotInstalledError: the database has no SQL objects of pgembed.
    """
    registered = {(entry["relation"], entry["column_name"]): entry for entry in registry.entries(connection)}
    found: list[Target | Refused] = []
    for embedding in embeddings:
        try:
            found.append(_checked(connection, embedding, registered))
        except PgembedError as error:
            found.append(Refused(str(embedding), error))
    return found


def find_targets(
    connection: Connection,
    embeddings: Sequence[Freshness] | None = None,
    *,
    table: str | None = None,
    column_name: str | None = None,
) -> list[Target | Refused]:
    """The columns to fill: those of models, or without any those of the registry; all, or a table's, or one.

    :param table: the table as SQL writes it, schema and quotes included.
    :raises NotInstalledError: there is no such column, or the database has no SQL objects of pgembed.
    """
    found = registered_targets(connection) if embeddings is None else model_targets(connection, embeddings)
    if table is None:
        return found
    name = connection.scalar(
        text(
            "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) "
            "FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.oid = CAST(pg_catalog.to_regclass(:table) AS oid)"
        ),
        {"table": table},
    )
    chosen = [
        one
        for one in found
        if name is not None
        and (one.name == f"{name}.{column_name}" if column_name else one.name.startswith(f"{name}."))
    ]
    if not chosen:
        known = f"are: {', '.join(one.name for one in found)}" if found else "are none"
        raise NotInstalledError(
            f"{table}{f' {column_name}' if column_name else ''} is not an embedding column of this database; "
            f"there {known}"
        )
    return chosen


def target_of(connection: Connection, column: Any) -> Target:
    """The target of an embedding column or of parts: a mapped attribute, a ``Column``, a ``Freshness``.

    :raises DeclarationError: it is none.
    :raises NotInstalledError: the database does not have it, or has it with another encoder or template.
    """
    if isinstance(column, Target):
        return column
    if not isinstance(column, Freshness):
        mapped: Any = getattr(column, "property", None)
        found: Freshness | None = parts_of(column)
        if found is None and not isinstance(mapped, RelationshipProperty):
            found = bound(column if mapped is None else mapped.columns[0])
        if found is None:
            raise DeclarationError(f"{column!r} is not an embedding column or embedding_parts")
        column = found
    (target,) = model_targets(connection, [column])
    if isinstance(target, Refused):
        raise target.error
    return target


def _checked(
    connection: Connection, embedding: Freshness, registered: dict[tuple[int, str], dict[str, Any]]
) -> Target:
    """The target of a model's column. Two workers with different declarations of one column would undo each
    other's work for ever, and a predicate that is not the index's would scan the whole table each time."""
    table = embedding.table
    schema = connection.schema_for_object(table)  # through schema_translate_map
    relation = connection.scalar(text(_RELATION), {"name": table.name, "schema": schema})
    if relation is None:
        raise NotInstalledError(
            f"{embedding}: the database has no table {table.fullname}: create it, or migrate"
        )
    require_trust(connection, relation, str(embedding))
    entry = registered.get((relation, embedding.name))
    if entry is None:
        problems = registry.problems(connection)
        for name in (embedding.name, None):  # None: of a registration that cannot be read
            if (relation, name) in problems:
                raise problems[relation, name]
        raise NotInstalledError(
            f"{embedding}: the database has no registered pending index "
            f"{embedding.pending_index_name!r}: create_all makes it, or a migration"
        )
    declaration = embedding.declaration
    model = (
        declaration.encoder.fingerprint,
        declaration.template,
        [str(s.name) for s in embedding.sources],
        embedding.facts.get("parts"),
        tuple(embedding.facts.get("duplicate_of", ())),
    )
    names = ("fingerprint", "template", "sources", "parts", "duplicate_of")
    database = tuple(entry[name] if name != "sources" else list(entry[name]) for name in names)
    if model != database:
        shown = [n for n in range(len(names)) if n < 3 or model[n] or database[n]]
        raise NotInstalledError(
            f"{embedding}: the model has ({', '.join(names[n] for n in shown)}) = "
            f"{tuple(model[n] for n in shown)}, the database {tuple(database[n] for n in shown)}: "
            "migrate the database, or run the worker with the code that it was migrated by"
        )
    registry.check_index(entry)
    columns = registry.columns_of(connection, relation)
    return _opened(embedding, entry, columns, registry.parts_of(connection, entry))


def _opened(
    embedding: Freshness,
    entry: dict[str, Any],
    columns: dict[str, dict[str, Any]],
    parts: tuple[int, dict[str, dict[str, Any]]] | None,
) -> Target:
    keys = [str(column.name) for column in embedding.table.primary_key.columns]
    missing = {*keys, *([embedding.name] if parts is None else [])} - columns.keys()
    if missing:
        raise NotInstalledError(
            f"{embedding}: the table has no column {', '.join(sorted(missing))}: migrate it"
        )
    types = []
    for key in keys:
        row = columns[key]
        if _UNUSABLE_KEYS.search(row["type"]) or row["kind"] == "c":
            raise DeclarationError(f"{embedding}: a primary key of the type {row['type']} is not supported")
        types.append(row["type"])
    vector = columns[embedding.name] if parts is None else parts[1]["embedding"]
    return Target(
        embedding,
        entry["relation"],
        registry.name_of(entry),
        tuple(types),
        tuple(columns[key]["builtin"] for key in keys),
        vector["plain_type"],
        vector["type_oid"],
        entry["words"],
        None if parts is None else parts[0],
    )


def _bare(embedding: Freshness) -> Freshness:
    """The embedding over a table of the same names and nothing else."""
    declaration = embedding.declaration
    names = dict.fromkeys(
        column.name for column in (*embedding.table.primary_key.columns, *embedding.sources)
    )
    # No parameter may have such a key: SQLAlchemy would take it for the column's new value.
    columns = {
        name: Column(name, Text, key=f"column {place}", primary_key=place < len(embedding.table.primary_key))
        for place, name in enumerate(names)
    }
    digest = Column(embedding.digest.name, embedding.digest.type, key="its digest")
    original = embedding.table
    table = Table(original.name, MetaData(), *columns.values(), digest, schema=original.schema)
    sources = tuple(columns[source.name] for source in embedding.sources)
    if isinstance(embedding, PartsTable):
        return replace(embedding, table=table, digest=digest, sources=sources)
    dimensions, storage = declaration.encoder.dimensions, declaration.storage
    vector = Column(embedding.name, VectorType(dimensions, storage), key="its vector")
    assert isinstance(embedding, EmbeddingColumn)
    links = tuple(Column(link.name, Text, key=f"link {n}") for n, link in enumerate(embedding.links))
    table.append_column(vector)
    for link in links:
        table.append_column(link)
    return EmbeddingColumn(declaration, table, digest, sources, vector, links=links)


def split(found: Sequence[Target | Refused]) -> tuple[list[Target], list[Refused]]:
    """Those that can be filled, and those that cannot."""
    return list(_of(found, Target)), list(_of(found, Refused))


def _of(found: Sequence[Any], kind: type[Any]) -> Iterator[Any]:
    return (item for item in found if isinstance(item, kind))
