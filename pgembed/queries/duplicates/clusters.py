"""``cluster`` and ``topics``: what the rows of a table are about."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, Float, Integer, String, cast, func, literal, select, true, union_all
from sqlalchemy import column as sql_column
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, aggregate_order_by, array

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import configuration, expression, whole
from pgembed.queries.core.nearest import Mode, Stale
from pgembed.queries.core.settings import SearchSettings
from pgembed.queries.core.statement import DuplicatePairs, Entity, materialized
from pgembed.queries.core.subject import VectorColumn, key_of, resolve
from pgembed.queries.duplicates.edges import score as score_of
from pgembed.queries.duplicates.edges import selectable_of
from pgembed.queries.duplicates.pairs import Pairs


class Clusters(DuplicatePairs[int, Entity, float]):
    """The statement of ``cluster``."""

    inherit_cache = True
    helper = "cluster"


class Topics(DuplicatePairs[Entity, int, list[str], list[object]]):
    """The statement of ``topics``."""

    inherit_cache = True
    helper = "topics"


def cluster(
    column: VectorColumn,
    *,
    min_score: float,
    min_size: int = 10,
    where: Any = None,
    k: int = 10,
    mode: Mode = "auto",
    ef_search: int | None = None,
    probes: int | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Clusters:
    """Rows that gather around a center: rows ``(cluster, key, score)``, the largest cluster first.

    ::

        session.execute(cluster(Article.embedding, min_score=0.7, min_size=10)).all()

    The clusters are those of sentence-transformers' ``community_detection``: the community of a row is all
    rows at least ``min_score`` alike to it. The largest comes first, of equal ones the one around the
    smallest key; a row stays with the first that has it, and communities that are left with fewer than
    ``min_size`` rows are none. Clusters are numbered from 1 by size; ``score`` is that to the center, which
    comes first. A row can be in no cluster.

    The pairs are found as by :func:`~pgembed.queries.near_duplicates`, whose arguments are those not listed:
    with a low ``min_score`` most rows are compared with all. It needs pgembed's SQL objects in the database
    (``pgembed init``).

    :param min_score: the least score of a row to its center.
    :param min_size: the least number of rows of a cluster, its center included.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    min_size = whole("min_size", min_size, 1)
    most = subject.metric.distance(score_of(subject.metric, min_score))
    pairs = Pairs(subject, subject.conditions(where, stale), most, k, mode, SearchSettings(ef_search, probes))
    rows = pairs.rows()
    found, copies = pairs.all(rows), rows.copies
    every = materialized(
        union_all(
            select(found.c.a, found.c.b, found.c.distance),
            select(found.c.b, found.c.a, found.c.distance),
            select(copies.c.n, copies.c.n, copies.c.own).where(copies.c.own <= most),
        ),
        "every",
    )
    size = func.count().over(partition_by=every.c.a).label("size")
    sized = select(*every.c, size).subquery()
    order = (sized.c.size.desc(), sized.c.a)
    ends = (func.array_agg(aggregate_order_by(end, *order)) for end in (sized.c.a, sized.c.b))
    communities = func.pgembed.communities(*ends, min_size, type_=ARRAY(Integer))
    centers = select(communities.label("centers")).where(sized.c.size >= min_size).subquery()
    each = (
        func.unnest(centers.c.centers)
        .table_valued(sql_column("center", Integer), with_ordinality="n")
        .render_derived()
    )
    member = materialized(
        select(cast(each.c.n, Integer).label("n"), each.c.center)
        .select_from(centers.join(each, true()))
        .where(each.c.center.is_not(None)),
        "members",
    )
    number = func.row_number().over(order_by=(func.count().desc(), member.c.center)).label("cluster")
    numbers = select(member.c.center, number).group_by(member.c.center).subquery()
    numbered = rows.numbered
    return Clusters.sealing(
        select(
            numbers.c.cluster,
            rows.key().label("key"),
            subject.metric.score(every.c.distance).label("score"),
        )
        .select_from(member)
        .join(numbers, numbers.c.center == member.c.center)
        .join(every, (every.c.a == member.c.center) & (every.c.b == member.c.n))
        .join(numbered, numbered.c.n == member.c.n)
        .order_by(numbers.c.cluster, every.c.distance, member.c.n)
    )


def topics(
    column: VectorColumn,
    clusters: Any,
    *,
    text: Any,
    words: int = 10,
    rows: int = 3,
    config: str = "english",
    metric: str | None = None,
) -> Topics:
    """What each cluster is about: rows ``(cluster, size, words, keys)``.

    ::

        found = cluster(Article.embedding, min_score=0.7)
        session.execute(topics(Article.embedding, found, text=Article.title)).all()

    ``words`` are the lexemes that stand out, the most first, by class-based tf-idf (Grootendorst,
    "BERTopic", 2022): the lexeme's number in the cluster times log(1 + the mean number of lexemes in a
    cluster / the lexeme's number in all clusters). ``keys`` are those of the rows nearest to the mean of the
    cluster's vectors.

    :param clusters: a statement of :func:`cluster`, or a table or select with the columns ``cluster`` and
        ``key``, as labels of any origin have them; rows whose ``cluster`` is NULL are in none.
    :param text: an expression over the entity.
    :param words: how many for each cluster; ``rows`` how many keys.
    :param config: the text search configuration that makes lexemes of words.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    if subject.storage not in ("vector", "halfvec"):
        raise QueryError(f"{subject} is a {subject.storage} column, whose values have no mean")
    given = selectable_of(clusters, "clusters", ("cluster", "key"))
    text = subject.over(expression("text", text, "Article.title"), "text=")
    members = materialized(
        select(
            given.c.cluster,
            key_of(subject.keys).label("key"),
            subject.vector.label("vector"),
            cast(text, String).label("text"),
        )
        .join_from(given, subject.entity, key_of(subject.keys) == given.c.key)
        .where(given.c.cluster.is_not(None)),
        "members",
    )
    vector = func.to_tsvector(cast(literal(configuration("config", config)), REGCONFIG), members.c.text)
    lexeme = func.unnest(vector).table_valued("lexeme", "positions", "weights").render_derived().lateral()
    counted = (
        select(
            members.c.cluster,
            lexeme.c.lexeme,
            func.sum(func.cardinality(lexeme.c.positions)).label("number"),
        )
        .select_from(members.join(lexeme, true()))
        .group_by(members.c.cluster, lexeme.c.lexeme)
        .subquery()
    )
    clusters_with_words = select(func.count(counted.c.cluster.distinct())).scalar_subquery()
    mean = select(cast(func.sum(counted.c.number), Float(53)) / clusters_with_words).scalar_subquery()
    everywhere = func.sum(counted.c.number).over(partition_by=counted.c.lexeme)
    weight = counted.c.number * func.ln(1 + mean / cast(everywhere, Float(53)))
    weighed = select(counted.c.cluster, counted.c.lexeme, weight.label("weight")).subquery()
    place = func.row_number().over(
        partition_by=weighed.c.cluster, order_by=(weighed.c.weight.desc(), weighed.c.lexeme)
    )
    placed = select(*weighed.c, place.label("place")).subquery()
    outstanding = (
        select(
            placed.c.cluster,
            func.array_agg(aggregate_order_by(placed.c.lexeme, placed.c.place), type_=ARRAY(String)).label(
                "words"
            ),
        )
        .where(placed.c.place <= whole("words", words, 1))
        .group_by(placed.c.cluster)
        .subquery()
    )
    center = (
        select(members.c.cluster, func.avg(members.c.vector).label("vector"), func.count().label("size"))
        .group_by(members.c.cluster)
        .subquery()
    )
    distance = subject.metric.between(members.c.vector, center.c.vector)
    central = func.row_number().over(partition_by=members.c.cluster, order_by=(distance, members.c.key))
    near = (
        select(members.c.cluster, members.c.key, center.c.size, central.label("place"))
        .join(center, center.c.cluster == members.c.cluster)
        .subquery()
    )
    first = (
        select(
            near.c.cluster,
            near.c.size,
            func.jsonb_agg(aggregate_order_by(near.c.key, near.c.place), type_=JSONB).label("keys"),
        )
        .where(near.c.place <= whole("rows", rows, 1))
        .group_by(near.c.cluster, near.c.size)
        .subquery()
    )
    none = cast(array([], type_=String), ARRAY(String))
    return Topics.sealing(
        select(
            first.c.cluster,
            first.c.size,
            func.coalesce(outstanding.c.words, none).label("words"),
            first.c["keys"],
        )
        .select_from(first)
        .outerjoin(outstanding, outstanding.c.cluster == first.c.cluster)
        .order_by(first.c.cluster)
    )
