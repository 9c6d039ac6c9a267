"""What the database knows of its embedding columns: the registry, and their tables.

For a column known from the database alone, a :class:`sqlalchemy.Table` is built from the registry, so a
worker without models runs the same SQL as one with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, Text, text

from pgembed.columns import Freshness, embedding_column, embeddings_of
from pgembed.columns.registration import OPTIONS, fields_of
from pgembed.columns.trust import require_trust
from pgembed.database.install import require_installed
from pgembed.encoders import Encoder
from pgembed.encoders.files import is_name
from pgembed.encoders.sources.local import VARIABLE
from pgembed.exc import DeclarationError, NotInstalledError, NotTrustedError, RegistrationError
from pgembed.parts import bind_parts, declared_as

_REGISTERED = """
SELECT CAST(e.relation AS oid) AS relation, c.relname AS name, n.nspname AS schema,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS qualified,
       e.column_name, e.digest_name, e.sources, e.template, e.encoder, e.fingerprint, e.dimensions, e.metric,
       e.fill, e.fields, CAST(e.options AS text) AS options, CAST(e.words AS text) AS words,
       CAST(e.parts AS text) AS parts, CAST(e.duplicate_of AS text) AS duplicate_of,
       pgembed.is_predicate_of(e.pending_index, e.pending_predicate) AS in_index
FROM pgembed.embedding_columns AS e
JOIN pg_catalog.pg_class AS c ON c.oid = CAST(e.relation AS oid)
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY qualified, e.column_name
"""

_PROBLEMS = """
SELECT CAST(r.relation AS oid) AS relation, r.column_name, r.problem,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS qualified,
       pgembed.distrust(c.oid) IS NOT NULL AS foreign
FROM pgembed.registrations AS r
JOIN pg_catalog.pg_class AS c ON c.oid = CAST(r.relation AS oid)
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE r.problem IS NOT NULL
ORDER BY qualified, r.column_name
"""

_COLUMNS = """
SELECT a.attname AS name, a.atttypid AS type_oid, t.typtype AS kind,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       pg_catalog.format_type(a.atttypid, -1) AS plain_type,
       t.typtype IN ('e', 'r', 'm') OR t.typtype = 'b' AND n.nspname = 'pg_catalog' AS builtin,
       (SELECT p.n FROM pg_catalog.pg_index AS i,
               pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, n)
         WHERE i.indrelid = a.attrelid AND i.indisprimary AND p.attnum = a.attnum) AS key_position
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE a.attrelid = CAST(CAST(:relation AS bigint) AS oid) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


def entries(connection: Connection) -> list[dict[str, Any]]:
    """The rows of ``pgembed.embedding_columns``, with the names of their tables.

    :raises NotInstalledError: the database has no SQL objects of pgembed.
    """
    require_installed(connection)
    rows = [dict(row) for row in connection.execute(text(_REGISTERED)).mappings()]
    # Drivers decode jsonb differently.
    return [
        row
        | {
            "options": json.loads(row["options"] or "{}") or {},
            "fields": fields_of(row),
            "words": json.loads(row["words"] or "null"),
            "parts": json.loads(row["parts"] or "null"),
            "duplicate_of": tuple(json.loads(row["duplicate_of"] or "null") or ()),
        }
        for row in rows
    ]


def problems(connection: Connection) -> dict[tuple[int, str | None], NotTrustedError | RegistrationError]:
    """The registrations that do not count, by table and column, and why.

    The column is ``None`` where the registration cannot be read.
    """
    return {
        (row.relation, row.column_name): (NotTrustedError if row.foreign else RegistrationError)(
            name_of(row._asdict()), row.problem
        )
        for row in connection.execute(text(_PROBLEMS))
    }


def check_index(entry: Mapping[str, Any]) -> None:
    """
    :raises RegistrationError: the pending index does not fit the registration. Where its table is locked at
        this moment, nothing is checked.
    """
    if entry["in_index"] is False:
        raise RegistrationError(
            name_of(entry),
            "its pending index does not hold the rows that its registration describes: a migration builds it "
            "anew",
        )


def name_of(entry: Mapping[str, Any]) -> str:
    """Schema, table and column as SQL writes them."""
    return f"{entry['qualified']}.{entry['column_name'] or '?'}"


def registered_encoder(entry: dict[str, Any]) -> Encoder:
    """The encoder that the column is filled with: looked up by its name, which is never taken for a path.

    :raises RegistrationError: its name cannot be looked up; or see :func:`encoder_options`.
    """
    if not is_name(entry["encoder"]):
        raise RegistrationError(
            name_of(entry),
            f"registered with the encoder {entry['encoder']!r}, which is not a name to look up in the "
            f"folders of {VARIABLE}: a worker with --models takes it from them",
        )
    return Encoder(entry["encoder"], **encoder_options(entry))


def encoder_options(entry: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a name, or a path, the encoder that the column is filled with.

    None of them names a file, a server or a library.

    :raises RegistrationError: this version does not know one of them, or its value.
    """
    for name, value in entry["options"].items():
        if type(value) is not OPTIONS.get(name):
            raise RegistrationError(
                name_of(entry),
                f"registered with the option {name} = {value!r} of its encoder, which this pgembed cannot "
                "take; upgrade it, or register the column anew, by a migration",
            )
    return {**entry["options"], "fingerprint": entry["fingerprint"], "dimensions": entry["dimensions"]}


def declared(
    entry: dict[str, Any],
    columns: dict[str, dict[str, Any]],
    parts: dict[str, dict[str, Any]] | None = None,
) -> Freshness:
    """The embedding column that an entry of the registry describes, over a table built for it; or the parts.

    :param columns: those of the table, by name.
    :param parts: those of the table of parts.
    :raises NotInstalledError: the table has no such columns, or no primary key.
    :raises RegistrationError: the registration does not fit the table or its index.
    :raises EncoderOptionError: options that an encoder cannot have.
    """
    keys = sorted((row for row in columns.values() if row["key_position"]), key=lambda r: r["key_position"])
    fields, vector, digest = entry["fields"], entry["column_name"], entry["digest_name"]
    missing = {
        *entry["sources"],
        *entry["duplicate_of"],
        digest,
        *([] if parts else [vector]),
    } - columns.keys()
    if missing:
        raise NotInstalledError(
            f"{name_of(entry)}: registered with the column {', '.join(sorted(missing))}, which the table "
            "does not have; a renamed column has to be registered anew, by a migration"
        )
    if not keys:
        raise NotInstalledError(f"{name_of(entry)}: the table has no primary key any more")
    check_index(entry)
    sources = dict(zip(entry["sources"], fields, strict=True))
    others = [row["name"] for row in keys if row["name"] not in sources]
    if digest != f"{vector}_digest" or {vector, digest, *others} & set(fields) or vector in others:
        raise RegistrationError(
            name_of(entry), "the names of its columns do not fit together; a worker with --models knows more"
        )
    table = Table(
        entry["name"],
        MetaData(),
        *(
            Column(row["name"], Text, key=sources.get(row["name"], row["name"]), primary_key=True)
            for row in keys
        ),
        *(Column(name, Text, key=key) for name, key in sources.items() if not columns[name]["key_position"]),
        schema=entry["schema"],
    )
    encoder, of_vector = registered_encoder(entry), columns[vector] if parts is None else parts["embedding"]
    storage = of_vector["plain_type"].rpartition(".")[2]
    if parts is not None:
        how = entry["parts"]["how"]
        try:
            declaration = declared_as(
                how, fields, encoder=encoder, metric=entry["metric"], fill=entry["fill"], type=storage
            )
            return bind_parts(
                declaration, vector, table, [table.c[key] for key in fields], called=entry["parts"]["table"]
            )
        except DeclarationError as error:
            raise RegistrationError(
                name_of(entry), f"its parts are made as {how}: {error}; a worker with --models knows more"
            ) from error
    links = tuple(Column(name, Text, key=f"link {n}") for n, name in enumerate(entry["duplicate_of"]))
    for link in links:
        table.append_column(link)
    table.append_column(
        embedding_column(
            *fields,
            encoder=encoder,
            template=entry["template"],
            metric=entry["metric"],
            type=storage,
            name=vector,
        ).column
    )
    return replace(embeddings_of(table)[0], links=links)


def parts_of(connection: Connection, entry: dict[str, Any]) -> tuple[int, dict[str, dict[str, Any]]] | None:
    """The oid and the columns of an entry's table of parts; ``None`` for a column.

    :raises NotInstalledError: there is no such table, or not as it has to be.
    :raises NotTrustedError: its owner is not trusted.
    """
    if entry["parts"] is None:
        return None
    name = f"{entry['qualified']}, its table of parts {entry['parts']['table']}"
    relation = connection.scalar(
        text(
            "SELECT CAST(c.oid AS bigint) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n "
            "ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :name "
            "AND c.relkind IN ('r', 'p')"
        ),
        {"schema": entry["schema"], "name": entry["parts"]["table"]},
    )
    if relation is None:
        raise NotInstalledError(f"{name}: the database has no such table: create it, or migrate")
    require_trust(connection, relation, name)
    columns = columns_of(connection, relation)
    missing = {"id", "number", "start", "end", "text", "digest", "embedding"} - columns.keys()
    if missing:
        raise NotInstalledError(f"{name}: it has no column {', '.join(sorted(missing))}: migrate it")
    return relation, columns


def columns_of(connection: Connection, relation: int) -> dict[str, dict[str, Any]]:
    """The table's columns by name; none, if it is gone.

    Under an empty search path, format_type names the schema of every type.
    """
    path = connection.scalar(text("SELECT pg_catalog.current_setting('search_path')"))
    connection.execute(text("SELECT pg_catalog.set_config('search_path', '', true)"))
    rows = connection.execute(text(_COLUMNS), {"relation": relation}).mappings().all()
    connection.execute(text("SELECT pg_catalog.set_config('search_path', :path, true)"), {"path": path})
    return {row["name"]: dict(row) for row in rows}
