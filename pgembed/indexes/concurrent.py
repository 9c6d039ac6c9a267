"""Building, rebuilding and dropping indexes while the table is read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from sqlalchemy import Connection, Engine, Index, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDLElement

from pgembed.exc import need_engine
from pgembed.indexes.build import (
    SERIAL,
    is_built,
    is_parallel,
    lacks_shared_memory,
    root_of,
    settings_for,
)
from pgembed.indexes.catalogue import StandingIndex, find, name_of, relation_of, require, standing
from pgembed.indexes.ddl import (
    CreateIndexConcurrently,
    DropIndexConcurrently,
    DropIndexNow,
    ReindexConcurrently,
    RenameIndex,
    SetParameters,
)
from pgembed.indexes.locks import Patience
from pgembed.indexes.partitions import Series, count_leaves, is_partitioned, leaves
from pgembed.indexes.planning import IndexTarget, declared_index, parameters_of, resolved
from pgembed.indexes.progress import OnProgress, Progress, watched
from pgembed.indexes.settings import applied

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

    Postgres has no concurrent form for a partitioned table. Its partitions are built one by one, those of
    partitions too, and attached (:mod:`pgembed.indexes.partitions`); after a failure the next call goes on
    with those that are missing. The finished ones serve queries of their partition meanwhile.

    :param engine: gives connections of its own, one for the build and one to watch it.
    :param target: the index, or the column (or mapped attribute) that it is declared on.
    :param maintenance_work_mem: bytes to build with; left out, those of :func:`pgembed.indexes.plan`.
    :param workers: parallel workers; left out, as many as the server allows. Where its shared memory is
        too small for them the index is built without.
    :param lock_timeout: seconds to wait for other changes of the table's schema, each time.
    :param attempts: how often to try; pauses between are of 1, 2, 4, ... seconds.
    :param on_progress: called a few times a second, in the thread of the caller.
    :raises DeclarationError: no index is declared on the column.
    :raises IndexBuildError: IVFFlat on fewer than 50 rows a list, or another session builds the index, or
        keeps the table locked.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, str(index.name), lock_timeout, attempts)
    with _autocommit(engine) as connection:
        if is_built(connection, index):
            return index
        index = resolved(connection, index)
        settings = settings_for(connection, index, maintenance_work_mem, workers)
        if is_partitioned(connection, relation_of(index)):
            root = _root(connection, index, patience)
            _series(connection, root, settings, patience, on_progress).complete(root)
            return index
        _remove_leftovers(connection, index)
        patience.wait_for(_table(index))
        statement = CreateIndexConcurrently(index, if_not_exists=True)
        _run(engine, connection, statement, settings, on_progress, lambda c: _remove_leftovers(c, index))
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
    again. Partitions are rebuilt one by one; where parameters differ, which Postgres does not set on the
    index of a partitioned table, another one is built beside it and takes its name. Arguments are those of
    :func:`create_concurrently`.

    :raises IndexMissingError: there is no such index, or it is invalid.
    :raises IndexBuildError: as :func:`create_concurrently`.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, str(index.name), lock_timeout, attempts)
    with _autocommit(engine) as connection:
        found = require(connection, index)
        index = resolved(connection, index)
        settings = settings_for(connection, index, maintenance_work_mem, workers)
        changed = parameters_of(index, found.parameters) != parameters_of(index)
        if found.partitioned:
            if changed:
                _replace(connection, index, found, settings, patience, on_progress)
            else:
                series = _series(connection, found, settings, patience, on_progress, anew=True)
                for partition, below in leaves(connection, found):
                    series.rebuild(found, partition, below)
            return index
        _remove_leftovers(connection, index)
        patience.wait_for(_table(index))
        if changed:
            connection.execute(SetParameters(found.schema, found.name, parameters_of(index)))
        statement = ReindexConcurrently(found.schema, found.name)
        _run(engine, connection, statement, settings, on_progress, lambda c: _remove_leftovers(c, index))
    return index


def drop(engine: Engine, target: IndexTarget, *, lock_timeout: float = 5.0, attempts: int = 5) -> bool:
    """Drop the index of a column while the table is used: ``DROP INDEX CONCURRENTLY IF EXISTS ...``.

    Postgres has no concurrent form for a partitioned table: there all partitions are locked for a moment.

    :param lock_timeout: seconds to wait for that moment, each time; readers and writers wait as long.
    :param attempts: how often to try; pauses between are of 1, 2, 4, ... seconds.
    :returns: whether there was one.
    :raises IndexBuildError: another session builds it at this moment, or keeps a partition locked.
    """
    need_engine(engine)
    index = declared_index(target)
    with _autocommit(engine) as connection:
        found = find(connection, index)
        if found is None:
            return False
        found.refuse_while_building()
        if found.partitioned:
            patience = Patience(engine, found.name, lock_timeout, attempts)
            patience.briefly(_table(index), lambda c: c.execute(DropIndexNow(found.schema, found.name)))
        else:
            connection.execute(DropIndexConcurrently(found.schema, found.name))
    return True


def _root(connection: Connection, index: Index, patience: Patience, name: str | None = None) -> StandingIndex:
    patience.briefly(_table(index), lambda brief: root_of(brief, index, name))
    found = find(connection, index, name)
    assert found is not None
    return found


def _series(
    connection: Connection,
    root: StandingIndex,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
    *,
    anew: bool = False,
) -> Series:
    """The partitions' builds, each when its table is free.

    :param anew: whether those that have the index are built too.
    """
    parts = count_leaves(connection, root.relation) - (0 if anew else len(list(leaves(connection, root))))
    begun = 0

    def report(progress: Progress) -> None:
        assert on_progress is not None
        on_progress(replace(progress, part=begun, parts=parts))

    def build(table: Table, statement: DDLElement, clean: Callable[[Connection], object]) -> None:
        nonlocal begun
        begun += 1
        patience.wait_for(table)
        told = None if on_progress is None else report
        _run(patience.engine, connection, statement, settings, told, clean)

    return Series(connection, concurrently=True, build=build, briefly=patience.briefly)


def _replace(
    connection: Connection,
    index: Index,
    old: StandingIndex,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
) -> None:
    """Build another index beside that of a partitioned table, whose parameters Postgres does not change."""
    name = old.name[:57] + "_ccnew"
    new = _root(connection, index, patience, name)
    _series(connection, new, settings, patience, on_progress).complete(new)

    def swap(brief: Connection) -> None:
        brief.execute(DropIndexNow(old.schema, old.name))
        brief.execute(RenameIndex(new.schema, new.name, old.name))

    patience.briefly(_table(index), swap)


def _run(
    engine: Engine,
    connection: Connection,
    statement: DDLElement,
    settings: Mapping[str, str],
    on_progress: OnProgress | None,
    clean: Callable[[Connection], object],
) -> None:
    """Build with these settings; ``clean`` removes what a failed build leaves."""
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
            clean(connection)
            build({**wanted, **SERIAL})
    except BaseException:
        with _autocommit(engine) as fresh:
            clean(fresh)
        raise


def _remove_leftovers(connection: Connection, index: Index) -> None:
    """Drop what failed builds of this index have left: the invalid index, and those of a failed REINDEX."""
    name = name_of(index)
    for found in standing(connection, relation_of(index)):
        transient = _TRANSIENT.fullmatch(found.name)
        ours = found.name == name or (transient is not None and name.startswith(transient[1]))
        if ours and not found.valid:
            found.refuse_while_building()
            connection.execute(DropIndexConcurrently(found.schema, found.name))


def _table(index: Index) -> Table:
    assert index.table is not None
    return index.table


def _autocommit(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
