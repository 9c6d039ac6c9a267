"""``match``: which row of one table is which row of another."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, literal_column, select, true, union
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, Subquery

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import real, whole
from pgembed.queries.core.asked import asked_by
from pgembed.queries.core.blocks import blocks_of, unpacked
from pgembed.queries.core.nearest import NAN, Mode, Nearest, Stale, literal_rows
from pgembed.queries.core.numbering import Rows
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity, materialized
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.duplicates.edges import score
from pgembed.queries.duplicates.pairs import alike


class Matches(DuplicatePairs[Entity, Entity, float, float]):
    """The statement of ``match``."""

    inherit_cache = True
    helper = "match"


def match(
    left: VectorColumn,
    right: VectorColumn,
    *,
    one_to_one: bool = True,
    min_score: float | None = None,
    margin: float | None = None,
    k: int = 4,
    where: Any = None,
    right_where: Any = None,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Matches:
    """The pairs of two lists that are the same thing: rows ``(left_key, right_key, score, margin)``, the most
    certain first.

    ::

        session.execute(match(Product.embedding, Offer.embedding, min_score=0.7)).all()
        session.execute(match(English.embedding, German.embedding, margin=1.06)).all()

    Each row's ``k`` nearest of the other list are looked up, in both directions. A pair is a match if either
    of its rows is the best of the other, so that a row is in one match at most; of rows that are equally
    good, the smaller key wins. ``margin`` is the pair's score divided by the mean score of the k nearest of
    both its rows: above 1, it stands out among what is near (Artetxe and Schwenk, "Margin-based parallel
    corpus mining with multilingual sentence embeddings", 2019, the ratio with the intersection of both
    directions).

    Without ``margin=`` the best is what is nearest; with it, what has the greatest margin, which is more
    reliable where some rows are near to everything.

    :param left: as ``column`` of :func:`~pgembed.queries.semantic_search`, as are the arguments not listed.
    :param right: a vector column of the other list, filled by the same encoder; an alias of the same table
        serves as well.
    :param one_to_one: ``False`` gives for each row of the left list its best of the right one, which can be
        in several pairs.
    :param min_score: pairs with a lower score are no matches.
    :param margin: pairs with a lower margin are no matches.
    :param k: how many neighbours make the mean.
    :param where: a condition, or several, over the left list; ``right_where`` one over the right list.
    :param mode: ``"auto"`` looks into the indexes that are declared on the columns, and compares all rows of
        the lists where there is none; ``"exact"`` compares all; ``"approximate"`` looks into an index that is
        in the database without being declared.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    :raises DimensionMismatchError: the columns have other dimensions.
    """
    subject = resolve(left, metric)
    other = alike(subject, resolve(right, subject.metric.name))
    k = whole("k", k, 1, 1000)
    if not isinstance(one_to_one, bool):
        raise QueryError(f"one_to_one={one_to_one!r}; expected True or False")
    conditions = [
        [*each.conditions(given, stale), each.vector.is_not(None)]
        for each, given in ((subject, where), (other, right_where))
    ]
    lists = [
        Rows.each(each, found, vectors=True) for each, found in zip((subject, other), conditions, strict=True)
    ]
    settings = SearchSettings(ef_search, probes)
    forward = _nearest(lists[0], lists[1], conditions[1], k, mode, settings)
    backward = _nearest(lists[1], lists[0], conditions[0], k, mode, settings)
    rated = _rated(forward, backward, subject.metric.score)
    value = rated.c.score if margin is None else rated.c.margin
    best = func.row_number().over(partition_by=rated.c.a, order_by=(value.desc(), rated.c.b))
    best_back = func.row_number().over(partition_by=rated.c.b, order_by=(value.desc(), rated.c.a))
    ranked = select(*rated.c, best.label("best"), best_back.label("best_back")).subquery()
    chosen = [ranked.c.best == 1]
    if one_to_one:
        chosen.append(ranked.c.best_back == 1)
    if min_score is not None:
        chosen.append(ranked.c.score >= score(subject.metric, min_score))
    if margin is not None:
        chosen.append(ranked.c.margin >= real("margin", margin, finite=True))
    one, another = (each.numbered.alias() for each in lists)
    certain = ranked.c.score if margin is None else ranked.c.margin
    return Matches.sealing(
        select(
            lists[0].key(one).label("left_key"),
            lists[1].key(another).label("right_key"),
            ranked.c.score,
            ranked.c.margin,
        )
        .select_from(ranked)
        .join(one, one.c.n == ranked.c.a)
        .join(another, another.c.n == ranked.c.b)
        .where(*chosen)
        .order_by(certain.desc(), ranked.c.a, ranked.c.b)
    )


def _nearest(
    asking: Rows,
    searched: Rows,
    conditions: list[ColumnElement[bool]],
    k: int,
    mode: Mode,
    settings: SearchSettings,
) -> CTE:
    """The ``k`` rows nearest to each: ``asking`` and ``found`` (their numbers), ``distance``."""
    asked, _ = asked_by(searched.subject, select(asking.numbered.c.n, asking.numbered.c.vector))
    search = Nearest(searched.subject, asked.c.vector, conditions, k, 0, None, mode, settings, asked)
    if not search.approximate:
        return _compared(asking, searched, k)
    hits, numbered = search.subquery(), searched.numbered.alias()
    same = and_(
        *(numbered.c[f"key_{n}"] == hits.c[f"key_{n}"] for n in range(1, len(searched.subject.keys) + 1))
    )
    found = select(hits.c.query_1.label("asking"), numbered.c.n.label("found"), hits.c.distance)
    return materialized(found.join(numbered, same), "nearest")


def _compared(asking: Rows, searched: Rows, k: int) -> CTE:
    """By comparing all, block by block; each block gives the best of its own."""
    one, other = blocks_of(asking.numbered), blocks_of(searched.numbered)
    met = (
        select(
            one.c.numbers,
            one.c.vectors,
            other.c.numbers.label("numbers_2"),
            other.c.vectors.label("vectors_2"),
        )
        .select_from(one.join(other, true()))
        .offset(literal_column("0"))
        .subquery()
    )
    a = unpacked(met, met.c.numbers, met.c.vectors)
    b = unpacked(met, met.c.numbers_2, met.c.vectors_2)
    distance = searched.subject.metric.between(a.c.vector, b.c.vector)
    best = (
        select(b.c.number, distance.label("distance"))
        .where(distance < NAN)
        .order_by(distance, b.c.number)
        .limit(literal_rows(k))
        .correlate(met, a)
        .lateral()
    )
    place = func.row_number().over(partition_by=a.c.number, order_by=(best.c.distance, best.c.number))
    ranked = (
        select(
            a.c.number.label("asking"), best.c.number.label("found"), best.c.distance, place.label("place")
        )
        .select_from(met.join(a, true()).join(best, true()))
        .subquery()
    )
    few = select(ranked.c.asking, ranked.c.found, ranked.c.distance).where(ranked.c.place <= k)
    return materialized(few, "nearest")


def _rated(forward: CTE, backward: CTE, to_score: Any) -> Subquery:
    """All pairs found: ``a``, ``b``, ``score`` and ``margin``."""
    means = [
        select(each.c.asking, func.avg(to_score(each.c.distance)).label("mean"))
        .group_by(each.c.asking)
        .subquery()
        for each in (forward, backward)
    ]
    there = select(forward.c.asking.label("a"), forward.c.found.label("b"), forward.c.distance)
    back = select(backward.c.found, backward.c.asking, backward.c.distance)
    both = union(there, back).subquery()
    pairs = (
        select(both.c.a, both.c.b, func.min(both.c.distance).label("distance"))
        .group_by(both.c.a, both.c.b)
        .subquery()
    )
    found = to_score(pairs.c.distance)
    mean = func.nullif((means[0].c.mean + means[1].c.mean) / 2, 0)
    return (
        select(pairs.c.a, pairs.c.b, found.label("score"), (found / mean).label("margin"))
        .select_from(pairs)
        .join(means[0], means[0].c.asking == pairs.c.a)
        .join(means[1], means[1].c.asking == pairs.c.b)
        .subquery()
    )
