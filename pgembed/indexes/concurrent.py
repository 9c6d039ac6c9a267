"""Building, rebuilding and dropping indexes while the table is read and written."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from sqlalchemy import Connection, Engine, Index, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDLElement

from pgembed.exc import sqlstate
from pgembed.indexes.build import (
    SERIAL,
    applied,
    is_built,
    is_parallel,
    lacks_shared_memory,
    refuse_while_building,
    settings_for,
)
from pgembed.indexes.catalogue import find, name_of, relation_of, require, standing
from pgembed.indexes.ddl import (
    CreateIndexConcurrently,
    DropIndexConcurrently,
    LockTable,
    ReindexConcurrently,
    SetParameters,
)
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.planning import IndexTarget, declared_index, parameters_of
from pgembed.indexes.progress import OnProgress, watched

_LOCK_NOT_AVAILABLE = "55P03"
_KIND = text("SELECT CAST(relkind AS text) FROM pg_catalog.pg_class WHERE oid = to_regclass(:relation)")
#: What PostgreSQL calls the indexes that REINDEX CONCURRENTLY works with.
_TRANSIENT = re.compile(r"(.+)_cc(?:new|old)\d*")


def create_concurrently(
    engine: Engine,
    target: IndexTarget,
    *,
    maintenance_work_mem: int | None = None,
    workers: int | None = None,
    lock_timeout: float = 5.0,
    attempts: int = 5,
    on_progress: OnProgress | None = None,
) -> Index:
    """Build the vector index of a column while the table is written: ``CREATE INDEX CONCURRENTLY ...``.

    Nothing happens if it is there. An invalid index that a failed build left over is dropped first, and so
    is what this build leaves if it fails or is interrupted. At its end Postgres waits for transactions that
    are older than the build; nobody waits for it meanwhile.

    :param engine: gives connections of its own, one for the build and one to watch it.
    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param maintenance_work_mem: bytes to build with; left out, those of :func:`pgembed.indexes.plan`.
    :param workers: parallel workers; left out, as many as the server allows. Where its shared memory is
        too small for them the index is built without.
    :param lock_timeout: seconds to wait for other changes of the table's schema, each time.
    :param attempts: how often to try; pauses between are of 1, 2, 4, ... seconds.
    :param on_progress: called a few times a second, in the thread of the caller.
    :raises DeclarationError: no index is declared on the column.
    :raises IndexBuildError: IVFFlat on fewer than 50 rows a list, another session builds the index or keeps
        the table locked, or the table is partitioned.
    """
    index = declared_index(target)
    with _autocommit(engine) as connection:
        if is_built(connection, index):
            return index
        _refuse_partitioned(connection, index)
        settings = settings_for(connection, index, maintenance_work_mem, workers)
        _remove_leftovers(connection, index)
        _wait_for_table(engine, index, lock_timeout, attempts)
        statement = CreateIndexConcurrently(index, if_not_exists=True)
        _run(engine, connection, index, statement, settings, on_progress)
    return index


def reindex(
    engine: Engine,
    target: IndexTarget,
    *,
    maintenance_work_mem: int | None = None,
    workers: int | None = None,
    lock_timeout: float = 5.0,
    attempts: int = 5,
    on_progress: OnProgress | None = None,
) -> Index:
    """Build an index anew beside the old one, and take its place: ``REINDEX INDEX CONCURRENTLY ...``.

    Parameters that are declared otherwise than they stand are set first (``ALTER INDEX ... SET (m = 32)``),
    so that this is also how ``m``, ``ef_construction`` and ``lists`` are changed. IVFFlat finds its clusters
    again. Arguments are those of :func:`create_concurrently`.

    :raises IndexMissingError: there is no such index, or it is invalid.
    :raises IndexBuildError: as :func:`create_concurrently`.
    """
    index = declared_index(target)
    with _autocommit(engine) as connection:
        found = require(connection, index)
        settings = settings_for(connection, index, maintenance_work_mem, workers)
        _remove_leftovers(connection, index)
        _wait_for_table(engine, index, lock_timeout, attempts)
        declared = parameters_of(index)
        if any(found.parameters.get(name) != value for name, value in declared.items()):
            connection.execute(SetParameters(found.schema, found.name, declared))
        statement = ReindexConcurrently(found.schema, found.name)
        _run(engine, connection, index, statement, settings, on_progress)
    return index


def drop(engine: Engine, target: IndexTarget) -> bool:
    """Drop the index of a column while the table is used: ``DROP INDEX CONCURRENTLY IF EXISTS ...``.

    :returns: whether there was one.
    :raises IndexBuildError: another session builds it at this moment.
    """
    index = declared_index(target)
    with _autocommit(engine) as connection:
        found = find(connection, index)
        if found is None:
            return False
        refuse_while_building(found.name, found.building)
        connection.execute(DropIndexConcurrently(found.schema, found.name))
    return True


def _run(
    engine: Engine,
    connection: Connection,
    index: Index,
    statement: DDLElement,
    settings: Mapping[str, str],
    on_progress: OnProgress | None,
) -> None:
    # Roles of applications often have a statement_timeout, which is not meant for builds.
    wanted = {**settings, "statement_timeout": "0"}

    def build(chosen: Mapping[str, str]) -> None:
        with applied(connection, chosen):
            watched(engine, connection, lambda: connection.execute(statement), on_progress)

    try:
        try:
            build(wanted)
        except DBAPIError as error:
            if not (is_parallel(settings) and lacks_shared_memory(error)):
                raise
            _remove_leftovers(connection, index)
            build({**wanted, **SERIAL})
    except BaseException:
        with _autocommit(engine) as fresh:
            _remove_leftovers(fresh, index)
        raise


def _wait_for_table(engine: Engine, index: Index, lock_timeout: float, attempts: int) -> None:
    """Have had the table's lock for a moment.

    The build itself runs without a lock_timeout: it would count for its waits for old transactions too, and
    end a build of hours there. Nobody who reads or writes waits behind its request for the lock.
    """
    table = index.table
    assert table is not None
    for attempt in range(attempts):
        try:
            with engine.begin() as connection:
                limit = str(round(lock_timeout * 1000)) + "ms"
                connection.execute(select(func.set_config("lock_timeout", limit, True)))
                connection.execute(LockTable(table))
            return
        except DBAPIError as error:
            if sqlstate(error) != _LOCK_NOT_AVAILABLE:
                raise
            if attempt == attempts - 1:
                raise IndexBuildError(
                    str(index.name),
                    f"another session has kept {table.fullname} locked for {lock_timeout:g} s, "
                    f"{attempts} times",
                    fix="Wait until the change of its schema, VACUUM or build of an index is over",
                ) from error
        time.sleep(2**attempt)


def _remove_leftovers(connection: Connection, index: Index) -> None:
    """Drop what failed builds of this index have left: the invalid index, and those of a failed REINDEX."""
    name = name_of(connection, index)
    for found in standing(connection, relation_of(connection, index)):
        transient = _TRANSIENT.fullmatch(found.name)
        ours = found.name == name or (transient is not None and name.startswith(transient[1]))
        if ours and not found.valid:
            refuse_while_building(found.name, found.building)
            connection.execute(DropIndexConcurrently(found.schema, found.name))


def _refuse_partitioned(connection: Connection, index: Index) -> None:
    if connection.scalar(_KIND, {"relation": relation_of(connection, index)}) == "p":
        raise IndexBuildError(
            name_of(connection, index),
            "the table is partitioned, and Postgres builds no index of a partitioned table concurrently",
            fix="Build it with pgembed.indexes.create(connection, ...), or on each partition",
        )


def _autocommit(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
