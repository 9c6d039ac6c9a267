"""``pgembed index``: plan, build, measure and check the vector indexes of any table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Connection, Engine, Index

from pgembed import indexes
from pgembed.cli.known import declared_on, encoded, index_on
from pgembed.cli.options import AsJson, DatabaseUrl, open_engine
from pgembed.indexes import Recall, VectorIndex
from pgembed.indexes.asking import Queries
from pgembed.indexes.catalogue import find
from pgembed.indexes.forms import Form
from pgembed.indexes.progress import OnProgress
from pgembed.indexes.sizes import readable
from pgembed.indexes.sweeping import check_drawing

group = typer.Typer(no_args_is_help=True, help="Plan, build, measure and check vector indexes.")

TableName = Annotated[str, typer.Argument(help='The table, as SQL writes it: article, "My schema".article.')]
ColumnName = Annotated[str, typer.Argument(help="Its vector column.")]
Method = Annotated[str | None, typer.Option(help="hnsw (as a rule) or ivfflat.", show_default=False)]
Metric = Annotated[
    str | None,
    typer.Option(help="cosine, l2, inner_product, l1, ...; by default the column's.", show_default=False),
]
Quantize = Annotated[
    Literal["half", "bit"] | None,
    typer.Option(help="half or bit: index smaller values of the vectors.", show_default=False),
]
Dimensions = Annotated[
    int | None, typer.Option(help="Index the first so many dimensions.", show_default=False)
]
Where = Annotated[
    str | None, typer.Option(help="Index the rows that meet a condition, as SQL.", show_default=False)
]
NewName = Annotated[
    str | None, typer.Option("--index", help="What to call it.", show_default="ix_<table>_<column>_...")
]
IndexName = Annotated[
    str | None, typer.Option("--index", help="Which index, of several of the column.", show_default=False)
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
Count = Annotated[int, typer.Option("--queries", min=2, help="How many random rows to ask for.")]
Texts = Annotated[
    typer.FileText | None,
    typer.Option(help="A file of texts to ask for in place of rows, one a line.", show_default=False),
]
EncoderName = Annotated[
    str | None,
    typer.Option("--encoder", help="Of the texts; by default the one that the column is filled with."),
]
K = Annotated[int, typer.Option("--k", min=1, help="Neighbours of each.")]


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
    """What building an index takes: memory, disk, time; and which index suits so many rows."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    form = Form(quantize, dimensions, where)
    with open_engine(url) as engine, engine.begin() as connection:
        index = _new(connection, table, column, models, name, method, metric, form, parameters)
        found = indexes.plan(connection, index, workers=workers)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    stated = ", ".join(f"{name} = {value}" for name, value in found.parameters.items())
    typer.echo(f"{found.index} on {found.table}: {found.access_method} ({stated})")
    typer.echo(f"rows                  {found.rows:,} of {found.dimensions} dimensions ({found.storage})")
    typer.echo(f"memory of the build   {readable(found.memory)}")
    typer.echo(f"size on disk          {readable(found.disk)}")
    typer.echo(f"maintenance_work_mem  {readable(found.maintenance_work_mem)}")
    shared = f", {readable(found.shared_memory)} of shared memory" if found.shared_memory else ""
    typer.echo(f"workers               {found.workers}{shared}")
    if found.seconds is not None:
        typer.echo(f"time                  about {found.seconds:.1f} s")
    typer.echo(f"recommended           {found.recommendation}")


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
    """Build an index while the table is read and written, with the memory that it needs."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    form = Form(quantize, dimensions, where)
    with open_engine(url) as engine:
        with engine.begin() as connection:
            index = _new(connection, table, column, models, name, method, metric, form, parameters)
        _with_progress(
            lambda report: indexes.create_concurrently(engine, index, workers=workers, on_progress=report)
        )
        _print_standing(engine, index, as_json)


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


@group.command()
def recall(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: IndexName = None,
    queries: Count = 200,
    texts: Texts = None,
    encoder: EncoderName = None,
    k: K = 10,
    ef_search: Annotated[int | None, typer.Option(help="For HNSW.", show_default=False)] = None,
    probes: Annotated[int | None, typer.Option(help="For IVFFlat.", show_default=False)] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw recall against latency over all settings: a PNG, SVG or PDF file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How many of the nearest rows the index finds, and how fast, against exact scans."""
    if plot is not None and not (ef_search is None and probes is None):
        raise typer.BadParameter(
            "it takes all settings: leave --ef-search and --probes out", param_hint="--plot"
        )
    if plot is not None:
        check_drawing(plot)
    with open_engine(url) as engine, engine.begin() as connection:
        index = index_on(connection, table, column, name=name)
        asked = _asked(connection, table, column, queries, texts, encoder)
        if plot is None:
            found = indexes.recall(connection, index, queries=asked, k=k, ef_search=ef_search, probes=probes)
            typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else _line(found))
            return
        swept = indexes.sweep(connection, index, queries=asked, k=k)
    indexes.plot(swept, plot)
    if as_json:
        typer.echo(json.dumps([found.as_dict() for found in swept], indent=2))
        return
    for found in swept:
        typer.echo(_line(found))


@group.command()
def tune(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: IndexName = None,
    target_recall: Annotated[float, typer.Option(help="The share of neighbours to find, to 1.")] = 0.95,
    queries: Count = 400,
    texts: Texts = None,
    encoder: EncoderName = None,
    k: K = 10,
    as_json: AsJson = False,
) -> None:
    """The cheapest ef_search or probes that reaches a recall; exit code 1 if none does."""
    with open_engine(url) as engine, engine.begin() as connection:
        index = index_on(connection, table, column, name=name)
        asked = _asked(connection, table, column, queries, texts, encoder)
        found = indexes.tune(connection, index, target_recall=target_recall, queries=asked, k=k)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        for tried in found.tried:
            typer.echo(_line(tried))
        typer.echo(f"on other queries: {_line(found.unseen)}")
        ((name, value),) = found.arguments.items()
        typer.echo(f"in a query: {name}={value}; in a session: {found.sql}")
        if not found.reached:
            typer.echo(
                f"no setting reaches {target_recall}: build with a higher ef_construction or m", err=True
            )
    if not found.reached:
        raise typer.Exit(1)


@group.command()
def check(url: DatabaseUrl, as_json: AsJson = False) -> None:
    """What is wrong with the vector indexes of the database; exit code 1 if anything is."""
    with open_engine(url) as engine, engine.begin() as connection:
        findings = indexes.check(connection)
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    elif not findings:
        typer.echo("nothing is wrong with the vector indexes")
    else:
        for finding in findings:
            typer.echo(f"[{finding.code}] {finding}")
    if findings:
        raise typer.Exit(1)


def _asked(
    connection: Connection,
    table: str,
    column: str,
    count: int,
    texts: typer.FileText | None,
    encoder: str | None,
) -> Queries:
    if texts is None:
        return count
    lines = [line.strip() for line in texts if line.strip()]
    if not lines:
        raise typer.BadParameter("the file holds no text", param_hint="--texts")
    return list(encoded(connection, table, column, lines, encoder))


def _new(
    connection: Connection,
    table: str,
    column: str,
    models: str | None,
    name: str | None,
    method: str | None,
    metric: str | None,
    form: Form,
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
    if form != Form() or any(given is not None for given in (method, metric, *parameters.values())):
        raise typer.BadParameter("the models say what the index is: leave the other options out")
    return declared_on(connection, table, column, models, name=name)


def _with_progress(work: Callable[[OnProgress], object]) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        work(
            lambda progress: bar.update(
                task, description=_phase(progress), completed=progress.done, total=progress.total or None
            )
        )


def _phase(progress: indexes.Progress) -> str:
    part = f"partition {progress.part} of {progress.parts}: " if progress.parts > 1 else ""
    return part + progress.phase


def _print_standing(engine: Engine, index: Index, as_json: bool) -> None:
    with engine.connect() as connection:
        found = find(connection, index)
    assert found is not None
    if as_json:
        facts = {"index": found.name, "table": found.relation, "access_method": found.access_method}
        typer.echo(json.dumps({**facts, "parameters": found.parameters, "size": found.size}, indent=2))
    else:
        typer.echo(f"{found.name} on {found.relation}: {found.access_method}, {readable(found.size)}")


def _line(found: Recall) -> str:
    return (
        f"{found.setting} {found.value:>4}: recall {found.recall:.3f} ({found.low:.3f} to {found.high:.3f}), "
        f"p50 {found.approximate.p50:.1f} ms, p95 {found.approximate.p95:.1f} ms; exact "
        f"p50 {found.exact.p50:.1f} ms, p95 {found.exact.p95:.1f} ms"
    )
