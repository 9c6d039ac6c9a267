"""Splitters of one's own: what they are, and that they give the whole text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pgembed.exc import DeclarationError


@dataclass(frozen=True, slots=True)
class Skip:
    """Characters that a splitter leaves out on purpose.

    :ivar start: of the first one.
    :ivar end: after the last one.
    """

    start: int
    end: int


class Splitter(Protocol):
    """A splitter of your own: it says where each piece starts and ends."""

    @property
    def name(self) -> str:
        """What it is called; part of each row's digest."""
        ...

    @property
    def version(self) -> int | str:
        """Another one when the pieces of a text change; part of each row's digest."""
        ...

    def __call__(self, source: str, /) -> Iterable[tuple[int, int] | Skip]:
        """Start and end of each piece, in their order; pieces may overlap.

        What is in no piece is either blank, or a :class:`Skip` says so. A piece that is beyond the limit is
        cut further, along the places of the format.
        """
        ...


def spans_of(splitter: Splitter, source: str) -> Iterator[tuple[int, int]]:
    """What the splitter gives.

    :raises DeclarationError: not in order, not within the text, or something is left out silently.
    """
    start = end = skipped = 0

    def check_gap(until: int) -> None:
        if gap := source[end:until].strip():
            raise _wrong(
                splitter,
                f"left out {gap[:40]!r} between {end} and {until}; expected every character but blanks in a "
                "piece, or in a pgembed.parts.Skip(start, end)",
            )

    for given in splitter(source):
        skips = isinstance(given, Skip)
        first, last = (given.start, given.end) if isinstance(given, Skip) else given
        if not (end if skips else max(start, skipped)) <= first < last <= len(source) or last <= end:
            raise _wrong(
                splitter,
                f"gave {given!r} after {(start, end)}; expected pieces in their order, that start and end "
                f"between 0 and {len(source)}, and none within another",
            )
        check_gap(first)
        end = last
        if skips:
            skipped = last
        else:
            start = first
            yield first, last
    check_gap(len(source))


def _wrong(splitter: Splitter, what: str) -> DeclarationError:
    return DeclarationError(f"the splitter {splitter.name!r} {what}")
