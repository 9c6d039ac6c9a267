"""Options that several commands share."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from pgembed.columns import Freshness
from pgembed.database import embedded
from pgembed.encoders import Encoder
from pgembed.exc import DatabaseError, MissingPrivilegeError, sqlstate
from pgembed.filling.named_models import embeddings_in

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="PGEMBED_URL",
        help="The database: postgresql://user:password@host/name, or embedded:FOLDER. The driver is psycopg, "
        "whatever the URL says.",
        show_default=False,
    ),
]
#: Arguments of asyncpg, and values of its ``ssl``, as libpq calls them.
_OF_ASYNCPG = {"ssl": "sslmode", "timeout": "connect_timeout"}
_SSL = {"true": "require", "True": "require", "false": "disable", "False": "disable"}
_INSUFFICIENT_PRIVILEGE = "42501"
_MAY_USE = text(
    "SELECT current_user, coalesce(has_schema_privilege(to_regnamespace('pgembed'), 'USAGE'), true)"
)
_GRANTS = (
    'The grants needed are in docs/filling.md, "A role for the worker"; for searches docs/queries.md; an '
    "index is made by the owner of its table"
)
#: Control characters except tabs and ends of lines, and those that change the direction of writing.
_ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: More characters per line than any table has.
_NO_LIMIT = 10_000
#: Of commands that are about one column.
TableName = Annotated[str, typer.Argument(help='The table, as SQL writes it: article, "My schema".article.')]
ColumnName = Annotated[str, typer.Argument(help="Its vector column.")]
IndexName = Annotated[
    str | None, typer.Option("--index", help="Which index, of several of the column.", show_default=False)
]
Models = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="Take columns and encoders from a declarative base, MetaData or Table, instead of the "
        "database's registry.",
    ),
]
OneTable = Annotated[
    str | None, typer.Argument(help='Only this table, as SQL writes it: article, "My schema".article.')
]
OneColumn = Annotated[str | None, typer.Argument(help="Only this vector column.")]


def _one_format(context: typer.Context, option: typer.CallbackParam, is_given: bool) -> bool:
    """Refuse --json beside --csv, before anything is done.

    :raises typer.BadParameter: both are given.
    """
    other = "as_csv" if option.name == "as_json" else "as_json"
    if is_given and context.params.get(other):
        raise typer.BadParameter("choose one of --json and --csv")
    return is_given


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", callback=_one_format)]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.", callback=_one_format)]


def printable(text: str) -> str:
    """A text of a database or a server, made safe for a terminal: characters that control it, or change the
    direction of writing, are shown as ``\\u001b``."""
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(line: str, *, err: bool = False) -> None:
    """Print a line; whatever texts are in it, the terminal shows them."""
    typer.echo(printable(line), err=err)


def print_table(table: Table) -> None:
    """Print a table, in the width of the terminal; in a pipe or a file, lines are not broken."""
    table.title = printable(table.title) if isinstance(table.title, str) else table.title
    for column in table.columns:
        column._cells = [printable(cell) if isinstance(cell, str) else cell for cell in column._cells]
    Console(width=None if sys.stdout.isatty() else _NO_LIMIT).print(table)


def print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool, as_csv: bool) -> None:
    """Print the rows of a result, one a line: as a table, JSON or CSV."""
    if as_json:
        say(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, default=str))
        return
    lines = [[_shown(value) for value in row] for row in rows]
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([[printable(cell) for cell in line] for line in [names, *lines]])
        return
    table = Table(*names, box=None)
    for line in lines:
        table.add_row(*map(escape, line))
    print_table(table)


def _shown(value: Any) -> str:
    """A value as a cell: a key as its value; keys of several columns, and arrays, as JSON."""
    if isinstance(value, dict) and len(value) == 1:
        return str(*value.values())
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def print_line(line: str) -> None:
    """Print a line with Rich's markup, cut at the width of the terminal; in a pipe or a file it is whole."""
    line = printable(line)
    if sys.stdout.isatty():
        Console(highlight=False).print(line, no_wrap=True, overflow="ellipsis")
    else:
        say(Text.from_markup(line).plain)


@contextmanager
def open_engine(url: str, *, new: bool = False, **options: Any) -> Iterator[Engine]:
    """An engine for the database, disposed of at the end.

    ``embedded:FOLDER`` starts the embedded server on that folder, for as long as it is used.

    :param new: whether the folder may be one that holds no database yet.
    :param options: further arguments of :func:`sqlalchemy.create_engine`.
    :raises typer.BadParameter: the URL is not one of a Postgres database.
    :raises DatabaseError: the role lacks a privilege.
    """
    if url.startswith("embedded:"):
        folder = url.removeprefix("embedded:")
        if not folder or not (new or Path(folder, "PG_VERSION").is_file()):
            raise typer.BadParameter(
                f"the folder {folder!r} holds no database; `pgembed init` makes one", param_hint="--url"
            )
        with (
            embedded(Path(folder)) as server,
            open_engine(str(server), **options) as engine,
        ):
            yield engine
        return
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    except ArgumentError:
        raise typer.BadParameter(
            "expected postgresql://user:password@host/name, or embedded:FOLDER", param_hint="--url"
        ) from None
    except ValueError:  # the only thing that SQLAlchemy converts
        raise typer.BadParameter("the port is not a number", param_hint="--url") from None
    if parsed.get_backend_name() != "postgresql":
        raise typer.BadParameter(f"{parsed.drivername} is not Postgres", param_hint="--url")
    parsed = _for_psycopg(parsed)
    if threshold := parsed.query.get("prepare_threshold"):  # which psycopg takes as a number, not as a text
        parsed = parsed.difference_update_query(["prepare_threshold"])
        number = int(threshold) if isinstance(threshold, str) and threshold.isdigit() else None
        options["connect_args"] = {**options.get("connect_args", {}), "prepare_threshold": number}
    engine = create_engine(parsed, **options)
    try:
        yield engine
    except DBAPIError as error:
        if sqlstate(error) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise _denied(engine, error) from error
    finally:
        engine.dispose()


def _for_psycopg(url: URL) -> URL:
    """The same database with pgembed's driver, whichever the application uses.

    Arguments that libpq knows are kept; asyncpg's ``ssl`` and ``timeout`` have other names there.
    """
    import psycopg.pq

    if url.get_driver_name() == "psycopg":
        return url.set(drivername="postgresql+psycopg")
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"prepare_threshold"}
    query = {_OF_ASYNCPG.get(name, name): value for name, value in url.query.items()}
    if (ssl := query.get("sslmode")) in _SSL:
        query["sslmode"] = _SSL[str(ssl)]
    kept = {name: value for name, value in query.items() if name in known}
    return url.set(drivername="postgresql+psycopg", query=kept)


def _denied(engine: Engine, error: DBAPIError) -> DatabaseError:
    """The role, the privilege that it lacks, and on what."""
    with engine.connect() as connection:
        role, may_use = connection.execute(_MAY_USE).one()
    if not may_use:
        return MissingPrivilegeError(role, "USAGE", "schema 'pgembed'", fix=_GRANTS)
    return DatabaseError(f"role {role!r} may not do this, {str(error.orig).strip()}. {_GRANTS}")


@contextmanager
def connect(url: str, *, new: bool = False) -> Iterator[Connection]:
    """A connection in a transaction that is committed at the end; see :func:`open_engine`."""
    with open_engine(url, new=new) as engine, engine.begin() as connection:
        yield connection


def open_encoder(name_or_folder: str, **options: Any) -> Encoder:
    """The encoder of that folder, which may be relative to the working folder, or of that name.

    :param options: arguments of :class:`Encoder`.
    """
    folder = Path(name_or_folder)
    return Encoder(folder if folder.exists() else name_or_folder, **options)


def columns_of(models: str | None) -> list[Freshness] | None:
    """The embedding columns of ``module:name``, a module of the working folder perhaps."""
    if models is None:
        return None
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return embeddings_in(models)
