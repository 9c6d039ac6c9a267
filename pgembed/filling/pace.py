"""How many rows at once: found by measuring, because neither encoders nor indexes tell their speed."""

from __future__ import annotations


class Pace:
    """A number of rows that follows a time: pieces of work of about ``seconds`` each.

    :param seconds: what one piece should take.
    :param start: rows of the first piece.
    :param largest: rows of a piece at most.
    :param growth: how many times larger the next piece may be. It may always be a fifth of the last one.
    """

    def __init__(self, seconds: float, *, start: int, largest: int, growth: float = 2.0) -> None:
        self._seconds = seconds
        self._largest = largest
        self._growth = growth
        self.rows = min(start, largest)

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a piece of work that is done."""
        factor = min(max(self._seconds / max(seconds, 1e-6), 0.2), self._growth)
        # A piece much smaller than what was allowed says little about large ones.
        if factor < 1 or rows * 2 > self.rows:
            self.rows = min(max(int(rows * factor), 1), self._largest)
