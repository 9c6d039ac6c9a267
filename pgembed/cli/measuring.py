"""``pgembed index recall``, ``tune`` and ``check``: how good the existing indexes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from pgembed import indexes, measuring
from pgembed.cli.known import encoded, index_on
from pgembed.cli.options import AsJson, ColumnName, DatabaseUrl, IndexName, TableName, open_engine, say
from pgembed.measuring import Recall
from pgembed.measuring.curve import check_drawing
from pgembed.measuring.sample import Queries

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


def register(group: typer.Typer) -> None:
    """Add the commands to ``pgembed index``."""
    for command in (recall, tune, check):
        group.command()(command)


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
    """Measure how many of the nearest rows the index finds, and how fast, against exact scans."""
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
            found = measuring.recall(
                connection, index, queries=asked, k=k, ef_search=ef_search, probes=probes
            )
            say(json.dumps(found.as_dict(), indent=2) if as_json else _line(found))
            return
        swept = measuring.sweep(connection, index, queries=asked, k=k)
    measuring.plot(swept, plot)
    if as_json:
        say(json.dumps([found.as_dict() for found in swept], indent=2))
        return
    for found in swept:
        say(_line(found))


def tune(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    name: IndexName = None,
    target_recall: Annotated[float, typer.Option(help="The share of neighbours to find, up to 1.")] = 0.95,
    queries: Count = 400,
    texts: Texts = None,
    encoder: EncoderName = None,
    k: K = 10,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest ef_search or probes that reaches a recall; exit code 1 if none does."""
    with open_engine(url) as engine, engine.begin() as connection:
        index = index_on(connection, table, column, name=name)
        asked = _asked(connection, table, column, queries, texts, encoder)
        found = measuring.tune(connection, index, target_recall=target_recall, queries=asked, k=k)
    if as_json:
        say(json.dumps(found.as_dict(), indent=2))
    else:
        for tried in found.tried:
            say(_line(tried))
        say(f"on other queries: {_line(found.unseen)}")
        ((name, value),) = found.arguments.items()
        say(f"in a query: {name}={value}; in a session: {found.sql}")
        if not found.reached:
            say(f"no setting reaches {target_recall}: build with a higher ef_construction or m", err=True)
    if not found.reached:
        raise typer.Exit(1)


def check(url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Find what is wrong with the vector indexes of the database; exit code 1 if anything is."""
    with open_engine(url) as engine, engine.begin() as connection:
        findings = indexes.check(connection)
    if as_json:
        say(json.dumps([finding.as_dict() for finding in findings], indent=2))
    elif not findings:
        say("nothing is wrong with the vector indexes")
    else:
        for finding in findings:
            say(f"[{finding.code}] {finding}")
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


def _line(found: Recall) -> str:
    return (
        f"{found.setting} {found.value:>4}: recall {found.recall:.3f} ({found.low:.3f} to {found.high:.3f}), "
        f"p50 {found.approximate.p50:.1f} ms, p95 {found.approximate.p95:.1f} ms; exact "
        f"p50 {found.exact.p50:.1f} ms, p95 {found.exact.p95:.1f} ms"
    )
