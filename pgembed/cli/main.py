"""The command ``pgembed``: its commands, and how errors end it.

Exit codes: 0 for success, 1 for what went wrong at run time (one line says what), 2 for wrong usage.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from inspect import cleandoc

import psycopg
import typer
from rich.console import Console
from rich.logging import RichHandler
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pgembed.cli import (
    backfill,
    classification,
    database,
    demo,
    duplicates,
    encode,
    encoders,
    failures,
    index,
    measuring,
    reembed,
    search,
    serve,
    split,
    statistics,
    status,
    worker,
)
from pgembed.cli.options import say
from pgembed.exc import DISTRIBUTION, PgembedError

app = typer.Typer(
    name="pgembed",
    help="Embeddings as an ordinary part of a Postgres schema.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _group in (
    demo,
    database,
    status,
    backfill,
    worker,
    failures,
    index,
    reembed,
    statistics,
    search,
    classification,
    duplicates,
    encoders,
    encode,
    split,
    serve,
):
    _group.register(app)
measuring.register(index.group)


def _flow(commands: typer.Typer) -> None:
    """Have help texts wrapped by the terminal: typer keeps where the lines of later paragraphs end."""
    for command in commands.registered_commands:
        paragraphs = cleandoc((command.callback and command.callback.__doc__) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _flow(group.typer_instance)


_flow(app)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"pgembed {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is done."),
    _: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    terminal = sys.stderr.isatty()
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s" if terminal else "%(levelname)s %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)] if terminal else None,
    )


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        app()
    except PgembedError as error:
        _fail(str(error))
    except DBAPIError as error:
        _fail(f"the database says: {_said(error.orig)}")
    except SQLAlchemyError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _said(error: BaseException | None) -> str:
    """What Postgres reports, without the lines of code that it was in."""
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return str(error).strip()  # not of the server: it could not be reached
    said = error.diag
    detail = f"\nDETAIL:  {said.message_detail}" if said.message_detail else ""
    hint = f"\nHINT:  {said.message_hint}" if said.message_hint else ""
    return f"{said.message_primary}{detail}{hint}"


def _fail(message: str) -> None:
    say(f"pgembed: {message}", err=True)
    sys.exit(1)
