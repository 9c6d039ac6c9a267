"""``pgembed dedup``, ``match`` and ``cluster``: which rows say the same, or are about the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Integer, Row, Select, Table, cast, column, func, select, text
from sqlalchemy.dialects.postgresql import JSONB

from pgembed.cli.known import require_trusted, table_with
from pgembed.cli.options import (
    AsCsv,
    AsJson,
    ColumnName,
    DatabaseUrl,
    TableName,
    connect,
    open_engine,
    print_rows,
)
from pgembed.clustering import kmeans as divide
from pgembed.clustering import write_labels
from pgembed.clustering.labels import OnProgress
from pgembed.database.install import require_installed

_KEEP = text(
    "SELECT key, kept_key, score FROM pgembed.keep_list(CAST(:table AS regclass), :column, :min_score, "
    "keep => :keep, descending => :descending) WHERE NOT is_kept"
)
_MERGE = text(
    "WITH found AS MATERIALIZED (SELECT coalesce(array_agg(key), '{}') AS dropped, "
    "coalesce(array_agg(kept_key), '{}') AS kept FROM pgembed.keep_list(CAST(:table AS regclass), :column, "
    ":min_score, keep => :keep, descending => :descending) WHERE NOT is_kept) "
    'SELECT m.changed AS "table", m.reference, m.action, m.rows FROM found CROSS JOIN LATERAL '
    "pgembed.merge_duplicates(CAST(:table AS regclass), found.dropped, found.kept, :dry_run) AS m"
)
_PAIRS = text(
    "SELECT left_key, right_key, score "
    "FROM pgembed.near_duplicates(CAST(:table AS regclass), :column, :min_score)"
)
_GROUPS = text(
    "SELECT group_id, key FROM pgembed.duplicate_groups(CAST(:table AS regclass), :column, :min_score)"
)
_CLUSTERS = text(
    "SELECT cluster, key, score "
    "FROM pgembed.cluster(CAST(:table AS regclass), :column, :min_score, :min_size)"
)
_MATCHES = text(
    "SELECT left_key, right_key, score, margin_of_pair AS margin FROM pgembed.match("
    "CAST(:table AS regclass), :column, CAST(:other AS regclass), :other_column, "
    "min_score => :min_score, margin => :margin, one_to_one => :one_to_one)"
)


class Show(StrEnum):
    """What ``pgembed dedup`` lists."""

    dropped = "dropped"
    pairs = "pairs"
    groups = "groups"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("dedup")(dedup)
    app.command("match")(match)
    app.command("cluster")(cluster)


def dedup(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    min_score: Annotated[float, typer.Option(help="The least score of duplicates.")],
    show: Annotated[
        Show, typer.Option(help="Rows to drop, each with the row to keep; all pairs; or groups.")
    ] = Show.dropped,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Of duplicates, keep the row with the smallest value of this column.", metavar="COLUMN"
        ),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Keep the one with the greatest.")] = False,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Say what merging the dropped rows into the kept ones would change."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Merge them.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List rows of a table that say nearly the same thing; nothing is changed without --merge --yes.

    The index of the column is used where there is one and the table is large.
    """
    if yes and not merge:
        raise typer.BadParameter("has no effect without --merge", param_hint="--yes")
    if merge and show is not Show.dropped:
        raise typer.BadParameter(f"has no effect with --show {show}", param_hint="--merge")
    given: dict[str, Any] = {"table": table, "column": column, "min_score": min_score}
    if show is Show.dropped:
        given |= {"keep": keep, "descending": descending} | ({"dry_run": not yes} if merge else {})
        names, rows = _found(url, [table], _MERGE if merge else _KEEP, given)
    elif keep is not None or descending:
        raise typer.BadParameter(f"has no effect with --show {show}", param_hint="--keep")
    else:
        names, rows = _found(url, [table], _PAIRS if show is Show.pairs else _GROUPS, given)
    print_rows(names, rows, as_json=as_json, as_csv=as_csv)


def match(
    left: Annotated[str, typer.Argument(help="A table, as SQL writes it.")],
    left_column: ColumnName,
    right: Annotated[str, typer.Argument(help="The other table.")],
    right_column: ColumnName,
    url: DatabaseUrl,
    min_score: Annotated[float | None, typer.Option(help="The least score of a match.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="The least margin: the score divided by that of what else is near.")
    ] = None,
    one_to_one: Annotated[
        bool, typer.Option(help="Only rows that are the best of each other, or the best for each left row.")
    ] = True,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List which row of one table is which row of another, the most certain first."""
    names, rows = _found(
        url,
        [left, right],
        _MATCHES,
        {
            "table": left,
            "column": left_column,
            "other": right,
            "other_column": right_column,
            "min_score": min_score,
            "margin": margin,
            "one_to_one": one_to_one,
        },
    )
    print_rows(names, rows, as_json=as_json, as_csv=as_csv)


def cluster(
    table: TableName,
    column: ColumnName,
    url: DatabaseUrl,
    min_score: Annotated[
        float | None, typer.Option(help="Rows about a center: the least score of a row to it.")
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(min=1, help="With --min-score, the least rows of a cluster: 10 by default.")
    ] = None,
    kmeans: Annotated[
        int | None, typer.Option(min=1, help="Divide all rows into this many clusters by k-means.")
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(help="Say what writing the numbers of clusters to it would change.", metavar="COLUMN"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write them.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the rows of clusters, or with --kmeans the sizes of clusters, the largest cluster first.

    Nothing is changed without --write COLUMN --yes, which writes batch by batch. Rows in no cluster get NULL.
    """
    if (min_score is None) == (kmeans is None):
        raise typer.BadParameter("expected one of --min-score and --kmeans", param_hint="--min-score")
    if min_size is not None and kmeans is not None:
        raise typer.BadParameter("has no effect with --kmeans", param_hint="--min-size")
    if yes and write is None:
        raise typer.BadParameter("has no effect without --write", param_hint="--yes")
    given = {"table": table, "column": column, "min_score": min_score, "min_size": min_size or 10}
    rows: Sequence[Sequence[Any]]
    if kmeans is None and write is None:
        names, rows = _found(url, [table], _CLUSTERS, given)
        print_rows(names, rows, as_json=as_json, as_csv=as_csv)
        return
    with open_engine(url) as engine:
        with engine.begin() as connection:
            others = [] if write is None else [write]
            reflected, entry = table_with(connection, table, column, *others)
            if kmeans is None:
                require_installed(connection)
        if write in entry.get("sources", ()):
            raise typer.BadParameter(f"{write} is a source of {table}.{column}", param_hint="--write")
        options: dict[str, Any] = {"write": None if write is None else reflected.c[write], "dry_run": not yes}
        if kmeans is None:
            with Console(stderr=True).status("comparing rows"):
                found: Any = write_labels(engine, reflected.c[column], _keyed(reflected, given), **options)
        else:
            options |= {"clusters": kmeans, "metric": entry.get("metric")}
            with _bar() as on_progress:
                found = divide(engine, reflected.c[column], **options, on_progress=on_progress)
    if write is None:
        names, rows = ["cluster", "size"], list(enumerate(found.sizes, 1))
    else:
        names = ["column", "clusters", "rows", "changed", "skipped"]
        rows = [(write, kmeans or found.clusters, found.rows, found.changed, found.skipped)]
    print_rows(names, rows, as_json=as_json, as_csv=as_csv)


def _keyed(table: Table, given: dict[str, Any]) -> Select[Any]:
    """The rows of ``pgembed.cluster`` with keys as statements have them: a value, or a JSON array."""
    found = _CLUSTERS.columns(column("cluster", Integer), column("key", JSONB)).bindparams(**given).subquery()
    keys = list(table.primary_key)
    values = [found.c.key[key.name] for key in keys]
    key = cast(values[0].astext, keys[0].type) if len(keys) == 1 else func.jsonb_build_array(*values)
    return select(found.c.cluster, key.label("key"))


@contextmanager
def _bar() -> Iterator[OnProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows, over all passes", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _found(
    url: str, tables: list[str], statement: Any, given: dict[str, Any]
) -> tuple[list[str], Sequence[Row[Any]]]:
    with connect(url) as connection, Console(stderr=True).status("comparing rows"):
        require_installed(connection)
        for table in tables:
            require_trusted(connection, table)
        result = connection.execute(statement, given)
        return list(result.keys()), result.all()
