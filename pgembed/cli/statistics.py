"""``pgembed words``: the statistics that searches by words rank by."""

from __future__ import annotations

import typer

from pgembed.cli.options import DatabaseUrl, Models, OneColumn, OneTable, columns_of, open_engine, say
from pgembed.exc import NotInstalledError
from pgembed.filling.frequencies import refresh_target
from pgembed.filling.targets import find_targets, split


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Keep the statistics that searches by words rank by.", no_args_is_help=True)
    group.command("refresh")(refresh)
    group.callback()(_group)
    app.add_typer(group, name="words")


def _group() -> None:
    """A group stays one with a single command."""


def refresh(
    url: DatabaseUrl, table: OneTable = None, column: OneColumn = None, models: Models = None
) -> None:
    """Count how many rows have each word, in all columns that are declared with words=.

    Workers and backfills do it as well. Searches go on meanwhile.
    """
    embeddings = columns_of(models)
    with open_engine(url) as engine:
        with engine.begin() as connection:
            targets, refused = split(find_targets(connection, embeddings, table=table, column_name=column))
        chosen = [target for target in targets if target.words is not None]
        if not chosen and not refused:
            raise NotInstalledError("no embedding column of this database is declared with words=Words(...)")
        for target in chosen:
            found = refresh_target(engine, target)
            if found is not None:
                say(f"{target}: {found.words:,} words in {found.rows:,} rows")
    for one in refused:
        say(f"{one.name}: {one.error}", err=True)
    if refused:
        raise typer.Exit(1)
