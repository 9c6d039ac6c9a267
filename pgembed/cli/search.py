"""``pgembed search``: semantic search in any table that has an embedding column."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import Connection, func, select

from pgembed.cli.known import encoder_of, reflect, registered
from pgembed.cli.options import (
    AsJson,
    ColumnName,
    DatabaseUrl,
    TableName,
    connect,
    print_line,
    say,
)
from pgembed.database.install import require_installed
from pgembed.exc import NotInstalledError, RegistrationError
from pgembed.filling.registry import columns_of, declared, entries, name_of
from pgembed.indexes.differences import declared_as
from pgembed.indexes.standing import standing
from pgembed.queries import explain_search, semantic_search

#: Characters of a text that are printed.
_SHOWN = 300


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
    full: Annotated[bool, typer.Option("--full", help="Print the texts whole.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how the rows are found instead: index, settings, recall.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the rows nearest to a text, best first: the score, the key, and the beginning of the text.

    --full prints whole texts, --json whole rows. --explain prints how they are found instead: exactly or
    through which index, how many rows are compared and pending, and the recall that `pgembed index recall`
    has measured last.
    """
    if not query.strip():
        raise typer.BadParameter("the text is empty", param_hint="QUERY")
    with connect(url) as connection:
        require_installed(connection)
        entry = _registered(connection, table, column)
        with encoder_of(entry, encoder) as opened:
            vector = opened.encode_queries([query])[0]
        reflected = reflect(connection, entry["name"], entry["schema"])
        # SQLAlchemy 2.0 reflects no operator classes, without which nothing says what an index serves.
        reflected.indexes.clear()
        for index in standing(connection, entry["qualified"]):
            if index.valid:
                declared_as(index, reflected.c[column])
        statement = semantic_search(reflected.c[column], vector, limit=limit, metric=entry["metric"])
        if explain:
            explained = explain_search(connection, statement)
            legs = [replace(leg, pending=_pending(connection, entry)) for leg in explained.legs]
            explained = replace(explained, legs=tuple(legs))
            say(json.dumps(explained.as_dict(), indent=2) if as_json else str(explained))
            return
        rows = connection.execute(statement).all()
    hidden = {column, entry["digest_name"]}
    if as_json:
        found = [{key: value for key, value in row._mapping.items() if key not in hidden} for row in rows]
        say(json.dumps(found, indent=2, default=str))
        return
    keys = [key.name for key in reflected.primary_key]
    for row in rows:
        key = ", ".join(str(row._mapping[name]) for name in keys)
        words = " ".join(str(row._mapping[name]) for name in entry["sources"] if row._mapping[name])
        words = " ".join(words.split())
        if full:
            say(f"{row[-1]:.3f}  {key}  {words}")
            continue
        shown = words if len(words) <= _SHOWN else f"{words[:_SHOWN]} ..."
        print_line(f"{row[-1]:.3f}  [bold]{escape(key)}[/]  [dim]{escape(shown)}[/]")


def _pending(connection: Connection, entry: dict[str, Any]) -> int | None:
    """How many rows are pending; ``None`` where the registration does not fit the table."""
    try:
        embedding = declared(entry, columns_of(connection, entry["relation"]))
    except RegistrationError:
        return None
    return connection.scalar(select(func.count()).where(embedding.pending()))


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
