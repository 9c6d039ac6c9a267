"""``pgembed init``: install the SQL objects."""

from __future__ import annotations

from typing import Annotated

import typer

from pgembed.cli.options import DatabaseUrl, connect, say
from pgembed.database import install


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("init")(init)


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
