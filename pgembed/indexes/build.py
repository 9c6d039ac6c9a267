"""Building declared indexes once there is something to index, with the memory that they need."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Index
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, DDLElement

from pgembed.exc import need_connection, sqlstate
from pgembed.indexes import sizes
from pgembed.indexes.build_plan import ROWS_A_LIST, Plan, plan, resolved
from pgembed.indexes.ddl import CreateIndexOnly, DropIndexNow
from pgembed.indexes.differences import differences, require_as_declared, stands_as_declared
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.indexed import indexed
from pgembed.indexes.locks import turn
from pgembed.indexes.methods import suitable_lists
from pgembed.indexes.partitions import PartitionBuilds, is_partitioned, refuse_foreign_partitions
from pgembed.indexes.server_settings import applied, in_autocommit
from pgembed.indexes.standing import StandingIndex, find
from pgembed.indexes.tables import IndexTarget, access_method_of, declared_index, name_of, relation_of

#: What the server says when ``/dev/shm`` is too small for a parallel build: disk full, out of memory.
_NO_SHARED_MEMORY = ("53100", "53200")


def create(
    connection: Connection,
    target: IndexTarget,
    *,
    maintenance_work_mem: int | None = None,
    workers: int | None = None,
) -> Index:
    """Build the vector index of a column, unless it is there: ``CREATE INDEX IF NOT EXISTS ...``.

    Writers of the table wait while it runs; :func:`pgembed.indexes.create_concurrently` lets them work. It
    runs in the caller's transaction. Settings that the build needs, so that its graph fits into memory, are
    made before and taken back after it. An invalid index that a failed build left over is dropped first. Of a
    partitioned table the partitions that have no such index yet get one. Another session that builds an index
    of the table with pgembed is waited for.

    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param maintenance_work_mem: bytes to build with; left out, those of :func:`pgembed.indexes.plan`.
    :param workers: parallel workers; left out, as many as the server allows. Where its shared memory is
        too small for them the index is built without.
    :raises DeclarationError: no index is declared on the column.
    :raises IndexBuildError: IVFFlat on fewer than 50 rows per list; an index of that name has other settings;
        or the session that is waited for waits for this transaction.
    """
    need_connection(connection)
    index = declared_index(target)
    if not stands_as_declared(connection, index):
        with turn(connection, relation_of(index), name_of(index)):
            if not stands_as_declared(connection, index):
                _build(connection, resolved(connection, index), maintenance_work_mem, workers)
                require_as_declared(connection, index)
    return index


def _build(
    connection: Connection, index: Index, maintenance_work_mem: int | None, workers: int | None
) -> None:
    settings = settings_for(connection, index, maintenance_work_mem, workers)
    if is_partitioned(connection, relation_of(index)):
        PartitionBuilds(
            connection,
            concurrently=False,
            build=lambda _, statement, __: _execute(connection, statement, settings),
            briefly=lambda _, work: work(connection),
        ).complete(root_of(connection, index))
        return
    if (leftover := find(connection, index)) is not None:
        leftover.refuse_while_building()
        connection.execute(DropIndexNow(leftover.schema, leftover.name))
    _execute(connection, CreateIndex(index, if_not_exists=True), settings)


def is_built(connection: Connection, target: IndexTarget) -> bool:
    """Whether the declared index exists in the database, valid."""
    need_connection(connection)
    found = find(connection, declared_index(target))
    return found is not None and found.valid


def root_of(connection: Connection, index: Index, name: str | None = None) -> StandingIndex:
    """The index of a partitioned table that those of its partitions are attached to.

    Where it is not there it is created. One that is not finished is gone on with, unless it is of other
    settings than are declared: then it is dropped.

    :param name: for one that is built beside the one of the declared name.
    """
    found = find(connection, index, name)
    if found is not None and differences(found, index):
        connection.execute(DropIndexNow(found.schema, found.name))
        found = None
    if found is None:
        connection.execute(CreateIndexOnly(index, name))
        found = find(connection, index, name)
        assert found is not None
    return found


#: Settings of a build without workers.
SERIAL: Mapping[str, str] = {"max_parallel_maintenance_workers": "0"}


def settings_for(
    connection: Connection, index: Index, maintenance_work_mem: int | None, workers: int | None
) -> dict[str, str]:
    """The settings to build an index with; none for one whose size is not known.

    :raises IndexBuildError: IVFFlat on fewer than 50 rows a list, or a partition is a foreign table.
    """
    refuse_foreign_partitions(connection, relation_of(index), name_of(index))
    if indexed(index) is None or access_method_of(index) not in sizes.METHODS:
        return {}
    planned = plan(connection, index, workers=workers, sample=0)
    _refuse_few_rows(planned)
    budget = planned.maintenance_work_mem if maintenance_work_mem is None else maintenance_work_mem
    return {
        "maintenance_work_mem": str(max(budget // 1024, 1024)) + "kB",
        "max_parallel_maintenance_workers": str(planned.workers),
        # Workers are planned by the pages of the table; vectors that are stored out of line are not in them.
        "min_parallel_table_scan_size": "0",
    }


def is_parallel(settings: Mapping[str, str]) -> bool:
    """Whether a build with these settings has workers."""
    return settings.get("max_parallel_maintenance_workers", "0") != "0"


def lacks_shared_memory(error: DBAPIError) -> bool:
    """Whether a parallel build failed because there is not enough shared memory, which a serial one doesn't
    need."""
    return sqlstate(error) in _NO_SHARED_MEMORY and "shared memory" in str(error.orig)


def _execute(connection: Connection, statement: DDLElement, settings: Mapping[str, str]) -> None:
    """Run a build; where shared memory is too small for workers, without."""
    with applied(connection, settings):
        if not is_parallel(settings) or in_autocommit(connection):
            connection.execute(statement)
            return
        try:
            with connection.begin_nested():
                connection.execute(statement)
        except DBAPIError as error:
            if not lacks_shared_memory(error):
                raise
            with applied(connection, SERIAL):
                connection.execute(statement)


def _refuse_few_rows(planned: Plan) -> None:
    if planned.access_method != "ivfflat":
        return
    lists = planned.parameters["lists"]
    needed = ROWS_A_LIST * lists
    rows = min(planned.parts, default=0)
    if rows < needed:
        where = "" if len(planned.parts) < 2 else " in a partition"
        raise IndexBuildError(
            planned.index,
            f"{rows} rows{where} are too few for {lists} lists: the clusters of rows that come later would "
            f"be those of the first {rows}. Needed are {needed} rows, {ROWS_A_LIST} a list",
            fix=f"Build it after the load, declare IVFFlat(lists={suitable_lists(rows)}) or less, "
            "or HNSW(), which needs no rows",
        )
