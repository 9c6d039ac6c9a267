"""Errors of building and measuring indexes; those of declarations are in :mod:`pgembed.exc`."""

from __future__ import annotations

from collections.abc import Sequence

from pgembed.exc import DatabaseError, QueryError


class IndexBuildError(DatabaseError):
    """An index cannot be built now: ``index`` is its name, ``reason`` says why."""

    def __init__(self, index: str, reason: str, *, fix: str) -> None:
        self.index = index
        self.reason = reason
        super().__init__(f"{index}: {reason}. {fix}")


class IndexMissingError(DatabaseError):
    """A declared index does not exist in the database, or is invalid."""

    def __init__(self, index: str, found: str, *, fix: str) -> None:
        self.index = index
        self.found = found
        super().__init__(f"{index}: {found}. {fix}")


class IndexNotUsedError(DatabaseError):
    """The planner does not use the index for the query that it was built for; ``reasons`` say why."""

    def __init__(self, index: str, reasons: Sequence[str]) -> None:
        self.index = index
        self.reasons = tuple(reasons)
        super().__init__(f"the planner does not use {index}: {'; '.join(reasons)}")


class NoNeighboursError(QueryError):
    """There is no recall to measure: no query has a neighbour."""

    def __init__(self, found: str = "no query has a neighbour: the table has fewer than two vectors") -> None:
        super().__init__(found)
