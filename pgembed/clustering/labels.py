"""``write_labels``: which cluster each row is in, written into a column of the table in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Column,
    Engine,
    Enum,
    Integer,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import QueryableAttribute, Session, scoped_session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import NullType

from pgembed.exc import QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.nearest import Stale
from pgembed.queries.core.reading import AnySession, is_session
from pgembed.queries.core.statement import materialized
from pgembed.queries.core.subject import Subject, VectorColumn, key_of, resolve
from pgembed.queries.core.vectors import stored
from pgembed.queries.duplicates.edges import selectable_of

#: An engine gives transactions of their own; anything else is the caller's transaction.
Database: TypeAlias = Engine | AnySession
#: Called with the rows gone through so far, and how many there are to go through.
OnProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written, or would be.

    :ivar clusters: how many there are.
    :ivar rows: how many rows are in one.
    :ivar changed: how many rows got another label than they had; NULL is one.
    :ivar skipped: how many should have got another label and did not: their vector has changed since it was
        read, they were deleted, or another session has them locked.
    """

    clusters: int
    rows: int
    changed: int
    skipped: int

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)


class Labelled(NamedTuple):
    """A row to write a label to.

    :ivar seen: what :func:`content` was when its vector was read.
    :ivar label: ``None`` for a row that is in no cluster.
    """

    key: tuple[Any, ...]
    seen: int | None
    label: Any


def write_labels(
    database: Database,
    column: VectorColumn,
    clusters: Any,
    *,
    write: Any,
    where: Any = None,
    batch_size: int = 10_000,
    stale: Stale = "include",
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> Written:
    """Write the number of each row's cluster into a column of its table.

    ::

        found = cluster(Article.embedding, min_score=0.6)
        write_labels(engine, Article.embedding, found, write=Article.topic)

    Rows that are in no cluster get NULL, and rows that have their label already are not written. ``clusters``
    is executed once, by a statement that also reads which vector each row has; keys and labels are held in
    memory. Each batch is one statement, which waits for nobody::

        WITH locked AS MATERIALIZED (
          SELECT t.id, given.label FROM article t JOIN unnest(:keys, :seen, :labels) AS given ...
          WHERE hash_array_extended(CAST(t.embedding AS real[]), 0) IS NOT DISTINCT FROM given.seen
          ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED)
        UPDATE article SET topic = locked.label FROM locked WHERE article.id = locked.id

    :param database: with an engine, each batch is a transaction of its own, so that no row is locked for
        long, and an interruption leaves whole batches. With a session or a connection, all is in
        the caller's transaction; objects that a session has loaded are expired. Under an ``AsyncSession``,
        ``await session.run_sync(lambda session: write_labels(session, ...))``.
    :param column: the vector column, as in :func:`~pgembed.queries.semantic_search`.
    :param clusters: a statement of :func:`~pgembed.queries.cluster`, or a table or select with the columns
        ``cluster`` and ``key``, each key once; a composite key is a JSON array.
    :param write: the column to write to: of the same table, of whole numbers or texts, and able to be NULL.
    :param where: which rows; all others keep the label they have.
    :param batch_size: rows per statement.
    :param dry_run: count what would be changed, and change nothing.
    :param on_progress: called after each batch with the rows gone through so far, and how many do not have
        their label yet at the beginning.
    :raises QueryError: an argument cannot be used, or ``clusters`` has a key twice.
    """
    check_database(database)
    subject = resolve(column)
    size = whole("batch_size", batch_size, 1)
    given = selectable_of(clusters, "clusters", ("cluster", "key"))
    labels = Labels(subject, write)
    statement = (
        select(*subject.keys, content(subject.vector), labels.current, labels.accepted(given.c.cluster))
        .select_from(subject.entity)
        .outerjoin(given, key_of(subject.keys) == given.c.key)
        .where(*subject.conditions(where, stale))
        .order_by(*subject.keys)
    )
    with transaction(database) as session:
        found = session.execute(statement).all()
    if any(one[:-3] == other[:-3] for one, other in pairwise(found)):
        raise QueryError("clusters has a row of the table twice; expected each key once")
    other = [Labelled(tuple(row[:-3]), row[-3], row[-1]) for row in found if row[-2] != row[-1]]
    changed = len(other)
    if not dry_run:
        changed = 0
        for start in range(0, len(other), size):
            with transaction(database) as session:
                changed += labels.write(session, other[start : start + size])
            if on_progress is not None:
                on_progress(min(start + size, len(other)), len(other))
    numbers = [row[-1] for row in found if row[-1] is not None]
    return Written(len(set(numbers)), len(numbers), changed, len(other) - changed)


class Labels:
    """The column that labels are written to.

    :ivar current: its value, as an expression over the entity.
    :raises QueryError: labels cannot be written to ``write``.
    """

    def __init__(self, subject: Subject, write: Any) -> None:
        self._subject = subject
        self._column = _target(subject, write)
        self._texts = isinstance(self._column.type, String)
        self.current = subject.own(self._column)
        strange = [str(key) for key in subject.keys if isinstance(key.type, NullType)]
        if strange:
            raise QueryError(f"{', '.join(strange)} is of a type that SQLAlchemy does not know: declare it")

    def accepted(self, label: ColumnElement[Any]) -> ColumnElement[Any]:
        """A label as a value of the column.

        :raises QueryError: it is not a number, and the column holds numbers.
        """
        if self._texts:
            return cast(label, Text)
        if not isinstance(label.type, Integer | NullType):
            raise QueryError(f"cluster is of the type {label.type!r}, and {self._column} holds whole numbers")
        return label

    def value(self, number: int) -> Any:
        """The number of a cluster as the column has it."""
        return str(number) if self._texts else number

    def write(self, session: AnySession, rows: Sequence[Labelled]) -> int:
        """Write the labels of rows whose vectors are what they were; returns how many were written."""
        if not rows:
            return 0
        vector, keys = stored(self._subject)
        table = self._subject.column.table
        kinds = [*(key.type for key in keys), BigInteger(), Text() if self._texts else BigInteger()]
        names = [*(f"key_{n}" for n, _ in enumerate(keys)), "seen", "label"]
        values = zip(*((*row.key, row.seen, row.label) for row in rows), strict=True)
        arrays = (
            cast(bindparam(None, list(each), ARRAY(kind)), ARRAY(kind))
            for each, kind in zip(values, kinds, strict=True)
        )
        given: Any = func.unnest(*arrays).table_valued(*map(column, names, kinds)).render_derived()
        own = [given.c[name] for name in names[:-2]]
        locked = materialized(
            select(*(key.label(name) for key, name in zip(keys, names, strict=False)), given.c.label)
            .where(*(key == each for key, each in zip(keys, own, strict=True)))
            .where(content(vector).is_not_distinct_from(given.c.seen))
            .order_by(*keys)
            .with_for_update(key_share=True, of=vector.table, skip_locked=True),
            "locked",
        )
        same = (table.c[str(key.key)] == locked.c[name] for key, name in zip(keys, names, strict=False))
        done: Any = session.execute(update(table).values({self._column: locked.c.label}).where(*same))
        if isinstance(session, Session | scoped_session):
            session.expire_all()
        return int(done.rowcount)


def content(vector: Any) -> ColumnElement[int | None]:
    """What tells whether a vector is another one, in 8 bytes."""
    return func.hash_array_extended(cast(vector, ARRAY(REAL)), literal_column("0"), type_=BigInteger)


@contextmanager
def transaction(database: Database) -> Iterator[AnySession]:
    """One of its own, which is committed at the end, or that of the caller."""
    if not isinstance(database, Engine):
        yield database
        return
    # Whatever the isolation level of the engine: in autocommit nothing streams, and others would fail on rows
    # that have changed.
    with (
        database.connect() as connection,
        connection.execution_options(isolation_level="READ COMMITTED").begin(),
    ):
        yield connection


def check_database(database: object) -> None:
    """
    :raises QueryError: it is none, or for asyncio.
    """
    if not isinstance(database, Engine) and not is_session(database):
        raise QueryError(
            f"expected an Engine, a Session or a Connection, got {database!r}; one for asyncio is passed by "
            "`await session.run_sync(lambda session: ...)`"
        )


def _target(subject: Subject, write: Any) -> Column[Any]:
    """
    :raises QueryError: labels cannot be written to it.
    """
    found = write.property.columns[0] if isinstance(write, QueryableAttribute) else write
    if not isinstance(found, Column) or found.table is not subject.column.table:
        raise QueryError(f"write={write}; expected a column of {subject.column.table}, such as Article.topic")
    sources = subject.embedding.sources if subject.embedding is not None else ()
    problem = None
    if not isinstance(found.type, Integer | String) or isinstance(found.type, Enum):
        problem = f"is of the type {found.type!r}"
    elif found.primary_key or found.foreign_keys:
        problem = "is part of a key"
    elif any(found is source for source in sources):
        problem = f"is a source of {subject}"
    elif found.computed is not None:
        problem = "is computed"
    elif not found.nullable:
        problem = "is NOT NULL, and rows that are in no cluster have no label"
    if problem is not None:
        raise QueryError(f"{found} {problem}; expected a column of whole numbers or texts that can be NULL")
    return found
