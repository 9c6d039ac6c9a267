"""What ``create_all`` does besides: the extension before a table, the registration after its index."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, String, Table, event, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDLElement

from pgembed.columns import PendingIndex, embeddings_of
from pgembed.columns.types import is_postgres
from pgembed.database.server import ensure_extension, needs_extension, require_visible
from pgembed.encoders import Encoder


class RegisterEmbedding(DDLElement):
    """``COMMENT ON INDEX ix_article_embedding_pending IS '{"pgembed": 1, ...}'``

    The comment says what the column is filled with; the view ``pgembed.embedding_columns`` reads it.
    """

    def __init__(self, index: PendingIndex) -> None:
        self.index = index

    @property
    def facts(self) -> dict[str, Any]:
        """What the comment holds."""
        embedding = self.index.embedding
        declaration = embedding.declaration
        facts: dict[str, Any] = {
            "pgembed": 1,
            "column": embedding.vector.name,
            "digest": embedding.digest.name,
            "sources": [source.name for source in embedding.sources],
            "template": declaration.template,
            "encoder": declaration.encoder.name,
            "fingerprint": declaration.encoder.fingerprint,
            "dimensions": declaration.encoder.dimensions,
            "metric": declaration.metric.name,
            "fill": declaration.fill,
        }
        if declaration.sources != tuple(facts["sources"]):  # what the template calls them
            facts["fields"] = list(declaration.sources)
        if isinstance(declaration.encoder, Encoder) and declaration.encoder.options:
            facts["options"] = declaration.encoder.options
        if declaration.replaces is not None:
            facts["replaces"] = declaration.replaces
        return facts


@compiles(RegisterEmbedding)
def _compile(element: RegisterEmbedding, compiler: Any, **_: Any) -> str:
    table = element.index.embedding.table
    name = compiler.preparer.format_index(element.index)
    schema = compiler.preparer.schema_for_object(table)  # through schema_translate_map
    if schema is not None:
        name = f"{compiler.preparer.quote_schema(schema)}.{name}"
    comment = compiler.sql_compiler.render_literal_value(json.dumps(element.facts), String())
    return f"COMMENT ON INDEX {name} IS {comment}"


@event.listens_for(Table, "before_create")
def _before_table(table: Table, connection: Any, **_: Any) -> None:
    embeddings_of(table)  # raises where one could never be filled
    if not needs_extension(table, connection.dialect):
        return
    if isinstance(connection, Connection):
        ensure_extension(connection)
        require_visible(connection)
    else:  # a mock connection, which writes a script
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))


@event.listens_for(PendingIndex, "after_create")
def _after_index(index: PendingIndex, connection: Any, **_: Any) -> None:
    if is_postgres(connection.dialect):
        connection.execute(RegisterEmbedding(index))
