"""Tables, indexes and encoders as the database knows them, for commands that are given names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from sqlalchemy import Connection, MetaData, Table, text

from pgembed.cli.options import open_encoder
from pgembed.columns import Array
from pgembed.exc import DeclarationError
from pgembed.filling.registry import entries
from pgembed.indexes import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.catalogue import StandingIndex, standing


def registered(connection: Connection, table: str, column: str) -> dict[str, Any] | None:
    """What the registry says of an embedding column; ``None`` for any other."""
    if connection.scalar(text("SELECT to_regclass('pgembed.embedding_columns')")) is None:
        return None
    relation = connection.scalar(text("SELECT CAST(to_regclass(:table) AS oid)"), {"table": table})
    found = (entry for entry in entries(connection) if entry["relation"] == relation)
    return next((entry for entry in found if entry["column_name"] == column), None)


def encoded(
    connection: Connection, table: str, column: str, texts: Sequence[str], encoder: str | None
) -> Array:
    """Texts as queries of a column.

    :param encoder: name or folder of the encoder; by default the one that the column is filled with.
    :raises typer.BadParameter: the column is filled with none.
    """
    entry = registered(connection, table, column)
    if entry is None and encoder is None:
        raise typer.BadParameter(
            f"{table}.{column} is no embedding column of this database: say --encoder", param_hint="--texts"
        )
    facts = entry or {"encoder": None, "fingerprint": None}
    with open_encoder(encoder or facts["encoder"], fingerprint=facts["fingerprint"]) as opened:
        return opened.encode_queries(texts)


def index_on(
    connection: Connection,
    table: str,
    column: str,
    method: str | None,
    metric: str | None,
    parameters: dict[str, int | None],
) -> VectorIndex:
    """The index that stands on the column, or else the one that is asked for.

    :raises typer.BadParameter: there is no such table, column or access method.
    :raises DeclarationError: a parameter of the other access method.
    """
    import pgvector.sqlalchemy  # noqa: F401  (so that reflection knows the type)

    place = connection.execute(
        text(
            "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.oid = to_regclass(:table)"
        ),
        {"table": table},
    ).one_or_none()
    if place is None:
        raise typer.BadParameter(f"there is no table {table}", param_hint="TABLE")
    reflected = Table(
        place.relname, MetaData(), schema=place.nspname, autoload_with=connection, resolve_fks=False
    )
    if column not in reflected.c:
        raise typer.BadParameter(f"{table} has no column {column}", param_hint="COLUMN")
    there = _standing_on(connection, table, column, method)
    entry = registered(connection, table, column)
    chosen = method or (there.access_method if there else "hnsw")
    kinds: dict[str, type[HNSW] | type[IVFFlat]] = {"hnsw": HNSW, "ivfflat": IVFFlat}
    if chosen not in kinds:
        raise typer.BadParameter(f"{chosen}; needed is hnsw or ivfflat", param_hint="--method")
    known = {"m", "ef_construction"} if chosen == "hnsw" else {"lists"}
    stated = {name: value for name, value in parameters.items() if value is not None}
    if foreign := stated.keys() - known:
        raise DeclarationError(f"{', '.join(sorted(foreign))} is no parameter of {chosen}")
    options: dict[str, Any] = (there.parameters if there else {}) | stated
    return kinds[chosen](
        reflected.c[column],
        name=there.name if there else None,
        metric=metric or (there.metric if there else None) or (entry["metric"] if entry else None),
        **options,
    )


def _standing_on(connection: Connection, table: str, column: str, method: str | None) -> StandingIndex | None:
    there = [
        index
        for index in standing(connection, table)
        if index.column == column and index.predicate is None and method in (None, index.access_method)
    ]
    return next((index for index in there if index.valid), there[0] if there else None)
