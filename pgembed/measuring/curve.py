"""``sweep``: recall against latency, over the whole range of the search setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from pgembed.exc import DeclarationError, MissingExtraError
from pgembed.indexes.errors import IndexNotUsedError
from pgembed.indexes.tables import IndexTarget
from pgembed.measuring.accuracy import Bench, Recall
from pgembed.measuring.sample import Queries
from pgembed.measuring.tuning import candidates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How the name of a drawing may end.
FORMATS = (".png", ".svg", ".pdf")
_WHAT = "drawing recall against latency"


def sweep(
    connection: Connection, target: IndexTarget, *, queries: Queries = 200, k: int = 10
) -> tuple[Recall, ...]:
    """Measure an index with one set of queries, at an ``ef_search`` or ``probes`` that doubles each time.

    It ends where all is found, or where the planner takes a scan to be cheaper. SQL, arguments and errors are
    those of :func:`pgembed.measuring.recall`.
    """
    bench = Bench.of(connection, target, queries, k)
    found: list[Recall] = []
    for value in candidates(bench, 2):
        try:
            found.append(bench.measure(connection, value))
        except IndexNotUsedError:
            if not found:
                raise
            break
        if found[-1].recall == 1:
            break
    return tuple(found)


def plot(recalls: Sequence[Recall], path: Path | str) -> None:
    """Draw recall against latency into a file: PNG, SVG or PDF, as its name ends.

    :raises DeclarationError: it ends otherwise, or its folder is not there.
    :raises MissingExtraError: matplotlib is not installed.
    """
    check_drawing(path)
    figure(recalls).savefig(path)


def check_drawing(path: Path | str) -> None:
    """Refuse what :func:`plot` would refuse, before anything is measured.

    :raises DeclarationError: the name ends otherwise than PNG, SVG and PDF files do, or without its folder.
    :raises MissingExtraError: matplotlib is not installed.
    """
    figure_of(_WHAT)
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise DeclarationError(f"{path}: the name of a drawing ends with {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise DeclarationError(f"{path}: there is no folder {path.parent}")


def figure(recalls: Sequence[Recall]) -> Figure:
    """The drawing: a point for each setting with its 95 % interval, and exact scans as a vertical line.

    :raises MissingExtraError: matplotlib is not installed.
    """
    drawn = figure_of(_WHAT)(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = drawn.add_subplot()
    first = recalls[0]
    latencies = [found.approximate.p50 for found in recalls]
    shares = [found.recall for found in recalls]
    below = [found.recall - found.low for found in recalls]
    above = [found.high - found.recall for found in recalls]
    axes.errorbar(latencies, shares, yerr=[below, above], marker="o", capsize=3, label=first.index)
    for found in recalls:
        place = (found.approximate.p50, found.recall)
        axes.annotate(str(found.value), place, xytext=(4, -11), textcoords="offset points", fontsize=8)
    axes.axvline(first.exact.p50, linestyle="--", color="grey", label="exact scan")
    axes.set_xscale("log")
    axes.set_xlabel("median latency, ms")
    axes.set_ylabel(f"recall of {first.k} neighbours, with 95 % interval")
    axes.set_title(f"{first.index}: {first.setting} at the points, {first.queries} queries")
    axes.legend(loc="lower right")
    return drawn


def figure_of(what: str) -> type[Figure]:
    """The class of drawings; not by pyplot, which would look for a display.

    :param what: is drawn, for the error.
    :raises MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", needed_for=what) from error
    return Figure
