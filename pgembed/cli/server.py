"""``pgembed server``: the embedded development server, until it is stopped."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import say
from pgembed.database import embedded


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("server")(server)


def server(
    folder: Annotated[Path, typer.Argument(help="The data folder; made where it is missing.")],
    database: Annotated[str, typer.Option(help="The database that the URL names.")] = "postgres",
) -> None:
    """Run the embedded Postgres on a folder, for an application or its tests, until SIGTERM or SIGINT.

    The first line of the output is the URL, which the commands of pgembed take as --url, and SQLAlchemy. The
    server stops with the last of its users, of which this is one.
    """
    stopped = threading.Event()

    def stop(number: int, _frame: object) -> None:
        # A second signal is not caught: for those who cannot wait.
        signal.signal(number, signal.SIG_DFL)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with embedded(folder, database=database) as url:
        say(str(url))
        stopped.wait()
