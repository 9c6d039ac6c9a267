"""What the database itself says of its embedding columns: the registry, and the tables it is about.

For a column known from the database alone, a :class:`sqlalchemy.Table` is built of what the registry says, so
that a worker that is given no models runs the same SQL as one that is given some.
"""

from __future__ import annotations

import json
import string
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, Text, text

from pgembed.columns import EmbeddingColumn, embedding_column, embeddings_of
from pgembed.database.install import require_installed
from pgembed.encoders import Encoder
from pgembed.exc import NotInstalledError

_REGISTERED = """
SELECT e.relation::oid AS relation, c.relname AS name, n.nspname AS schema,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS qualified,
       e.column_name, e.digest_name, e.sources, e.template, e.encoder, e.fingerprint, e.dimensions, e.metric,
       e.fields, CAST(e.options AS text) AS options
FROM pgembed.embedding_columns AS e
JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY qualified, e.column_name
"""

_COLUMNS = """
SELECT a.attname AS name, a.atttypid AS type_oid, t.typtype AS kind,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       pg_catalog.format_type(a.atttypid, -1) AS plain_type,
       (SELECT p.n FROM pg_catalog.pg_index AS i,
               pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, n)
         WHERE i.indrelid = a.attrelid AND i.indisprimary AND p.attnum = a.attnum) AS key_position
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = :relation AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


#: Options of an encoder that a registration may have, and their types.
_OPTIONS = {"max_tokens": int, "query_prompt": str, "document_prompt": str, "precision": str}


def entries(connection: Connection) -> list[dict[str, Any]]:
    """The rows of ``pgembed.embedding_columns``, with the names of their tables.

    :raises NotInstalledError: the database has no SQL objects of pgembed.
    """
    require_installed(connection)
    rows = connection.execute(text(_REGISTERED)).mappings()
    # Drivers differ in what they make of jsonb.
    return [{**row, "options": json.loads(row["options"] or "{}")} for row in rows]


def name_of(entry: dict[str, Any]) -> str:
    """Schema, table and column as SQL writes them."""
    return f"{entry['qualified']}.{entry['column_name']}"


def encoder_options(entry: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a name, or a path, the encoder that the column is filled with.

    :raises NotInstalledError: some are none that this version knows, or can take.
    """
    for name, value in entry["options"].items():
        if type(value) is not _OPTIONS.get(name):
            raise NotInstalledError(
                f"{name_of(entry)}: registered with the option {name} = {value!r} of its encoder, which this "
                "pgembed cannot take; upgrade it, or register the column anew, by a migration"
            )
    return {**entry["options"], "fingerprint": entry["fingerprint"], "dimensions": entry["dimensions"]}


def declared(entry: dict[str, Any], columns: dict[str, dict[str, Any]]) -> EmbeddingColumn:
    """The embedding column that an entry of the registry describes, over a table built for it.

    :param columns: those of the table, by name.
    :raises NotInstalledError: the table has no such columns, or no primary key; options that are not known.
    :raises EncoderOptionError: options that an encoder cannot have.
    """
    keys = sorted((row for row in columns.values() if row["key_position"]), key=lambda r: r["key_position"])
    fields = _fields(entry)
    missing = {*entry["sources"], entry["column_name"], entry["digest_name"]} - columns.keys()
    if missing:
        raise NotInstalledError(
            f"{name_of(entry)}: registered with the column {', '.join(sorted(missing))}, which the table "
            "does not have; a renamed column has to be registered anew, by a migration"
        )
    if not keys:
        raise NotInstalledError(f"{name_of(entry)}: the table has no primary key any more")
    storage = columns[entry["column_name"]]["plain_type"].rpartition(".")[2]
    sources = dict(zip(entry["sources"], fields, strict=True))
    table = Table(
        entry["name"],
        MetaData(),
        *(
            Column(row["name"], Text, key=sources.get(row["name"], row["name"]), primary_key=True)
            for row in keys
        ),
        *(Column(name, Text, key=key) for name, key in sources.items() if not columns[name]["key_position"]),
        embedding_column(
            *fields,
            encoder=Encoder(entry["encoder"], **encoder_options(entry)),
            template=entry["template"],
            metric=entry["metric"],
            type=storage,
            name=entry["column_name"],
        ).column,
        schema=entry["schema"],
    )
    return embeddings_of(table)[0]


def columns_of(connection: Connection, relation: int) -> dict[str, dict[str, Any]]:
    """The table's columns by name; none, if it is gone.

    Under an empty search path, format_type names the schema of every type.
    """
    path = connection.scalar(text("SELECT current_setting('search_path')"))
    connection.execute(text("SELECT set_config('search_path', '', true)"))
    rows = connection.execute(text(_COLUMNS), {"relation": relation}).mappings().all()
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})
    return {row["name"]: dict(row) for row in rows}


def _fields(entry: dict[str, Any]) -> list[str]:
    """What the template calls the sources: names of attributes, which can differ from those of columns."""
    if entry["fields"]:
        return list(entry["fields"])
    sources = list(entry["sources"])
    if entry["template"] is None or len(sources) > 1:
        return sources
    return [name for _, name, _, _ in string.Formatter().parse(entry["template"]) if name] or sources
