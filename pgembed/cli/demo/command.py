"""The command itself: what is shown, phase by phase."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgembed import indexes
from pgembed.cli.demo import library
from pgembed.cli.demo.corpus import standard_library
from pgembed.database import embedded, install
from pgembed.encoders import Encoder, packaged

ENCODER = "all-MiniLM-L6-v2"
QUESTIONS = (
    "how do I compress a file?",
    "start a subprocess and wait for it to finish",
    "parse the options given on the command line",
    "wait until several threads are done",
    "pick a random element of a list",
)
MIN_SCORE = 0.97


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo)


def demo(
    path: Annotated[
        Path | None, typer.Option(help="Folder for the database; by default in the user's data folder.")
    ] = None,
    limit: Annotated[int, typer.Option(min=100, max=4000, help="Embed at most N docstrings.")] = 4000,
) -> None:
    """Embed the documentation of your Python's standard library, then search, classify and deduplicate it."""
    folder = (path or platformdirs.user_data_path("pgembed") / "demo").absolute()
    show = Show()
    with show.phase("encoder made ready"):
        encoder = Encoder(packaged(ENCODER))
    with show.phase("docstrings collected"):
        entries = standard_library(limit)
    truth = library.held_back(entries)
    model = library.entry_model(encoder)
    with ExitStack() as stack:
        stack.enter_context(encoder)
        with show.phase("server started"):
            engine = create_engine(stack.enter_context(embedded(folder)))
            stack.callback(engine.dispose)
            with engine.begin() as connection:
                install(connection)
                library.Base.metadata.create_all(connection)
        with Session(engine) as session:
            if library.is_empty(session, model):
                with show.phase("time estimated"):
                    seconds = library.seconds_to_encode(encoder, entries)
                show.say(f"Embedding {len(entries):,} docstrings takes about {seconds:.0f} seconds here.")
            with show.phase("docstrings embedded"), show.progress("embedding", len(entries)) as advance:
                written = library.load(session, model, entries, truth, advance)
            show.say(
                f"{written:,} docstrings embedded."
                if written
                else f"All {len(entries):,} docstrings are fresh: nothing to embed again."
            )
            with show.phase("HNSW index built"):
                indexes.create(session.connection(), model.embedding)
                session.commit()
            _search(show, session, model)
            _classify(show, session, model, truth)
            _deduplicate(show, session, model)
    show.timings()
    program, url = escape(_program()), escape(shlex.quote(f"embedded:{folder}"))
    show.say(
        "\nGo on with:\n"
        f"  {program} search entry embedding 'open a web page' --url {url}\n"
        f"  {program} status --url {url}\n"
        f"  {program} --help"
    )


def _program() -> str:
    """How a shell calls this ``pgembed``: by name where the ``PATH`` leads to it, else by path."""
    own, named = Path(sys.executable).with_name("pgembed"), shutil.which("pgembed")
    elsewhere = own.is_file() and not (named and own.samefile(named))
    return shlex.quote(str(own)) if elsewhere else "pgembed"


def _search(show: Show, session: Session, model: Any) -> None:
    with show.phase(f"{len(QUESTIONS)} questions answered"):
        found = [(question, library.answers(session, model, question)) for question in QUESTIONS]
    for question, answers in found:
        show.say(f"\n[bold]{question}[/]")
        for entry, score in answers:
            show.say(f"  {score:.2f}  {entry.path}  [dim]{escape(entry.doc.strip().splitlines()[0][:70])}[/]")


def _classify(show: Show, session: Session, model: Any, truth: dict[str, str]) -> None:
    with show.phase("entries classified"), show.progress("classifying", len(truth)) as advance:
        accuracy = library.accuracy(session, model, truth, advance)
    show.say(
        f"\n[bold]Which module is it from?[/] 15 neighbours guess right for {accuracy:.0%} of {len(truth)} "
        f"held-back entries, of {len(set(truth.values()))} modules."
    )


def _deduplicate(show: Show, session: Session, model: Any) -> None:
    with show.phase("near-duplicates found"):
        groups = library.largest_groups(session, model, MIN_SCORE)
    show.say(f"\n[bold]Near-duplicates[/] (score {MIN_SCORE} and above): {len(groups)} groups, the largest:")
    for group in groups[:3]:
        names = ", ".join(group[:4]) + (", ..." if len(group) > 4 else "")
        show.say(f"  {len(group):3}  {names}")


class Show:
    """What the terminal shows, and how long each phase took."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.laps: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        yield
        self.laps.append((name, time.perf_counter() - start))

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[Any]:
        """A progress bar; gives the function that advances it."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)

    def timings(self) -> None:
        """Print the phases."""
        table = Table("phase", box=None, title_justify="left")
        table.add_column("seconds", justify="right")
        for name, seconds in self.laps:
            table.add_row(name, f"{seconds:.1f}")
        table.add_row("[bold]in all[/]", f"[bold]{sum(seconds for _, seconds in self.laps):.1f}[/]")
        self.console.print()
        self.console.print(table)
