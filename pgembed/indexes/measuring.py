"""``recall``: how many of the nearest rows an index finds, measured in the database, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Column, Connection, Integer, Select, bindparam, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from pgembed.columns.values import Array
from pgembed.exc import DeclarationError, QueryError
from pgembed.indexes.asking import Key, Queries, ask, keys_of
from pgembed.indexes.catalogue import StandingIndex, column_of, require
from pgembed.indexes.declaration import access_method_of
from pgembed.indexes.errors import IndexNotUsedError
from pgembed.indexes.explaining import plan_of, reasons, uses
from pgembed.indexes.planning import IndexTarget, declared_index, parameters_of
from pgembed.metrics import BY_NAME

#: The setting of an access method: its name, the range that pgvector takes, and the form of its scans.
SETTINGS = {
    "hnsw": ("ef_search", 1, 1000, "strict_order"),
    "ivfflat": ("probes", 1, 32768, "relaxed_order"),
}
#: The normal quantile of a 95 % interval.
_Z = 1.959964
#: Distances that differ by less are ties.
_TIE = 1e-7
_ZERO: ColumnElement[int] = literal_column("0")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a query as the client sees them: median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Recall:
    """What an index finds of the ``k`` nearest rows.

    :ivar setting: ``"ef_search"`` or ``"probes"``, which had the value ``value``.
    :ivar recall: the share of the true neighbours that were found, the mean of all queries.
    :ivar low: lower end of its 95 % confidence interval, and ``high`` the upper one.
    :ivar approximate: latency through the index, and ``exact`` without.
    """

    index: str
    setting: str
    value: int
    k: int
    queries: int
    recall: float
    low: float
    high: float
    approximate: Latency
    exact: Latency

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)


def recall(
    connection: Connection,
    target: IndexTarget,
    *,
    queries: Queries = 200,
    k: int = 10,
    ef_search: int | None = None,
    probes: int | None = None,
) -> Recall:
    """Measure what an index finds, against exact scans of the same table::

        SELECT id, embedding <=> :query AS distance FROM article ORDER BY distance LIMIT 11      -- the index
        SELECT id, (embedding <=> :query) + 0 AS distance FROM article ORDER BY distance LIMIT 11  -- a scan

    A row that is asked for does not count as its own neighbour. A row counts as found if it is no farther
    than the farthest of the exact ones, so that of several equally far ones any will do. Settings end with
    the call; it wants a connection in a transaction, since it makes a savepoint.

    The interval is Wilson's (1927) over the effective number of independent answers: neighbours of one query
    are missed together (Kish 1965, design effect).

    :param queries: how many random rows of the table to ask for; or the vectors to ask for; or texts, which
        the encoder of the column encodes as queries.
    :param k: neighbours of each.
    :param ef_search: for HNSW; left out, what the query helpers take: 2 k and at least 40.
    :param probes: for IVFFlat; left out, what the query helpers take: the square root of all lists.
    :raises IndexMissingError: there is no such index, or it is invalid.
    :raises IndexNotUsedError: the planner scans the table instead, so that the figures would say nothing.
    :raises QueryError: a setting out of its range or of the other access method, or no queries.
    """
    bench = Bench.of(connection, target, queries, k)
    return bench.measure(connection, bench.value_of(ef_search, probes))


@dataclass(frozen=True)
class Bench:
    """Queries with their exact answers, to measure any number of settings with.

    :ivar asked: the vectors, with the keys of the rows that they are of.
    :ivar truth: the distances of the exact neighbours of each query.
    :ivar exact_ms: how long each exact answer took.
    """

    index: StandingIndex
    column: Column[Any]
    where: Any
    lists: int
    k: int
    asked: list[tuple[Array, Key]]
    truth: list[list[float]]
    exact_ms: list[float]

    @classmethod
    def of(cls, connection: Connection, target: IndexTarget, queries: Queries, k: int) -> Bench:
        """Choose the queries and answer them exactly."""
        index = declared_index(target)
        column = column_of(index)
        if not (isinstance(k, int) and k >= 1):
            raise QueryError(f"k={k!r}; needed is a whole number of at least 1")
        found = require(connection, index)
        if found.metric is None:
            raise DeclarationError(f"{found.name}: pgembed has no metric for {found.opclass}")
        where = index.dialect_options["postgresql"]["where"]
        lists = parameters_of(index).get("lists", 0) if access_method_of(index) == "ivfflat" else 0
        lists = found.parameters.get("lists", lists)
        asked = ask(connection, column, where, queries)
        bench = cls(found, column, where, lists, k, asked, [], [])
        for vector, key in asked:
            distances, seconds = bench._ask(connection, bench._statement(exact=True), vector, key)
            bench.truth.append(distances)
            bench.exact_ms.append(1000 * seconds)
        return bench

    @property
    def setting(self) -> str:
        """``"ef_search"`` or ``"probes"``."""
        return SETTINGS[self.index.access_method][0]

    def value_of(self, ef_search: int | None, probes: int | None) -> int:
        """The value to search with, of those given.

        :raises QueryError: out of its range, or of the other access method.
        """
        name, low, high, _ = SETTINGS[self.index.access_method]
        given = {"ef_search": ef_search, "probes": probes}
        value = given.pop(name)
        ((other, wrong),) = given.items()
        if wrong is not None:
            raise QueryError(f"{other} is not for {self.index.access_method}: use {name}=")
        if value is None:
            return math.ceil(math.sqrt(self.lists)) if name == "probes" else min(max(2 * self.k, 40), high)
        if not (isinstance(value, int) and low <= value <= high):
            raise QueryError(f"{name}={value!r}; pgvector takes {low} to {high}")
        return value

    def part(self, start: int, step: int) -> Bench:
        """Every ``step``-th query from ``start`` on."""
        chosen = slice(start, None, step)
        return Bench(
            self.index,
            self.column,
            self.where,
            self.lists,
            self.k,
            self.asked[chosen],
            self.truth[chosen],
            self.exact_ms[chosen],
        )

    def measure(self, connection: Connection, value: int) -> Recall:
        """Ask all queries through the index, with the setting at ``value``.

        :raises IndexNotUsedError: the planner scans the table instead.
        """
        statement = self._statement(exact=False)
        with self._searching(connection, value):
            # Also the first use, which loads what later ones find loaded.
            parameters = {"query": self.asked[0][0]}
            root = plan_of(connection, statement, parameters)
            if not uses(root, self.index):
                raise IndexNotUsedError(
                    self.index.name, reasons(connection, self.index, root, statement, parameters)
                )
            answers = [self._ask(connection, statement, vector, key) for vector, key in self.asked]
        shares = [
            share_found(found, exact) for (found, _), exact in zip(answers, self.truth, strict=True) if exact
        ]
        mean, low, high = interval(shares, self.k)
        return Recall(
            index=self.index.name,
            setting=self.setting,
            value=value,
            k=self.k,
            queries=len(shares),
            recall=mean,
            low=low,
            high=high,
            approximate=_latency([1000 * seconds for _, seconds in answers]),
            exact=_latency(self.exact_ms),
        )

    def used_at(self, connection: Connection, value: int) -> bool:
        """Whether the planner uses the index with the setting at ``value``: the more, the dearer it looks."""
        with self._searching(connection, value):
            root = plan_of(connection, self._statement(exact=False), {"query": self.asked[0][0]})
        return uses(root, self.index)

    @contextmanager
    def _searching(self, connection: Connection, value: int) -> Iterator[None]:
        """The settings of a search, for the time of the block."""
        method = self.index.access_method
        savepoint = connection.begin_nested()
        try:
            connection.execute(
                select(
                    func.set_config(method + "." + self.setting, str(value), True),
                    func.set_config(method + ".iterative_scan", SETTINGS[method][3], True),
                )
            )
            yield
        finally:
            savepoint.rollback()

    def _statement(self, *, exact: bool) -> Select[Any]:
        assert self.index.metric is not None
        query = bindparam("query", type_=self.column.type)
        distance = BY_NAME[self.index.metric].between(self.column, query)
        distance = distance + _ZERO if exact else distance
        # One more than asked for: the row itself may be among them.
        rows: Any = bindparam("rows", self.k + 1, Integer, literal_execute=True)
        statement = select(*keys_of(self.column), distance.label("distance")).order_by(distance).limit(rows)
        return statement if self.where is None else statement.where(self.where)

    def _ask(
        self, connection: Connection, statement: Select[Any], vector: Array, key: Key
    ) -> tuple[list[float], float]:
        """The distances of the rows found but the row itself, and the seconds that it took."""
        started = time.perf_counter()
        rows = connection.execute(statement, {"query": vector}).all()
        seconds = time.perf_counter() - started
        others = [row.distance for row in rows if tuple(row[:-1]) != key]
        numbers = [distance for distance in others if distance is not None and not math.isnan(distance)]
        return numbers[: self.k], seconds


def share_found(found: Sequence[float], exact: Sequence[float]) -> float:
    """The share of the exact neighbours that were found, told by their distances."""
    farthest = max(exact)
    tolerated = farthest + _TIE * max(1.0, abs(farthest))
    return min(sum(distance <= tolerated for distance in found), len(exact)) / len(exact)


def interval(shares: Sequence[float], k: int) -> tuple[float, float, float]:
    """Mean of the shares of all queries, with its 95 % interval.

    :raises QueryError: there are none.
    """
    if not shares:
        raise QueryError("no query has a neighbour: the table has fewer than two vectors")
    queries = len(shares)
    mean = float(np.mean(shares))
    variance = float(np.var(shares, ddof=1)) / queries if queries > 1 else 0.0
    # As many independent answers would vary as much. Where nothing varies, every query counts as one.
    independent = mean * (1 - mean) / variance if variance > 0 else float(queries)
    n = min(max(independent, 1.0), float(queries * k))
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def _latency(milliseconds: Sequence[float]) -> Latency:
    return Latency(*(round(float(value), 3) for value in np.percentile(milliseconds, [50, 95])))
