"""``pgembed worker``: fill whatever becomes pending, until it is stopped."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from pgembed.cli.backfill import Models, OneColumn, OneTable, columns_of
from pgembed.cli.options import DatabaseUrl, open_engine
from pgembed.filling.cycle import Settings
from pgembed.filling.worker import Worker


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("worker")(worker)


def worker(
    url: DatabaseUrl,
    table: OneTable = None,
    column: OneColumn = None,
    models: Models = None,
    once: Annotated[bool, typer.Option("--once", help="Fill what is pending, then exit.")] = False,
    poll: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two looks for pending rows.")
    ] = Settings.poll,
    listen: Annotated[
        bool, typer.Option("--listen", help="Look at once after NOTIFY pgembed, besides polling.")
    ] = False,
    batch_seconds: Annotated[
        float, typer.Option(min=0.1, help="How long one use of the encoder should take.")
    ] = Settings.batch_seconds,
) -> None:
    """Fill pending rows of all embedding columns as they appear.

    Several workers share the work, on one machine or many. SIGTERM and SIGINT let it finish the batch at
    hand. Exit code 1 if, with --once, a column could not be filled.
    """
    _log_lines()
    embeddings = columns_of(models)
    settings = Settings(poll=poll, batch_seconds=batch_seconds)
    with open_engine(url, pool_size=8, max_overflow=24, connect_args=_NAME) as engine:
        filler = Worker(engine, embeddings, table=table, column_name=column, settings=settings, listen=listen)

        def stop(number: int, _frame: object) -> None:
            # A second signal is not caught: for those who cannot wait.
            signal.signal(number, signal.SIG_DFL)
            filler.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        if not filler.run(once=once):
            raise typer.Exit(1)


#: What pg_stat_activity shows.
_NAME = {"application_name": "pgembed worker"}


def _log_lines() -> None:
    """One line an event, of keys and values, as log collectors read them."""
    handler = logging.StreamHandler(sys.stderr)
    line = "time=%(asctime)s.%(msecs)03d level=%(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(line, "%Y-%m-%dT%H:%M:%S"))
    logger = logging.getLogger("pgembed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
