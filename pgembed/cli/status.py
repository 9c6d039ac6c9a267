"""``pgembed status``: how fresh every embedding column is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pgembed.cli.options import AsJson, DatabaseUrl, connect, print_table, say
from pgembed.database.install import require_installed
from pgembed.exc import PgembedError
from pgembed.filling.cuts import count_cuts
from pgembed.filling.targets import Refused, Target, registered_targets

#: The view, and the name that the registry's targets have.
_STATUS = """
SELECT pg_catalog.concat(pg_catalog.quote_ident(n.nspname), '.', pg_catalog.quote_ident(c.relname), '.',
                         coalesce(s.column_name, '?'))
           AS target, s.*
FROM pgembed.status AS s
JOIN pg_catalog.pg_class AS c ON c.oid = CAST(s.relation AS oid)
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("status")(status)


def status(
    url: DatabaseUrl,
    as_json: AsJson = False,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Tokenise N rows of each column to see how many texts are cut."),
    ] = 1000,
) -> None:
    """Show fresh, pending and failed rows of every embedding column (the view pgembed.status).

    A text longer than its encoder's limit is cut. Their number is estimated from a sample of the rows, if the
    encoder's tokenizer is on this machine.
    """
    with connect(url) as connection:
        require_installed(connection)
        rows = [dict(row) for row in connection.execute(text(_STATUS)).mappings()]
        if sample and rows:
            targets = {_name(one): one for one in registered_targets(connection)}
            for row in rows:
                row |= _cuts(connection, targets.get(row["target"]), row, sample)
    for row in rows:
        del row["target"]
    if as_json:
        say(json.dumps(rows, indent=2))
    elif not rows:
        say("no embedding columns in this database")
    else:
        print_table(_table(rows, sampled=sample > 0))
        for row in rows:
            if row.get("cut_problem") and not row["problem"]:
                name = f"{row['relation']}.{row['column_name']}"
                say(f"{name}: cut texts unknown: {row['cut_problem']}")
        if any(row.get("cut") for row in rows):
            say(
                "Of cut texts only the beginning is found; embedding_parts(...) finds all: docs/long_texts.md"
            )


def _name(target: Target | Refused) -> str:
    return target.name


def _cuts(
    connection: Connection, target: Target | Refused | None, row: dict[str, Any], sample: int
) -> dict[str, Any]:
    """A column's cut texts, or why they cannot be counted."""
    found: dict[str, Any] = {"sampled": None, "cut": None, "cut_problem": None}
    try:
        if row["problem"] or row["total"] is None or target is None:
            return found | {"cut_problem": row["problem"] or "the table has changed meanwhile"}
        if isinstance(target, Refused):
            raise target.error
        with connection.begin_nested():
            cuts = count_cuts(connection, target, total=row["total"], rows=sample)
    except (PgembedError, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return found | {"cut_problem": " ".join(str(cause).split())}
    return found | {"sampled": cuts.sampled, "cut": cuts.cut}


def _table(rows: list[dict[str, Any]], *, sampled: bool) -> Table:
    table = Table(box=None)
    for heading in ("column", "encoder", "fingerprint"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "fresh", "pending", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("index")
    split = any(row["parts"] is not None for row in rows)
    if split:
        table.add_column("parts", justify="right")
    worded = any(row["words"] for row in rows)
    if worded:
        table.add_column("words as of")
    if sampled:
        table.add_column("cut texts")
    for row in rows:
        table.add_row(
            escape(f"{row['relation']}.{row['column_name'] or '?'}"),
            escape(row["encoder"] or "?"),
            escape((row["fingerprint"] or "?")[:12]),
            *_counted(row),
            escape(row["problem"] or row["index"]),
            *([_number(row, "parts")] if split else []),
            *([escape(row["words"] or "")] if worded else []),
            *([_share(row)] if sampled else []),
        )
    return table


def _counted(row: dict[str, Any]) -> Iterator[str]:
    """Figures as they are shown; a tilde before those that are estimated."""
    for name in ("total", "fresh", "pending", "failed"):
        yield "?" if row[name] is None else _number(row, name)


def _number(row: dict[str, Any], name: str) -> str:
    estimated = row["estimated"] and name in ("total", "fresh", "parts")
    return "" if row[name] is None else f"{'~' if estimated else ''}{row[name]:,}"


def _share(row: dict[str, Any]) -> str:
    if row["sampled"] is None:
        return "?"
    if not row["sampled"]:
        return "none"
    return f"{row['cut'] / row['sampled']:.1%} of {row['sampled']:,}"
