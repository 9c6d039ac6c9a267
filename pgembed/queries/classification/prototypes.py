"""``zero_shot``, ``centroid_classify``: labels by the vectors that stand for them, one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ARRAY, SQLColumnExpression, and_, bindparam, case, column, func, literal, select, true
from sqlalchemy.orm import Mapped
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CTE, FromClause

from pgembed.exc import QueryError
from pgembed.queries.classification.votes import Classified, Election, Limits, kind_of, softmax
from pgembed.queries.core.arguments import comparable, real, words
from pgembed.queries.core.asked import Queries, QueryVectorsType, asked_by
from pgembed.queries.core.nearest import NAN, Stale
from pgembed.queries.core.statement import Entity, materialized
from pgembed.queries.core.subject import Subject, VectorColumn, resolve
from pgembed.queries.core.sums import scaled, summable

_T = TypeVar("_T")
_L = TypeVar("_L", str, int)
#: How sure shares are: near 0.05, a difference of cosine similarities of 0.1 is one of votes of 1 to 7.
TEMPERATURE = 0.05


def zero_shot(
    column: VectorColumn,
    labels: Mapping[_L, str | Sequence[str]],
    *,
    template: str = "This text is about {}.",
    queries: Queries = None,
    where: Any = None,
    temperature: float = TEMPERATURE,
    min_share: float | None = None,
    min_margin: float | None = None,
    max_distance: float | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, _L | None, float | None, float | None, float | None, str | None]:
    """A label for each row, of the labels' texts: rows ``(key, label, share, margin, nearest_distance,
    reason)``.

    ::

        session.execute(zero_shot(Article.embedding, {"help": "questions", "news": ["politics", "sports"]}))

    Each text is put into the template and encoded, all in one batch when the statement is executed. The
    vector of a label is that of its text, or the mean of several. Each row gets the label that is nearest
    to its vector. ``share`` is exp(-distance / ``temperature``), relative to the sum over all labels;
    ``margin`` is that share less the second. Of equal distances, the smaller label comes first. Where an
    answer does not fulfil what is asked of it, ``label`` is NULL and ``reason`` says why, as for
    :func:`~pgembed.queries.knn_classify_many`.

    The SQL compares each row with each label: no index is used.

    :param column: as in :func:`~pgembed.queries.semantic_search`, as is ``metric``.
    :param labels: the text, or several, that says what each label is about. Labels are strings, or numbers.
    :param template: what surrounds a text, in place of ``{}``; ``"{}"`` for the texts alone.
    :param queries: what gets labels, as for :func:`~pgembed.queries.knn_classify_many`; left out, the rows of
        the entity, all of them or those that fulfil ``where``.
    :param max_distance: of a label; one that is farther away is too far.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    if queries is None:
        queries = and_(true(), *subject.conditions(where, stale))
    elif where is not None or stale != "include":
        raise QueryError("where= and stale= choose rows of the table, and queries= says what gets labels")
    limits = Limits.of(min_share, min_margin, max_distance)
    prototypes = _of_texts(subject, labels, template)
    return Classified.of(_nearest(subject, queries, prototypes, temperature, limits), "zero_shot")


def centroid_classify(
    column: VectorColumn,
    *,
    queries: Queries,
    label: SQLColumnExpression[_T] | Mapped[_T],
    where: Any = None,
    texts: Mapping[_T, str | Sequence[str]] | None = None,
    mix: float = 0.5,
    template: str = "This text is about {}.",
    temperature: float = TEMPERATURE,
    min_share: float | None = None,
    min_margin: float | None = None,
    max_distance: float | None = None,
    stale: Stale = "include",
    metric: str | None = None,
) -> Classified[Entity, _T | None, float | None, float | None, float | None, str | None]:
    """A label for each of many rows by the mean vector of each label: rows as of :func:`zero_shot`.

    ::

        session.execute(centroid_classify(Article.embedding, queries=Article.section.is_(None),
                                          label=Article.section)).all()

    The vectors of the rows with a label are averaged, for the cosine metric normalised before. Each query
    gets the label whose mean is nearest; a labelled row that is a query is part of its own label's mean.
    Few rows a label will do, and thousands of them cost one reading of the table.

    :param column: the vectors of the training rows, as in :func:`~pgembed.queries.semantic_search`, as are
        ``where``, ``stale`` and ``metric``.
    :param queries: what gets labels, as for :func:`~pgembed.queries.knn_classify_many`.
    :param label: the attribute to predict, or any expression over the training rows.
    :param texts: what labels are about, as for :func:`zero_shot`: mixed into the means. A label without
        rows is its text alone, one without a text its mean alone.
    :param mix: how much of the texts, from 0 to 1.
    :raises QueryError: at construction, for whatever cannot give the right rows.
    """
    subject = resolve(column, metric)
    summable(subject)
    given = subject.over(comparable("label", label, "Article.section"), "label=")
    labelled: ColumnElement[bool] = given.is_not(None)
    limits = Limits.of(min_share, min_margin, max_distance)
    conditions = [subject.vector.is_not(None), labelled, *subject.conditions(where, stale)]
    rows = select(given.label("label"), _unit(subject, subject.vector).label("vector")).where(*conditions)
    prototypes = _means(rows.subquery())
    if kind_of(prototypes.c.label, regression=False) == "array":
        raise QueryError(
            "label= is an array, whose elements would need a mean of each: use knn_classify_many()"
        )
    if texts is not None:
        prototypes = _mixed(subject, prototypes, _of_texts(subject, texts, template), mix)
    return Classified.of(_nearest(subject, queries, prototypes, temperature, limits), "centroid_classify")


def _nearest(subject: Subject, queries: Queries, prototypes: CTE, temperature: float, limits: Limits) -> Any:
    weights = softmax(temperature)
    asked, _ = asked_by(subject, queries, every=True)
    distance = subject.metric.between(asked.c.vector, prototypes.c.vector)
    compared = (
        select(asked.c.n, prototypes.c.label, distance.label("distance"))
        .select_from(asked.join(prototypes, true()))
        .where(asked.c.vector.is_not(None))
        .subquery()
    )
    found = select(*compared.c).where(compared.c.distance < NAN).subquery()
    return Election(subject.metric, weights, limits, by_rows=False).answers(asked, found, found.c.label)


def _of_texts(subject: Subject, labels: Mapping[Any, str | Sequence[str]], template: str) -> CTE:
    """The mean of the vectors of each label's texts, as a CTE ``(label, vector)``.

    :raises QueryError: no labels or texts, or not labels of one type.
    """
    kind = QueryVectorsType(summable(subject))
    if words("template", template).count("{}") != 1:
        raise QueryError(f"template={template!r}; expected a text with one {{}}, where the label's text goes")
    if not isinstance(labels, Mapping) or not labels:
        raise QueryError(f"labels={labels!r}; expected a dictionary of labels and their texts")
    of_labels = {type(each) for each in labels}
    if len(of_labels) != 1 or not of_labels <= {str, int}:
        found = ", ".join(sorted(each.__name__ for each in of_labels))
        raise QueryError(f"the labels are of {found}; expected strings alone, or whole numbers alone")
    names, prompts = [], []
    for name, given in labels.items():
        of_label = [given] if isinstance(given, str) else list(given)
        if not of_label:
            raise QueryError(f"the label {name!r} has no text; expected one or several")
        for text in of_label:
            if not words(f"the text of the label {name!r}", text).strip():
                raise QueryError(
                    f"the label {name!r} has a blank text; expected one that says what it is about"
                )
            names.append(name)
            prompts.append(template.replace("{}", text))
    of_name = literal(names[0]).type
    rows = (
        func.unnest(
            bindparam("prompts", kind.accepted(prompts), type_=kind, unique=True),
            bindparam("labels", names, type_=ARRAY(of_name), unique=True),
        )
        .table_valued(column("vector", subject.column.type), column("label", of_name))
        .render_derived()
    )
    vectors = select(rows.c.label, _unit(subject, rows.c.vector).label("vector")).subquery()
    return _means(vectors)


def _means(vectors: FromClause) -> CTE:
    """The mean of each label, as a CTE ``(label, vector)``."""
    kind = vectors.c.vector.type
    mean = func.avg(vectors.c.vector, type_=kind).label("vector")
    return materialized(select(vectors.c.label, mean).group_by(vectors.c.label), "prototypes")


def _mixed(subject: Subject, means: CTE, texts: CTE, mix: float) -> CTE:
    share = real("mix", mix, "a number from 0 to 1")
    if not 0 <= share <= 1:
        raise QueryError(f"mix={mix!r}; expected a number from 0 to 1")
    mean, text = _unit(subject, means.c.vector), _unit(subject, texts.c.vector)
    kind = subject.column.type
    both = scaled(subject, mean, 1 - share).op("+", return_type=kind)(scaled(subject, text, share))
    vector = case((texts.c.vector.is_(None), mean), (means.c.vector.is_(None), text), else_=both)
    joined = means.outerjoin(texts, texts.c.label == means.c.label, full=True)
    label = func.coalesce(means.c.label, texts.c.label, type_=means.c.label.type)
    return materialized(select(label.label("label"), vector.label("vector")).select_from(joined), "mixed")


def _unit(subject: Subject, vector: ColumnElement[Any]) -> ColumnElement[Any]:
    """Of length 1 where only the direction counts, so that each vector weighs the same in a mean."""
    return func.l2_normalize(vector, type_=vector.type) if subject.metric.name == "cosine" else vector
