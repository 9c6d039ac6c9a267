"""``pgembed index``: plan, build, measure and check the vector indexes of any table."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Connection, Engine, MetaData, Table, text

from pgembed import indexes
from pgembed.cli.options import AsJson, DatabaseUrl, open_engine
from pgembed.exc import DeclarationError
from pgembed.indexes import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.catalogue import StandingIndex, standing
from pgembed.indexes.measuring import Recall
from pgembed.indexes.progress import OnProgress
from pgembed.indexes.sizes import readable

group = typer.Typer(no_args_is_help=True, help="Plan, build, measure and check vector indexes.")

TableName = Annotated[str, typer.Argument(help='The table, as SQL writes it: article, "My schema".article.')]
ColumnName = Annotated[str, typer.Argument(help="Its vector column.")]
Method = Annotated[str | None, typer.Option(help="hnsw (as a rule) or ivfflat.", show_default=False)]
Metric = Annotated[
    str | None, typer.Option(help="cosine, l2 or inner_product; by default the column's.", show_default=False)
]
M = Annotated[int | None, typer.Option("--m", help="HNSW: connections of a node.", show_default="16")]
EfConstruction = Annotated[
    int | None, typer.Option(help="HNSW: candidates while building.", show_default="64")
]
Lists = Annotated[int | None, typer.Option(help="IVFFlat: number of clusters.", show_default="100")]
Workers = Annotated[int | None, typer.Option(min=0, help="Parallel workers.", show_default="the server's")]
Queries = Annotated[int, typer.Option(min=2, help="How many random rows to ask for.")]
K = Annotated[int, typer.Option("--k", min=1, help="Neighbours of each.")]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group, name="index")


@group.command()
def plan(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    method: Method = None,
    metric: Metric = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    lists: Lists = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """What building an index takes: memory, disk, time; and which index suits so many rows."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    with open_engine(url) as engine, engine.begin() as connection:
        found = indexes.plan(
            connection, _declared(connection, table, column, method, metric, parameters), workers=workers
        )
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
    method: Method = None,
    metric: Metric = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    lists: Lists = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Build an index while the table is read and written, with the memory that it needs."""
    parameters = {"m": m, "ef_construction": ef_construction, "lists": lists}
    with open_engine(url) as engine:
        with engine.begin() as connection:
            index = _declared(connection, table, column, method, metric, parameters)
        _with_progress(
            lambda report: indexes.create_concurrently(engine, index, workers=workers, on_progress=report)
        )
        _print_standing(engine, str(index.name), as_json)


@group.command()
def reindex(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
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
            index = _declared(connection, table, column, None, None, parameters)
        _with_progress(lambda report: indexes.reindex(engine, index, workers=workers, on_progress=report))
        _print_standing(engine, str(index.name), as_json)


@group.command()
def recall(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    queries: Queries = 200,
    k: K = 10,
    ef_search: Annotated[int | None, typer.Option(help="For HNSW.", show_default=False)] = None,
    probes: Annotated[int | None, typer.Option(help="For IVFFlat.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """How many of the nearest rows the index finds, and how fast, against exact scans."""
    with open_engine(url) as engine, engine.begin() as connection:
        index = _declared(connection, table, column, None, None, {})
        found = indexes.recall(connection, index, queries=queries, k=k, ef_search=ef_search, probes=probes)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else _line(found))


@group.command()
def tune(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    target_recall: Annotated[float, typer.Option(help="The share of neighbours to find, to 1.")] = 0.95,
    queries: Queries = 400,
    k: K = 10,
    as_json: AsJson = False,
) -> None:
    """The cheapest ef_search or probes that reaches a recall; exit code 1 if none does."""
    with open_engine(url) as engine, engine.begin() as connection:
        index = _declared(connection, table, column, None, None, {})
        found = indexes.tune(connection, index, target_recall=target_recall, queries=queries, k=k)
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


def _declared(
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
        metric=metric or (there.metric if there else None) or _registered(connection, table, column),
        **options,
    )


def _standing_on(connection: Connection, table: str, column: str, method: str | None) -> StandingIndex | None:
    there = [
        index
        for index in standing(connection, table)
        if index.column == column and index.predicate is None and method in (None, index.access_method)
    ]
    return next((index for index in there if index.valid), there[0] if there else None)


def _registered(connection: Connection, table: str, column: str) -> str | None:
    """The metric of a registered embedding column."""
    if connection.scalar(text("SELECT to_regclass('pgembed.embedding_columns')")) is None:
        return None
    metric: str | None = connection.scalar(
        text(
            "SELECT metric FROM pgembed.embedding_columns "
            "WHERE relation = to_regclass(:table) AND column_name = :column"
        ),
        {"table": table, "column": column},
    )
    return metric


def _with_progress(work: Callable[[OnProgress], object]) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        work(
            lambda progress: bar.update(
                task, description=progress.phase, completed=progress.done, total=progress.total or None
            )
        )


def _print_standing(engine: Engine, name: str, as_json: bool) -> None:
    with engine.connect() as connection:
        (found,) = [index for index in standing(connection) if index.name == name]
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
