"""``pgembed search``: semantic search in any table that has an embedding column."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import Connection

from pgembed.cli.known import encoder_of, reflect, registered
from pgembed.cli.options import (
    AsJson,
    ColumnName,
    DatabaseUrl,
    TableName,
    connect,
    print_line,
)
from pgembed.database.install import require_installed
from pgembed.exc import NotInstalledError
from pgembed.filling.registry import entries, name_of
from pgembed.queries import semantic_search


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("search")(search)


def search(
    table: TableName,
    column: ColumnName,
    query: Annotated[str, typer.Argument(help="What to search for.")],
    url: DatabaseUrl,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Name or folder of the encoder; by default the one that the column is filled with."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many rows.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print the rows nearest to a text, best first."""
    if not query.strip():
        raise typer.BadParameter("the text is empty", param_hint="QUERY")
    with connect(url) as connection:
        require_installed(connection)
        entry = _registered(connection, table, column)
        with encoder_of(entry, encoder) as opened:
            vector = opened.encode_queries([query])[0]
        reflected = reflect(connection, entry["name"], entry["schema"])
        statement = semantic_search(reflected.c[column], vector, limit=limit, metric=entry["metric"])
        rows = connection.execute(statement).mappings().all()
    hidden = {column, entry["digest_name"]}
    found = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    keys = [key.name for key in reflected.primary_key]
    for row in found:
        key = ", ".join(str(row[name]) for name in keys)
        words = " ".join(str(row[name]) for name in entry["sources"] if row[name])
        shown = escape(" ".join(words.split()))
        print_line(f"{row['score']:.3f}  [bold]{escape(key)}[/]  [dim]{shown}[/]")


def _registered(connection: Connection, table: str, column: str) -> dict[str, Any]:
    """What the database knows of the column.

    :raises NotInstalledError: it is not an embedding column.
    """
    found = registered(connection, table, column)
    if found is None:
        known = ", ".join(name_of(entry) for entry in entries(connection))
        raise NotInstalledError(
            f"{table}.{column} is not an embedding column of this database; there "
            + (f"are: {known}" if known else "are none")
        )
    return found
