"""``pgembed status``: how fresh every embedding column is."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from pgembed.cli.options import AsJson, DatabaseUrl, connect, require_installed


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status")(status)


def status(url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Show fresh, pending and failed rows of every embedding column (the view pgembed.status)."""
    with connect(url) as connection:
        require_installed(connection)
        rows = [
            dict(row) for row in connection.execute(text("SELECT * FROM pgembed.status")).mappings().all()
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        typer.echo("no embedding columns in this database")
    else:
        Console().print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("column", "encoder", "fingerprint", box=None)
    for heading in ("rows", "fresh", "pending", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("index")
    for row in rows:
        column = f"{row['relation']}.{row['column_name']}"
        facts = (column, row["encoder"], row["fingerprint"][:12])
        if row["problem"]:
            table.add_row(*facts, "?", "?", "?", "?", row["problem"])
        else:
            counts = (f"{row[name]:,}" for name in ("total", "fresh", "pending", "failed"))
            table.add_row(*facts, *counts, row["index"])
    return table
