"""``kmeans``: scikit-learn's MiniBatchKMeans on vectors that are streamed out of the database."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    LargeBinary,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Select

from pgembed.clustering.labels import (
    Database,
    Labelled,
    Labels,
    OnProgress,
    check_database,
    content,
    transaction,
)
from pgembed.columns import Array
from pgembed.exc import DimensionMismatchError, MissingExtraError, QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.nearest import NAN, Stale
from pgembed.queries.core.subject import Subject, VectorColumn, resolve

#: How often centers are looked for in the first batch, and how many steps each may take: the best are where
#: streaming starts, and it moves them further.
_STARTS, _STEPS = 5, 30
#: Rows that are fetched at once: in the form that drivers receive, a vector is many times as large.
_FETCHED = 500
_STREAMED = {"yield_per": _FETCHED}
#: The binary form of an array: what comes before its elements, and the size of each, its length included.
_HEAD, _ELEMENT = 20, 8


@dataclass(frozen=True, eq=False)
class KMeans:
    """Clusters, the largest first: the one with the number 1 is at place 0.

    :ivar centers: float32 ``(n, d)``: the means of the vectors of each cluster; with the metric cosine, of
        the vectors as unit vectors.
    :ivar sizes: how many rows each has. It can be 0 where many vectors are equal.
    :ivar inertia: the mean of the squared Euclidean distances of the vectors to their centers, which is
        scikit-learn's ``inertia_`` divided by the rows.
    :ivar rows: how many rows are in a cluster.
    :ivar changed: how many rows got another label than they had (NULL is one); in a dry run, would get.
    :ivar skipped: as in :class:`~pgembed.clustering.Written`.
    """

    centers: Array
    sizes: tuple[int, ...]
    inertia: float
    rows: int
    changed: int = 0
    skipped: int = 0


def kmeans(
    database: Database,
    column: VectorColumn,
    *,
    clusters: int = 20,
    where: Any = None,
    write: Any = None,
    batch_size: int = 10_000,
    passes: int = 3,
    seed: int = 0,
    stale: Stale = "include",
    metric: str | None = None,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> KMeans:
    """Divide the rows into clusters by k-means, and write the number of each row's cluster into a column.

    ::

        found = kmeans(engine, Article.embedding, clusters=20, write=Article.topic)
        labels = select(Article.topic.label("cluster"), Article.id.label("key"))
        session.execute(topics(Article.embedding, labels, text=Article.title)).all()

    No more than a batch of vectors is in memory. Centers are looked for in the first batch and moved by
    scikit-learn's ``MiniBatchKMeans.partial_fit`` with all of them, in a random order that ``seed`` and the
    keys decide; one more pass counts the rows of each cluster. The same rows and the same seed give the same
    clusters. They are numbered from 1, the largest first.

    With ``write=``, rows are read once more in the order of their keys and written batch by batch, as by
    :func:`write_labels`. Rows without a vector, and vectors of zeros with the metric cosine, are in no
    cluster and get NULL.

    :param database: as for :func:`write_labels`, as are ``write``, ``where`` and ``dry_run``. An engine also
        reads each pass in a transaction of its own. A connection in autocommit cannot stream.
    :param column: a column of ``vector`` or ``halfvec``, as in :func:`~pgembed.queries.semantic_search`.
    :param clusters: how many, at most as many as there are rows.
    :param batch_size: rows per batch, at least as many as clusters.
    :param passes: how often all rows are gone through to move the centers. Each sorts them by a hash of their
        keys, which takes as much temporary disk space as the vectors.
    :param metric: ``"cosine"`` makes unit vectors of the vectors, ``"l2"`` takes them as they are; by default
        that of the column. A mean is the center of no other metric.
    :param on_progress: called with the rows gone through so far, and how many that will be in all passes.
    :raises MissingExtraError: scikit-learn is not installed (extra ``cluster``).
    :raises QueryError: an argument cannot be used, or there are fewer rows with vectors than clusters.
    :raises DimensionMismatchError: the column holds vectors of different dimensions.
    """
    try:
        from sklearn.cluster import KMeans as Start
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "cluster", needed_for="k-means") from error

    check_database(database)
    vectors = _Vectors.of(resolve(column, metric), where, stale, whole("batch_size", batch_size, 1))
    clusters = whole("clusters", clusters, 1, vectors.batch_size)
    passes, seed = whole("passes", passes, 1), whole("seed", seed, 0)
    labels = None if write is None else Labels(vectors.subject, write)
    rows = vectors.count(database)
    if rows < clusters:
        raise QueryError(
            f"{vectors.subject} has {rows} rows with a vector that can be compared; expected at least "
            f"clusters={clusters}"
        )
    progress = _Progress(on_progress, rows * (passes + 1 + (labels is not None)))

    model: Any = None
    for _ in range(passes):
        with closing(vectors.shuffled(database, seed)) as batches:
            for batch in batches:
                if model is None:
                    with threadpool_limits(1, "openmp"):  # threads would add floats up in any order
                        start = Start(clusters, n_init=_STARTS, max_iter=_STEPS, random_state=seed)
                        start.fit(batch)
                    model = MiniBatchKMeans(
                        clusters, init=start.cluster_centers_, n_init=1, random_state=seed
                    )
                model.partial_fit(batch)
                progress.add(len(batch))

    sizes, squares = np.zeros(clusters, np.int64), 0.0
    with closing(vectors.all(database)) as batches:
        for batch in batches:
            nearest = model.predict(batch)
            sizes += np.bincount(nearest, minlength=clusters)
            squares += float(np.square(batch - model.cluster_centers_[nearest], dtype=np.float64).sum())
            progress.add(len(batch))
    order = np.argsort(-sizes, kind="stable")
    model.cluster_centers_ = model.cluster_centers_[order]
    sizes, rows = sizes[order], int(sizes.sum())

    written = (0, 0) if labels is None else _write(database, vectors, model, labels, dry_run, progress)
    return KMeans(model.cluster_centers_, tuple(sizes.tolist()), squares / max(rows, 1), rows, *written)


def _write(
    database: Database, vectors: _Vectors, model: Any, labels: Labels, dry_run: bool, progress: _Progress
) -> tuple[int, int]:
    """Write the number of each row's cluster; returns how many rows were changed and skipped."""
    changed = skipped = 0
    last: Sequence[Any] = ()
    found = vectors.batch_size
    while found == vectors.batch_size:
        other: list[Labelled] = []
        with transaction(database) as session:
            with session.execute(vectors.page(labels.current, last), execution_options=_STREAMED) as page:
                found = there = 0
                for rows in page.partitions():
                    usable = [row[-1] for row in rows if row[-1] is not None]
                    nearest = iter(model.predict(vectors.decoded(usable)).tolist() if usable else ())
                    for row in rows:
                        label = None if row[-1] is None else labels.value(next(nearest) + 1)
                        if row[-2] != label:
                            other.append(Labelled(tuple(row[:-3]), row[-3], label))
                    found, there, last = found + len(rows), there + len(usable), rows[-1]
            written = len(other) if dry_run else labels.write(session, other)
        changed, skipped = changed + written, skipped + len(other) - written
        progress.add(there)
    return changed, skipped


class _Progress:
    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress = on_progress
        self._done, self._total = 0, total

    def add(self, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


@dataclass(frozen=True)
class _Vectors:
    """The vectors of the rows that take part, batch by batch.

    :ivar conditions: which rows.
    :ivar usable: which of them have a vector that can be compared.
    """

    subject: Subject
    conditions: Sequence[ColumnElement[bool]]
    usable: ColumnElement[bool]
    batch_size: int

    @classmethod
    def of(cls, subject: Subject, where: Any, stale: Stale, batch_size: int) -> _Vectors:
        """
        :raises QueryError: means of the vectors are not centers.
        """
        if subject.storage not in ("vector", "halfvec"):
            raise QueryError(
                f"{subject} is a {subject.storage} column, whose values have no mean; expected one of vector "
                "or halfvec"
            )
        name = subject.metric.name
        if name not in ("cosine", "l2"):
            raise QueryError(
                f"{subject} is measured by {name}, of which a mean is not the center: k-means makes "
                'Euclidean distances small. Pass metric="cosine" (unit vectors) or metric="l2"'
            )
        there = subject.vector.is_not(None)
        directed = [subject.distance(subject.vector) < NAN] if name == "cosine" else []
        return cls(subject, subject.conditions(where, stale), and_(there, *directed), batch_size)

    @property
    def _binary(self) -> ColumnElement[bytes]:
        """A fifth of what the text form costs, which both sides would make and read number by number."""
        return func.array_send(cast(self.subject.vector, ARRAY(REAL)), type_=LargeBinary)

    @property
    def _vectors(self) -> Select[Any]:
        return select(self._binary).select_from(self.subject.entity).where(*self.conditions, self.usable)

    def count(self, database: Database) -> int:
        statement = select(func.count()).select_from(self.subject.entity)
        with transaction(database) as session:
            return session.scalar(statement.where(*self.conditions, self.usable)) or 0

    def shuffled(self, database: Database, seed: int) -> Generator[Array]:
        """In an order that has nothing to do with what the rows are about, as mini-batches must be drawn:
        consecutive rows are often alike."""
        keys = cast(func.jsonb_build_array(*self.subject.keys), Text)
        hashed = func.hashtextextended(keys, literal(seed, BigInteger))
        return self._batches(database, self._vectors.order_by(hashed, *self.subject.keys))

    def all(self, database: Database) -> Generator[Array]:
        return self._batches(database, self._vectors)

    def _batches(self, database: Database, statement: Select[Any]) -> Generator[Array]:
        with (
            transaction(database) as session,
            session.execute(statement, execution_options=_STREAMED) as result,
        ):
            values = result.scalars()
            while True:
                parts: list[Array] = []
                left = self.batch_size
                while left and (rows := values.fetchmany(min(left, _FETCHED))):
                    parts.append(self.decoded(rows))
                    left -= len(rows)
                if not parts:
                    return
                yield np.concatenate(parts)

    def page(self, current: ColumnElement[Any], last: Sequence[Any]) -> Select[Any]:
        """Rows ``(*key, content, current label, binary vector or NULL)`` in the order of their keys.

        :param last: the row that these come after.
        """
        subject = self.subject
        statement: Select[Any] = (
            select(*subject.keys, content(subject.vector), current, case((self.usable, self._binary)))
            .select_from(subject.entity)
            .where(*self.conditions)
            .order_by(*subject.keys)
            .limit(self.batch_size)
        )
        if not last:
            return statement
        after = (literal(value, key.type) for key, value in zip(subject.keys, last, strict=False))
        return statement.where(tuple_(*subject.keys) > tuple_(*after))

    def decoded(self, values: Sequence[bytes]) -> Array:
        """Vectors as the metric compares them, float32 ``(n, d)``.

        :raises DimensionMismatchError: they are not of one length.
        """
        size = len(values[0])
        for value in values:
            if len(value) != size:
                found, expected = ((len(each) - _HEAD) // _ELEMENT for each in (value, values[0]))
                raise DimensionMismatchError(found, expected, where=f"another one of {self.subject}")
        raw = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), size)
        elements = np.ascontiguousarray(raw[:, _HEAD:]).view(">f4").reshape(len(values), -1, 2)
        numbers = elements[:, :, 1].astype(np.float64)
        if self.subject.metric.name == "cosine":
            numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
        return numbers.astype(np.float32)
