"""``pgembed init`` and ``pgembed server``: the SQL objects in a database, and a database for development."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import DatabaseUrl, connect, say
from pgembed.database import embedded, install


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("init")(init)
    app.command("server")(server)


def init(
    url: DatabaseUrl,
    extension: Annotated[
        bool, typer.Option(help="Create the extension vector where it is missing (needs the privilege).")
    ] = True,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            help="Count and fill the tables of this role; may be given several times. Those of the role that "
            "installs and of superusers are trusted anyway.",
        ),
    ] = None,
) -> None:
    """Install pgembed's SQL objects into a database, or bring them up to date."""
    with connect(url, new=True) as connection:
        changed = install(connection, extension=extension, trust=trust or ())
        database = connection.engine.url.database
    say(f"{database}: {'installed' if changed else 'up to date, nothing to do'}")


def server(
    folder: Annotated[Path, typer.Argument(help="The data folder; made where it is missing.")],
    database: Annotated[str, typer.Option(help="The database that the URL names.")] = "postgres",
) -> None:
    """Run the embedded Postgres on a folder, for an application or its tests, until SIGTERM or SIGINT.

    The first line of the output is the URL, for --url of pgembed's commands and for SQLAlchemy. The server
    stops when its last user does; this command is one of them.
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
