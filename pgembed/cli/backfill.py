"""``pgembed backfill``: fill what is pending now, with a progress bar."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine

from pgembed.cli.options import DatabaseUrl, Models, OneColumn, OneTable, columns_of, open_engine, say
from pgembed.exc import EncoderError
from pgembed.filling.backfill import backfill as fill
from pgembed.filling.backfill import estimate, pending
from pgembed.filling.flow import Counts
from pgembed.filling.targets import Target, find_targets, split


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("backfill")(backfill)


def backfill(
    url: DatabaseUrl,
    table: OneTable = None,
    column: OneColumn = None,
    models: Models = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Fill at most N rows of a column.")] = None,
    throttle: Annotated[float | None, typer.Option(min=0.1, help="Rows per second at most.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Fill only rows of TABLE that satisfy this SQL condition.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Encode a sample, write nothing, and say how long it would take."),
    ] = False,
) -> None:
    """Fill all pending rows, beside users and workers. After an interruption, run it again: it resumes.

    Exit code 1 if rows could not be filled, now or before, or stayed locked.
    """
    if where is not None and table is None:
        raise typer.BadParameter("a condition needs a TABLE", param_hint="--where")
    embeddings = columns_of(models)
    well = True
    with open_engine(url) as engine:
        with engine.begin() as connection:
            targets, refused = split(find_targets(connection, embeddings, table=table, column_name=column))
        for one in refused:
            say(f"{one.name}: {one.error}", err=True)
            well = False
        if not targets and not refused:
            say("no embedding columns in this database")
        for target in targets:
            try:
                if dry_run:
                    _estimate(engine, target, where, limit, throttle)
                else:
                    well = _fill(engine, target, where, limit, throttle) and well
            except EncoderError as error:
                say(f"{target}: {error}", err=True)
                well = False
    if not well:
        raise typer.Exit(1)


def _estimate(
    engine: Engine, target: Target, where: str | None, limit: int | None, throttle: float | None
) -> None:
    found = estimate(engine, target, where=where, limit=limit, throttle=throttle)
    if found.seconds is None or found.rows_per_second is None:
        say(f"{target}: {found.rows:,} rows to fill")
        return
    time = timedelta(seconds=round(found.seconds))
    say(f"{target}: {found.rows:,} rows to fill, {found.rows_per_second:,.0f} rows/s, about {time}")


def _fill(
    engine: Engine, target: Target, where: str | None, limit: int | None, throttle: float | None
) -> bool:
    """Fill a column; returns whether all requested rows are filled."""
    total = pending(engine, target, where=where)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(str(target), total=total if limit is None else min(total, limit), speed="")

        def show(counts: Counts) -> None:
            speed = bar.tasks[task].finished_speed or bar.tasks[task].speed
            bar.update(task, completed=counts.done, speed="" if speed is None else f"{speed:,.0f} rows/s")

        counts = fill(engine, target, where=where, limit=limit, throttle=throttle, on_progress=show)
    line = f"{target}: {counts.written:,} rows filled"
    if counts.failed:
        line += f", {counts.failed:,} failed (see `pgembed failures list`)"
    left = pending(engine, target, where=where, claimed=False) - counts.failed if limit is None else 0
    if left > 0:
        line += f", {left:,} still pending"
    say(line)
    return not counts.failed and left <= 0
