"""``pgembed worker``: fill whatever becomes pending, until it is stopped."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import Models, OneColumn, OneTable, columns_of, open_engine, say
from pgembed.filling.cycle import Settings
from pgembed.filling.heartbeat import default_folder, problems
from pgembed.filling.worker import Worker


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("worker")(worker)


def worker(
    url: Annotated[
        str | None,
        typer.Option("--url", envvar="PGEMBED_URL", help="The database, as for the other commands."),
    ] = None,
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
    heartbeat: Annotated[
        Path | None,
        typer.Option(
            envvar="PGEMBED_HEARTBEAT",
            help="Folder in which workers say that they are alive and what waits.",
            show_default="$XDG_RUNTIME_DIR/pgembed or /tmp/pgembed-UID",
        ),
    ] = None,
    health: Annotated[
        bool,
        typer.Option("--health", help="Fill nothing; exit with 1 unless this machine's workers are well."),
    ] = False,
    grace: Annotated[
        float, typer.Option(min=1, help="With --health: seconds for which rows may wait and nothing be done.")
    ] = 120,
) -> None:
    """Fill pending rows of all embedding columns as they appear.

    Several workers share the work, on one machine or many. SIGTERM and SIGINT let it finish its batch. Exit
    code 1 if, with --once, rows are left that could not be filled.

    With --health it is a check: exit code 0 if a worker runs on this machine and all that do are well, idle
    or filling; 1 if none runs, one is silent, or rows have been waiting for longer than --grace without
    progress. Each problem is one line.
    """
    folder = heartbeat or default_folder()
    if health:
        found = problems(folder, grace=grace)
        for problem in found:
            say(f"unhealthy: {problem}", err=True)
        if found:
            raise typer.Exit(1)
        say("healthy")
        return
    if url is None:
        raise typer.BadParameter("say which database, or set PGEMBED_URL", param_hint="--url")
    _log_lines()
    embeddings = columns_of(models)
    settings = Settings(poll=poll, batch_seconds=batch_seconds)
    with open_engine(url, pool_size=8, max_overflow=24, connect_args=_NAME) as engine:
        filler = Worker(
            engine,
            embeddings,
            table=table,
            column_name=column,
            settings=settings,
            listen=listen,
            heartbeat=None if once else folder,
        )

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
    """One line per event, with keys and values, for log collectors."""
    handler = logging.StreamHandler(sys.stderr)
    line = "time=%(asctime)s.%(msecs)03d level=%(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(line, "%Y-%m-%dT%H:%M:%S"))
    logger = logging.getLogger("pgembed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
