"""``pgembed classify`` and ``pgembed evaluate``: labels from the nearest labelled rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from sqlalchemy import Connection, Row, Table, bindparam, update

from pgembed import measuring
from pgembed.cli.known import table_with
from pgembed.cli.options import (
    AsCsv,
    AsJson,
    ColumnName,
    DatabaseUrl,
    TableName,
    connect,
    open_engine,
    print_rows,
    say,
)
from pgembed.measuring.curve import check_drawing
from pgembed.queries import knn_classify_many
from pgembed.queries.core.nearest import Mode

Label = Annotated[str, typer.Argument(help="The column of the labels.")]
K = Annotated[int, typer.Option("--k", min=1, help="How many neighbours vote.")]
Approximate = Annotated[
    bool, typer.Option("--approximate", help="Look into the index of the column; else all rows are compared.")
]


class Weight(StrEnum):
    """What a vote weighs."""

    distance = "distance"
    uniform = "uniform"


Weights = Annotated[Weight, typer.Option(help="Weigh votes by 1 / distance, or all alike.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("classify")(classify)
    app.command("evaluate")(evaluate)


def classify(
    table: TableName,
    column: ColumnName,
    label: Label,
    url: DatabaseUrl,
    k: K = 15,
    weights: Weights = Weight.distance,
    balanced: Annotated[bool, typer.Option("--balanced", help="Frequent labels have no advantage.")] = False,
    min_share: Annotated[float | None, typer.Option(help="The least share of a label in the votes.")] = None,
    min_margin: Annotated[float | None, typer.Option(help="The least lead over the second label.")] = None,
    max_distance: Annotated[
        float | None, typer.Option(help="Rows that are farther away do not vote.")
    ] = None,
    approximate: Approximate = False,
    write: Annotated[bool, typer.Option("--write", help="Store the labels in the table.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List labels for the rows that have none, from their nearest labelled rows.

    Nothing is changed without --write. Where an answer is not sure enough, there is a reason and no label.
    """
    with open_engine(url) as engine, engine.begin() as connection:
        reflected, entry = table_with(connection, table, column, label)
        statement = knn_classify_many(
            reflected.c[column],
            queries=reflected.c[label].is_(None),
            label=reflected.c[label],
            k=k,
            weights=weights.value,
            prior="balanced" if balanced else None,
            regression=False,
            min_share=min_share,
            min_margin=min_margin,
            max_distance=max_distance,
            mode=_mode(approximate),
            metric=entry.get("metric"),
        )
        with Console(stderr=True).status("comparing rows"):
            result = connection.execute(statement)
            names, rows = list(result.keys()), result.all()
            if write:
                _store(connection, reflected, label, rows)
    print_rows(names, rows, as_json=as_json, as_csv=as_csv)


def evaluate(
    table: TableName,
    column: ColumnName,
    label: Label,
    url: DatabaseUrl,
    k: K = 15,
    weights: Weights = Weight.distance,
    apart: Annotated[
        float | None, typer.Option(help="Rows with at least this score do not vote for each other.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Predict this share of the rows, chosen by their keys, by all others."),
    ] = None,
    approximate: Approximate = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix: a PNG, SVG or PDF file.")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Measure how good labels from neighbours are: each labelled row is predicted from all others.

    --csv prints the confusion matrix, a line for each label and predicted label.
    """
    if plot is not None:
        check_drawing(plot)
    with connect(url) as connection, Console(stderr=True).status("comparing rows"):
        reflected, entry = table_with(connection, table, column, label)
        found = measuring.evaluate(
            connection,
            reflected.c[column],
            label=reflected.c[label],
            k=k,
            weights=weights.value,
            held_out=held_out,
            apart=apart,
            mode=_mode(approximate),
            metric=entry.get("metric"),
        )
    if plot is not None:
        found.plot(plot)
    if as_json:
        say(json.dumps(found.as_dict(), indent=2, default=str))
        return
    confusion: Any = [(each.label, each.predicted, each.rows) for each in found.confusion]
    if as_csv:
        print_rows(["label", "predicted", "rows"], confusion, as_json=False, as_csv=True)
        return
    say(f"{found.rows:,} rows, k = {found.k}: accuracy {found.accuracy:.3f}, macro F1 {found.macro_f1:.3f}")
    say(f"expected calibration error: {found.calibration_error:.3f}")
    say(f"best k: {found.best_k}; best temperature of softmax weights: {found.best_temperature}")
    coverage: Any = [
        (each.min_share, each.coverage, each.accuracy if each.coverage else None) for each in found.coverage
    ]
    print_rows(["min_share", "coverage", "accuracy"], coverage, as_json=False, as_csv=False)


def _mode(approximate: bool) -> Mode:
    return "approximate" if approximate else "exact"


def _store(connection: Connection, table: Table, label: str, rows: Sequence[Row[Any]]) -> None:
    """Store the labels, but where somebody has given one meanwhile."""
    keys = list(table.primary_key)
    labels = [
        {f"pgembed_key_{place}": value for place, value in enumerate(row[: len(keys)])}
        | {"pgembed_label": row.label}
        for row in rows
        if row.reason is None
    ]
    if labels:
        same = (key == bindparam(f"pgembed_key_{place}") for place, key in enumerate(keys))
        statement = update(table).where(*same, table.c[label].is_(None))
        connection.execute(statement.values({label: bindparam("pgembed_label")}), labels)
