"""``pgembed reembed``: from one encoder to another, while no search mixes the two."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer

from pgembed.cli.options import (
    AsJson,
    ColumnName,
    DatabaseUrl,
    Models,
    TableName,
    columns_of,
    connect,
    open_encoder,
    say,
)
from pgembed.indexes.sizes import readable
from pgembed.reembedding.change import Change, changes
from pgembed.reembedding.costs import plan_reembedding

group = typer.Typer(no_args_is_help=True, help="Change the encoder of a column, without downtime.")


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="reembed")


@group.command()
def plan(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    encoder: Annotated[str, typer.Option(help="The new encoder: a folder, or a name.")],
    as_json: AsJson = False,
) -> None:
    """Say what it takes to re-embed a column with another encoder: space, time, and the steps."""
    with connect(url) as connection, open_encoder(encoder) as opened:
        found = plan_reembedding(connection, table, column, opened)
    if as_json:
        say(json.dumps(found.as_dict(), indent=2))
        return
    say(f"{found.table}: {found.old} to {found.new}, of {found.dimensions} dimensions")
    say(f"rows with a text      {found.rows:,}")
    say(f"new vectors           {readable(found.column_size)}")
    if found.index_size is not None and found.index_memory is not None:
        say(
            f"their index           {readable(found.index_size)}, "
            f"built in {readable(found.index_memory)} of memory"
        )
    if found.seconds is None:
        say("time                  not known: the encoder's weights are not on this machine")
    else:
        say(
            f"time                  about {timedelta(seconds=round(found.seconds))} "
            f"at {found.rows_per_second:,.0f} rows per second"
        )
    for number, step in enumerate(
        (
            f'write encoder=..., name="{found.new}", replaces="{found.old}" in embedding_column(); do not '
            "release it yet",
            "alembic revision --autogenerate, which writes two revisions; alembic upgrade +1",
            f"pgembed backfill '{found.table}' {found.new}; a worker stays, for both columns",
            "alembic upgrade head, which builds the index",
            "pgembed reembed status --models app.models:Base --gate 0.95, and release the application",
            f'when the old one is gone: take replaces="{found.old}" away, alembic revision --autogenerate, '
            "alembic upgrade head",
        ),
        1,
    ):
        say(f"{number}. {step}")


@group.command()
def status(
    url: DatabaseUrl,
    models: Models = None,
    gate: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit with 1 unless all is ready to switch, and recall is at least this."
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=2, help="How many random rows to ask for.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Show how far each change of encoder has got, and what to do next.

    --gate tries searches of the new column: it measures their recall, and compares vectors with new ones of
    the same texts. Add --models with the models to be released. Without them, the gate is closed while the
    database knows of no change: it cannot tell one that is not migrated yet from one that is over.
    """
    embeddings = columns_of(models)
    with connect(url) as connection:
        found = changes(connection, embeddings, min_recall=gate, queries=queries)
    if as_json:
        say(json.dumps([change.as_dict() for change in found], indent=2))
    elif not found:
        say("no column of this database is replacing another")
    for change in [] if as_json else found:
        _print(change)
    if gate is None:
        return
    if not found and embeddings is None:
        say(
            "the gate stays closed: pass --models, since only the models say whether one is planned", err=True
        )
        raise typer.Exit(1)
    if any(change.obstacles for change in found):
        raise typer.Exit(1)


def _print(change: Change) -> None:
    old = _short(change.old_encoder, change.old_fingerprint)
    new = _short(change.new_encoder, change.new_fingerprint)
    say(f"{change.table}: {change.old} ({old}) to {change.new} ({new})")
    say(f"  filled  {change.filled:.1%} of {change.rows:,} rows, {change.pending:,} pending")
    say(f"  index   {change.index}, the old column's: {change.old_index}")
    if change.recall is not None:
        say(
            f"  recall  {change.recall.recall:.3f} ({change.recall.low:.3f} to {change.recall.high:.3f}) at "
            f"{change.recall.setting} = {change.recall.value}"
        )
    elif change.exact:
        say("  recall  exact: the rows are few or have no index, and are scanned")
    for obstacle in change.obstacles[1:]:
        say(f"  also    {obstacle}")
    say(f"  next    {change.next_step}")


def _short(encoder: str | None, fingerprint: str | None) -> str:
    return f"{encoder} {(fingerprint or '')[:12]}" if encoder else "no encoder"
