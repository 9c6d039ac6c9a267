"""``plan``: what building an index will take, and whether it is the right index for that many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Index, func, select, text
from sqlalchemy.orm import QueryableAttribute

from pgembed.columns.types import shape_of
from pgembed.exc import DeclarationError, need_connection
from pgembed.indexes import sizes
from pgembed.indexes.catalogue import name_of, relation_of
from pgembed.indexes.counting import count_vectors
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.indexed import Indexed, indexed
from pgembed.indexes.methods import ACCESS_METHODS, AUTO
from pgembed.indexes.tables import access_method_of, vector_index_of
from pgembed.indexes.timing import seconds_for

#: An index, or a column or mapped attribute that one is declared on.
IndexTarget: TypeAlias = Index | Column[Any] | QueryableAttribute[Any]

#: Rows of the sample that an HNSW build is timed on.
SAMPLE = 2000
#: Below this many rows an exact scan is fast enough, and workers cost more than they bring.
FEW_ROWS = 10_000
#: IVFFlat's clusters mean nothing with fewer rows than this for each.
ROWS_A_LIST = 50
_GUC = text("SELECT CAST(current_setting(:name) AS integer)")


@dataclass(frozen=True)
class Plan:
    """What building an index takes; sizes are bytes.

    :ivar rows: rows that have a vector.
    :ivar parts: how many of them each partition has, of those that have some.
    :ivar memory: what the build holds in memory, of the largest partition; where it may not, HNSW is built
        several times slower and IVFFlat not at all.
    :ivar disk: size of the index, with those of all partitions.
    :ivar maintenance_work_mem: the setting to build it with.
    :ivar workers: the setting ``max_parallel_maintenance_workers`` to build it with.
    :ivar shared_memory: what ``/dev/shm`` of the server must have free; 0 without workers.
    :ivar seconds: how long the build takes on an idle server; ``None`` where no sample was built.
    :ivar recommendation: the index that suits so many rows of so many dimensions.
    """

    index: str
    table: str
    access_method: str
    parameters: dict[str, int]
    rows: int
    parts: tuple[int, ...]
    dimensions: int
    storage: str
    memory: int
    disk: int
    maintenance_work_mem: int
    workers: int
    shared_memory: int
    seconds: float | None
    recommendation: str

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return asdict(self)


def plan(
    connection: Connection, target: IndexTarget, *, workers: int | None = None, sample: int = SAMPLE
) -> Plan:
    """What building the index of a column will take.

    Memory and disk are computed (:mod:`pgembed.indexes.sizes`), the time is measured: the index is built on a
    sample of the rows, in a temporary table of a savepoint that is rolled back::

        SAVEPOINT ...; CREATE TEMPORARY TABLE pgembed_sample (vector VECTOR(384));    -- what is indexed
        INSERT INTO pgembed_sample SELECT embedding FROM article TABLESAMPLE SYSTEM (...) LIMIT 2000;
        CREATE INDEX ON pgembed_sample USING hnsw (...); ROLLBACK TO SAVEPOINT ...

    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param workers: the parallel workers to plan with; left out, those that the server allows
        (``max_parallel_maintenance_workers``), none below 10,000 rows.
    :param sample: rows of the sample; 0 builds none and leaves the time open. IVFFlat takes up to four times
        the rows that its clusters are found from (10,000, or 50 a list) whatever is said here.
    :raises DeclarationError: no index is declared on the column, or it cannot be planned for.
    """
    need_connection(connection)
    index = resolved(connection, target)
    what = what_is_indexed(index)
    if what.dimensions is None:
        raise DeclarationError(
            f"{what.column} has no fixed number of dimensions, so that it cannot be indexed"
        )
    method = access_method_of(index)
    if method not in sizes.METHODS:
        raise DeclarationError(f"{index.name}: what a {method} index takes is not known")
    size = _value_size(connection, what)
    build = sizes.Build(method, parameters_of(index), size, what.dimensions, server_of(connection))
    parts = count_vectors(connection, what.column, what.where)
    largest = max(parts, default=0)
    memory = build.memory(largest)
    processes = _workers(connection, largest, workers)
    budget = sizes.work_memory(memory, processes)
    return Plan(
        index=name_of(index),
        table=relation_of(index),
        access_method=method,
        parameters=build.parameters,
        rows=sum(parts),
        parts=tuple(parts),
        dimensions=what.dimensions,
        storage=what.storage,
        memory=memory,
        disk=sum(build.disk(part) for part in parts),
        maintenance_work_mem=budget,
        workers=processes,
        shared_memory=budget if processes else 0,
        seconds=seconds_for(connection, what, build, parts, processes, sample) if sample and parts else None,
        recommendation=recommend(sum(parts), shape_of(what.column.type)[1] or what.dimensions),
    )


def recommend(rows: int, dimensions: int) -> str:
    """The index that suits so many vectors.

    Bounds are where, on ordinary servers, an exact scan of 384 dimensions leaves 50 ms (10,000 rows), where
    a node of HNSW takes a page of its own (948 dimensions), and where graphs outgrow the memory (10 million).
    """
    if rows < FEW_ROWS:
        return "no index: an exact scan of so few rows is fast, and finds all"
    if rows > 10_000_000:
        return 'HNSW(quantize="bit"), or partitions: the graph of so many whole vectors outgrows the memory'
    construction = 128 if rows > 1_000_000 else 64
    if dimensions > 948 or rows > 1_000_000:
        return f'HNSW(m=16, ef_construction={construction}, quantize="half"), or a halfvec column'
    return f"HNSW(m=16, ef_construction={construction})"


def declared_index(target: IndexTarget) -> Index:
    """The vector index meant by ``target``.

    :raises DeclarationError: no index is declared on the column, or it is neither an index nor a column.
    """
    if isinstance(target, Index):
        return target
    mapped = getattr(getattr(target, "property", None), "columns", None)
    column = mapped[0] if mapped else target
    if not isinstance(column, Column):
        raise DeclarationError(
            f"expected an index, or the column that it is declared on (Article.embedding), got {target!r}"
        )
    index = vector_index_of(column)
    if index is None:
        raise DeclarationError(f"no vector index is declared on {column}; declare it with index=HNSW()")
    return index


def resolved(connection: Connection, target: IndexTarget) -> Index:
    """The index meant by ``target``, with ``lists="auto"`` found from the rows that are there now.

    Of a partitioned table, from the mean of its partitions.
    """
    index = declared_index(target)
    if isinstance(index, VectorIndex) and AUTO in index.parameters.values():
        what = index.indexed
        parts = count_vectors(connection, what.column, what.where)
        return index.with_parameters(index.parameters_for(sum(parts) // max(len(parts), 1)))
    return index


def what_is_indexed(index: Index) -> Indexed:
    """What a declared index holds.

    :raises DeclarationError: it is not on one vector column, nor on an expression over one.
    """
    found = indexed(index)
    if found is None:
        raise DeclarationError(f"{index.name} is not an index on one vector column, which is needed here")
    return found


def parameters_of(index: Index, stated: Mapping[str, Any] | None = None) -> dict[str, int]:
    """The storage parameters of a declared index, pgvector's defaults included.

    :param stated: those of the index as it stands, in place of the declared ones.
    """
    stated = index.dialect_options["postgresql"]["with"] or {} if stated is None else stated
    known = ACCESS_METHODS.get(access_method_of(index))
    return (known.defaults if known else {}) | {name: int(value) for name, value in stated.items()}


def server_of(connection: Connection) -> int:
    """The major version of Postgres."""
    return int(connection.dialect.server_version_info[0])  # type: ignore[index]


def _workers(connection: Connection, rows: int, asked: int | None) -> int:
    most = connection.scalar(_GUC, {"name": "max_parallel_workers"}) or 0
    if asked is None:
        asked = connection.scalar(_GUC, {"name": "max_parallel_maintenance_workers"}) or 0
        asked = asked if rows >= FEW_ROWS else 0
    return max(0, min(asked, most))


def _value_size(connection: Connection, what: Indexed) -> int:
    """Bytes of one indexed value; of a sparsevec the mean of a thousand."""
    if what.value_size is not None:
        return what.value_size
    values = select(what.expression.label("value")).where(what.column.is_not(None)).limit(1000).subquery()
    return int(connection.scalar(select(func.avg(func.pg_column_size(values.c.value)))) or 8)
