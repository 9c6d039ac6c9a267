"""``tune``: the cheapest search setting that reaches a recall."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from pgembed.exc import QueryError
from pgembed.indexes.tables import IndexTarget
from pgembed.measuring.accuracy import Bench, Recall
from pgembed.measuring.sample import Queries

#: Each value that is tried is about this many times the one before.
_STEP = 1.25


@dataclass(frozen=True)
class Tuning:
    """The outcome of :func:`tune`.

    :ivar setting: the server's name of the setting: ``"hnsw.ef_search"``.
    :ivar reached: whether any setting reaches the target.
    :ivar tuned: the measurement on the queries that the setting was chosen with.
    :ivar unseen: the measurement on the queries that took no part in the choice: what to expect.
    :ivar tried: all measurements on the first queries.
    :ivar rejected: measurements on the others of smaller settings, which fell short there.
    """

    target_recall: float
    setting: str
    reached: bool
    tuned: Recall
    unseen: Recall
    tried: tuple[Recall, ...]
    rejected: tuple[Recall, ...]

    @property
    def arguments(self) -> dict[str, int]:
        """The setting as arguments of the query helpers: ``{"ef_search": 80}``."""
        return {self.unseen.setting: self.unseen.value}

    @property
    def sql(self) -> str:
        """The setting as SQL, for a session or for ``ALTER ROLE ... SET``."""
        return f"SET {self.setting} = {self.unseen.value}"

    def as_dict(self) -> dict[str, Any]:
        """The outcome as plain values, for JSON."""
        return {**asdict(self), "arguments": self.arguments, "sql": self.sql}


def tune(
    connection: Connection,
    target: IndexTarget,
    *,
    target_recall: float = 0.95,
    queries: Queries = 400,
    k: int = 10,
) -> Tuning:
    """Find the smallest ``ef_search`` or ``probes`` whose recall is at least ``target_recall``.

    Recall grows with the setting, so the values are bisected: about five measurements on every other query.
    The choice is then measured on the remaining ones; if it falls short there, larger values are tried until
    it does not, so that both halves reach the target. SQL and errors are those of
    :func:`pgembed.measuring.recall`.

    :param target_recall: above 0, to 1.
    :param queries: how many random rows of the table to ask for, or the vectors or texts; at least two.
    :param k: neighbours of each; settings that suit 10 are too low for 100.
    :raises QueryError: the target is not a share, or there are too few queries.
    """
    if not 0 < target_recall <= 1:
        raise QueryError(f"target_recall={target_recall!r}; expected a share above 0, at most 1")
    bench = Bench.of(connection, target, queries, k)
    if len(bench.asked) < 2:
        raise QueryError("tuning needs at least two queries: one to choose with, one to check the choice")
    seen, unseen = bench.part(0, 2), bench.part(1, 2)
    values = candidates(bench)
    # The planner leaves the index where it looks dearer than a scan: no gain to be had from there on.
    while len(values) > 1 and not bench.used_at(connection, values[-1]):
        values.pop()
    tried: dict[int, Recall] = {}

    def measured(place: int) -> Recall:
        value = values[place]
        if value not in tried:
            tried[value] = seen.measure(connection, value)
        return tried[value]

    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if measured(middle).recall >= target_recall:
            high = middle
        else:
            low = middle + 1
    checked = unseen.measure(connection, values[low])
    rejected = []
    while checked.recall < target_recall and low < len(values) - 1:
        rejected.append(checked)
        low += 1
        checked = unseen.measure(connection, values[low])
    chosen = measured(low)
    return Tuning(
        target_recall=target_recall,
        setting=bench.search.setting,
        reached=min(chosen.recall, checked.recall) >= target_recall,
        tuned=chosen,
        unseen=checked,
        tried=tuple(tried[value] for value in sorted(tried)),
        rejected=tuple(rejected),
    )


def candidates(bench: Bench, step: float = _STEP) -> list[int]:
    """The values to choose among, ascending: from k for ``ef_search``, to all lists for ``probes``."""
    low, high = bench.search.low, bench.search.high
    if bench.search.argument == "probes":
        high = max(1, bench.lists)
    else:
        low = max(low, min(bench.k, high))
    values = [low]
    while values[-1] < high:
        values.append(min(max(values[-1] + 1, round(values[-1] * step)), high))
    return values
