"""``pgembed index``: plan and build the vector indexes of any table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Connection, Engine, Index

from pgembed import indexes
from pgembed.cli.known import declared_on, index_on
from pgembed.cli.options import AsJson, ColumnName, DatabaseUrl, IndexName, TableName, open_engine, say
from pgembed.indexes import VectorIndex
from pgembed.indexes.differences import IndexForm, stands_as_declared
from pgembed.indexes.progress import OnProgress
from pgembed.indexes.sizes import readable
from pgembed.indexes.standing import find

group = typer.Typer(no_args_is_help=True, help="Plan, build, measure and check vector indexes.")

Method = Annotated[str | None, typer.Option(help="hnsw (the usual choice) or ivfflat.", show_default=False)]
Metric = Annotated[
    str | None,
    typer.Option(help="cosine, l2, inner_product, l1, ...; by default the column's.", show_default=False),
]
Quantize = Annotated[
    Literal["half", "bit"] | None,
    typer.Option(help="half or bit: index smaller values of the vectors.", show_default=False),
]
Dimensions = Annotated[int | None, typer.Option(help="Index the first N dimensions.", show_default=False)]
Where = Annotated[
    str | None, typer.Option(help="Index the rows that meet a condition, as SQL.", show_default=False)
]
NewName = Annotated[
    str | None, typer.Option("--index", help="What to call it.", show_default="ix_<table>_<column>_...")
]
M = Annotated[int | None, typer.Option("--m", help="HNSW: connections of a node.", show_default="16")]
EfConstruction = Annotated[
    int | None, typer.Option(help="HNSW: candidates while building.", show_default="64")
]
Lists = Annotated[int | None, typer.Option(help="IVFFlat: number of clusters.", show_default="100")]
Models = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="Take the index that a declarative base, MetaData or Table declares on the column.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=0, help="Parallel workers.", show_default="the server's")]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="index")


@group.command()
def plan(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: NewName = None,
    method: Method = None,
    metric: Metric = None,
    quantize: Quantize = None,
    dimensions: Dimensions = None,
    where: Where = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    lists: Lists = None,
    models: Models = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Say what building an index takes: memory, disk, time; and which index suits that many rows."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    form = IndexForm(quantize, dimensions, where)
    with open_engine(url) as engine, engine.begin() as connection:
        index = _new(connection, table, column, models, name, method, metric, form, parameters)
        found = indexes.plan(connection, index, workers=workers)
    if as_json:
        say(json.dumps(found.as_dict(), indent=2))
        return
    stated = ", ".join(f"{name} = {value}" for name, value in found.parameters.items())
    say(f"{found.index} on {found.table}: {found.access_method} ({stated})")
    say(f"rows                  {found.rows:,} of {found.dimensions} dimensions ({found.storage})")
    say(f"memory of the build   {readable(found.memory)}")
    say(f"size on disk          {readable(found.disk)}")
    say(f"maintenance_work_mem  {readable(found.maintenance_work_mem)}")
    shared = f", {readable(found.shared_memory)} of shared memory" if found.shared_memory else ""
    say(f"workers               {found.workers}{shared}")
    if found.seconds is not None:
        say(f"time                  about {found.seconds:.1f} s")
    say(f"recommended           {found.recommendation}")


@group.command()
def create(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: NewName = None,
    method: Method = None,
    metric: Metric = None,
    quantize: Quantize = None,
    dimensions: Dimensions = None,
    where: Where = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    lists: Lists = None,
    models: Models = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Build an index while the table is read and written, with the memory that it needs.

    An existing index with these settings is left as it is; one with other settings is an error.
    """
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    form = IndexForm(quantize, dimensions, where)
    with open_engine(url) as engine:
        with engine.begin() as connection:
            index = _new(connection, table, column, models, name, method, metric, form, parameters)
            already = stands_as_declared(connection, index)
        if not already:
            _with_progress(
                lambda report: indexes.create_concurrently(engine, index, workers=workers, on_progress=report)
            )
        _print_standing(engine, index, as_json, already=already)


@group.command()
def reindex(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: IndexName = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    lists: Lists = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Build an index anew beside the old one, with other parameters if they are given."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    with open_engine(url) as engine:
        with engine.begin() as connection:
            index = index_on(connection, table, column, name=name, parameters=parameters)
        _with_progress(lambda report: indexes.reindex(engine, index, workers=workers, on_progress=report))
        _print_standing(engine, index, as_json)


def _new(
    connection: Connection,
    table: str,
    column: str,
    models: str | None,
    name: str | None,
    method: str | None,
    metric: str | None,
    form: IndexForm,
    parameters: Mapping[str, int | None],
) -> VectorIndex:
    """The index to plan or build: the one that models declare, or the one that the options say."""
    if models is None:
        return index_on(
            connection,
            table,
            column,
            name=name,
            new=True,
            method=method,
            metric=metric,
            form=form,
            parameters=parameters,
        )
    if form != IndexForm() or any(given is not None for given in (method, metric, *parameters.values())):
        raise typer.BadParameter("the models say what the index is: leave the other options out")
    return declared_on(connection, table, column, models, name=name)


def _with_progress(work: Callable[[OnProgress], object]) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # a bar that is only disabled ends with an empty line in rich 13
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("starting", total=None)
        work(
            lambda progress: bar.update(
                task, description=_phase(progress), completed=progress.done, total=progress.total or None
            )
        )


def _phase(progress: indexes.Progress) -> str:
    part = f"partition {progress.part} of {progress.parts}: " if progress.parts > 1 else ""
    return part + progress.phase


def _print_standing(engine: Engine, index: Index, as_json: bool, *, already: bool = False) -> None:
    with engine.connect() as connection:
        found = find(connection, index)
    assert found is not None
    if as_json:
        facts = {"index": found.name, "table": found.relation, "access_method": found.access_method}
        values = {"parameters": found.parameters, "size": found.size, "built": not already}
        say(json.dumps(facts | values, indent=2))
    else:
        there = ", already there" if already else ""
        say(f"{found.name} on {found.relation}: {found.access_method}, {readable(found.size)}{there}")
