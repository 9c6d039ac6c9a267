"""``pgembed failures``: rows that could not be filled, and trying them again."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection

from pgembed.cli.known import oid_of
from pgembed.cli.options import AsJson, DatabaseUrl, OneColumn, OneTable, connect, print_table, say
from pgembed.database.install import require_installed
from pgembed.exc import NotInstalledError, PgembedError
from pgembed.filling import failures


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Show and retry rows that could not be filled.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("retry")(retry)
    app.add_typer(group, name="failures")


def list_(
    url: DatabaseUrl, table: OneTable = None, column: OneColumn = None, as_json: AsJson = False
) -> None:
    """Show the rows that were set aside, with their errors, newest first."""
    with connect(url) as connection:
        found = failures.listed(connection, _relation(connection, table), column)
    if as_json:
        say(json.dumps([asdict(failure) for failure in found], indent=2, default=str))
        return
    if not found:
        say("no failures")
        return
    shown = Table("column", "key", "attempts", "next attempt", "error", box=None)
    for failure in found:
        shown.add_row(
            escape(f"{failure.relation}.{failure.column_name}"),
            escape(failure.key),
            str(failure.attempts),
            f"{failure.next_attempt_at:%Y-%m-%d %H:%M:%S}",
            escape(" ".join(failure.error.split())),
        )
    print_table(shown)


def retry(
    url: DatabaseUrl,
    table: OneTable = None,
    column: OneColumn = None,
    key: Annotated[str | None, typer.Option(help="Only this row, by its key as `list` shows it.")] = None,
) -> None:
    """Let workers try the rows again at once. Exit code 1 if no failed row has the key."""
    with connect(url) as connection:
        relation = _relation(connection, table)
        count = failures.retry(connection, relation, column, key)
        if key is not None and not count:
            others = failures.listed(connection, relation, column)
            hint = f"keys look like {others[0].key}" if others else "none has failed"
            raise PgembedError(f"no failed row has the key {key}; {hint}")
    say(f"{count:,} {'row' if count == 1 else 'rows'} will be tried again")


def _relation(connection: Connection, table: str | None) -> int | None:
    require_installed(connection)
    if table is None:
        return None
    found = oid_of(connection, table)
    if found is None:
        raise NotInstalledError(f"the database has no table {table}")
    return found
