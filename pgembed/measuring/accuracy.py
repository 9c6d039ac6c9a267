"""``recall``: how many of the nearest rows an index finds, measured in the database, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, cast, func, select

from pgembed.exc import DeclarationError, QueryError, need_connection
from pgembed.indexes.errors import IndexNotUsedError, NoNeighboursError
from pgembed.indexes.indexed import Indexed
from pgembed.indexes.measurement import Measurement
from pgembed.indexes.methods import ACCESS_METHODS, Search
from pgembed.indexes.query_plan import plan_of, reasons, uses
from pgembed.indexes.server_settings import undone
from pgembed.indexes.standing import StandingIndex, require
from pgembed.indexes.tables import IndexTarget, declared_index, what_is_indexed
from pgembed.measuring.sample import Key, Queries, ask, keys_of
from pgembed.queries.core.nearest import Mode, Nearest
from pgembed.queries.core.settings import SearchSettings, suitable
from pgembed.queries.core.subject import Subject, resolve

#: The normal quantile of a 95 % interval.
_Z = 1.959964
#: Distances that differ by less are ties.
_TIE = 1e-7


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
    """Measure what searches through an index find, against exact searches of the same table.

    The SQL is that of :func:`pgembed.queries.semantic_search` with ``mode="approximate"`` and ``"exact"``
    (see :meth:`pgembed.queries.core.nearest.Nearest.subquery`), without the join to the entity: candidates of
    an index that does not hold whole vectors are compared again, and where the index gives too few rows the
    exact form takes over. Of a partial index, the rows of its predicate are searched. A table or
    materialized view needs no primary key: ``tableoid`` and ``ctid`` identify its rows.

    A row does not count as its own neighbour. A row counts as found if it is no farther than the farthest
    of the exact ones, so that any of several equally distant rows will do. Settings end with the call, which
    makes a savepoint in the connection's transaction, or in autocommit a transaction.

    What is found becomes the comment of the index, where the role owns it, the transaction may write, and
    nobody else has commented on it; :func:`~pgembed.queries.explain_search` reads it there.

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
    found = bench.measure(connection, bench.value_of(ef_search, probes))
    now = datetime.now(UTC).replace(microsecond=0)
    of = (found.recall, found.low, found.high, found.k, found.setting, found.value, found.queries)
    Measurement(*of, now).keep(connection, bench.index)
    return found


@dataclass(frozen=True)
class Bench:
    """Queries with their exact answers, to measure any number of settings with.

    :ivar subject: the column, with this index as its only one.
    :ivar asked: the vectors, with the keys of the rows that they are of.
    :ivar truth: the distances of the exact neighbours of each query.
    :ivar exact_ms: how long each exact answer took.
    """

    index: StandingIndex
    what: Indexed
    subject: Subject
    search: Search
    k: int
    asked: list[tuple[Any, Key]]
    truth: list[list[float]]
    exact_ms: list[float]

    @classmethod
    def of(cls, connection: Connection, target: IndexTarget, queries: Queries, k: int) -> Bench:
        """Choose the queries and answer them exactly."""
        need_connection(connection)
        index = declared_index(target)
        what = what_is_indexed(index)
        if not (isinstance(k, int) and k >= 1):
            raise QueryError(f"k={k!r}; expected a whole number of at least 1")
        found = require(connection, index)
        metric = what.search_metric
        if metric is None or what.metric is None or found.metric != what.metric.name:
            raise DeclarationError(f"{found.name}: it has {found.opclass}, and is declared otherwise")
        search = ACCESS_METHODS[found.access_method].search
        if search is None:
            raise DeclarationError(f"{found.name}: {found.access_method} has no setting to search with")
        subject = replace(resolve(what.column, metric.name, keys=keys_of(what.column)), indexes=(what,))
        asked = ask(connection, what.column, what.where, queries)
        bench = cls(found, what, subject, search, k, asked, [], [])
        exact = bench._statement("exact")
        for vector, key in asked:
            distances, seconds = bench._ask(connection, exact, vector, key)
            bench.truth.append(distances)
            bench.exact_ms.append(1000 * seconds)
        return bench

    @property
    def lists(self) -> int:
        """The clusters of an IVFFlat index."""
        return self.parameters.get("lists", 0)

    @property
    def parameters(self) -> dict[str, int]:
        """Its storage parameters in the database."""
        return self.index.all_parameters

    def value_of(self, ef_search: int | None, probes: int | None) -> int:
        """The value to search with, of those given.

        :raises QueryError: out of its range, or of the other access method.
        """
        name, low, high = self.search.argument, self.search.low, self.search.high
        given = {"ef_search": ef_search, "probes": probes}
        value = given.pop(name, None)
        for other, wrong in given.items():
            if wrong is not None:
                raise QueryError(f"{other} is not for {self.index.access_method}: use {name}=")
        if value is None:
            return int(suitable(self.search, self.what, self.k, self.parameters))
        if not (isinstance(value, int) and low <= value <= high):
            raise QueryError(f"{name}={value!r}; pgvector takes {low} to {high}")
        return value

    def part(self, start: int, step: int) -> Bench:
        """Every ``step``-th query from ``start`` on."""
        chosen = slice(start, None, step)
        return replace(
            self, asked=self.asked[chosen], truth=self.truth[chosen], exact_ms=self.exact_ms[chosen]
        )

    def measure(self, connection: Connection, value: int) -> Recall:
        """Ask all queries through the index, with the setting at ``value``.

        :raises IndexNotUsedError: the planner scans the table instead.
        """
        statement = self._statement("approximate", value)
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
            setting=self.search.argument,
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
            root = plan_of(connection, self._statement("approximate", value), {"query": self.asked[0][0]})
        return uses(root, self.index)

    @contextmanager
    def _searching(self, connection: Connection, value: int) -> Iterator[None]:
        """The settings that the search asks for, made before it: its first plan knows them too."""
        settings = {self.search.setting: str(value)} | dict(
            [self.search.iterative] if self.search.iterative else []
        )
        with undone(connection):
            connection.execute(
                select(*(func.set_config(name, wanted, True) for name, wanted in settings.items()))
            )
            yield

    def _statement(self, mode: Mode, value: int | None = None) -> Select[Any]:
        """The keys and distances that a search finds, of the parameter ``query``."""
        column, what = self.what.column, self.what
        query = cast(bindparam("query", type_=column.type), column.type)
        settings = SearchSettings(**({} if value is None else {self.search.argument: value}))
        conditions = [] if what.where is None else [what.where]
        # One more, since the row itself may be among them.
        found = Nearest(self.subject, query, conditions, self.k + 1, 0, None, mode, settings).subquery()
        return select(found).order_by(found.c.distance)

    def _ask(
        self, connection: Connection, statement: Select[Any], vector: Any, key: Key
    ) -> tuple[list[float], float]:
        """The distances of the rows found but the row itself, and the seconds that it took."""
        started = time.perf_counter()
        rows = connection.execute(statement, {"query": vector}).all()
        seconds = time.perf_counter() - started
        others = [row.distance for row in rows if tuple(row[:-1]) != key]
        return others[: self.k], seconds


def share_found(found: Sequence[float], exact: Sequence[float]) -> float:
    """The share of the exact neighbours that were found, told by their distances."""
    farthest = max(exact)
    tolerated = farthest + _TIE * max(1.0, abs(farthest))
    return min(sum(distance <= tolerated for distance in found), len(exact)) / len(exact)


def interval(shares: Sequence[float], k: int) -> tuple[float, float, float]:
    """Mean of the shares of all queries, with its 95 % interval.

    :raises NoNeighboursError: there are none.
    """
    if not shares:
        raise NoNeighboursError
    queries = len(shares)
    mean = float(np.mean(shares))
    variance = float(np.var(shares, ddof=1)) / queries if queries > 1 else 0.0
    # As many independent answers would vary as much. Where nothing varies, every query counts as one.
    independent = mean * (1 - mean) / variance if variance > 0 else float(queries)
    n = min(max(independent, 1.0), float(queries * k))
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    # The mean lies in its interval, though where it is 0 or 1 the last digit of the sum may say otherwise.
    return mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _latency(milliseconds: Sequence[float]) -> Latency:
    return Latency(*(round(float(value), 3) for value in np.percentile(milliseconds, [50, 95])))
