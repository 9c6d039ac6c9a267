"""Building, rebuilding and dropping indexes while the table is read and written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection, Engine, Index, Table, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import DDLElement

from pgembed.columns.names import LONGEST_NAME, octets, written
from pgembed.exc import PgembedError, need_engine, sqlstate
from pgembed.indexes.build import SERIAL, is_parallel, lacks_shared_memory, root_of, settings_for
from pgembed.indexes.build_plan import resolved
from pgembed.indexes.ddl import (
    CommentOnIndex,
    CreateIndexConcurrently,
    DropIndexConcurrently,
    DropIndexNow,
    ReindexConcurrently,
    RenameIndex,
)
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.locks import Patience, turn
from pgembed.indexes.partitions import Series, count_leaves, is_partitioned, leaves
from pgembed.indexes.progress import OnProgress, Progress, watched
from pgembed.indexes.server_settings import applied, unlimited
from pgembed.indexes.standing import (
    StandingIndex,
    find,
    present,
    refuse_other_form,
    require_as_declared,
    standing,
    stands_as_declared,
)
from pgembed.indexes.tables import IndexTarget, declared_index, name_of, parameters_of, relation_of

#: What PostgreSQL calls the indexes that REINDEX CONCURRENTLY works with.
_TRANSIENT = re.compile(r"(.+)_cc(?:new|old)\d*")
#: What the server says to those who get in one another's way: deadlock, a name that is taken, a relation that
#: is gone. Among those who take turns it does not.
_COLLISIONS = ("40P01", "23505", "42P07", "42P01")
#: Seconds to wait for a turn to clean up after a build; whoever has it cleans up too.
_CLEANING = 5.0
_KEPT = text("""
SELECT coalesce(s.spcname, '') AS tablespace, pg_catalog.obj_description(c.oid, 'pg_class') AS comment
  FROM pg_catalog.pg_class AS c LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
 WHERE c.oid = :oid
""")

T = TypeVar("T")


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

    Nothing happens if it is there. Another session that builds an index of the table with pgembed is waited
    for. An invalid index that a failed build left over is dropped first, and so is what this build leaves if
    it fails or is interrupted; if the process is killed, the server ends the build within a second or so.

    At its end Postgres waits for transactions that are older than the build; nobody waits for it meanwhile.

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
    :raises IndexBuildError: IVFFlat on fewer than 50 rows a list; an index of that name stands with other
        settings; or somebody who does not use pgembed builds it, or keeps the table locked.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, name_of(index), lock_timeout, attempts)

    def work(connection: Connection) -> None:
        if not stands_as_declared(connection, index):
            wanted = resolved(connection, index)
            settings = settings_for(connection, wanted, maintenance_work_mem, workers)
            _create(connection, wanted, settings, patience, on_progress)
            require_as_declared(connection, index)

    _in_turn(index, patience, on_progress, work)
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

    This is also how ``m``, ``ef_construction`` and ``lists`` are changed: where they are declared otherwise
    than they stand, another index is built beside the old one and takes its name. Whatever happens, the old
    one keeps its own parameters. IVFFlat finds its clusters again. Partitions are rebuilt one by
    one. An invalid index that a failed build left is built again. Arguments are those of
    :func:`create_concurrently`.

    :raises IndexMissingError: there is no such index.
    :raises IndexBuildError: as :func:`create_concurrently`; or the index stands with another access method,
        metric, expression or predicate than declared.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, name_of(index), lock_timeout, attempts)

    def work(connection: Connection) -> None:
        found = present(connection, index, by="create_concurrently")
        wanted = resolved(connection, index)
        settings = settings_for(connection, wanted, maintenance_work_mem, workers)
        if not found.valid:
            _create(connection, wanted, settings, patience, on_progress)
        else:
            refuse_other_form(found, wanted)
            _rebuild(connection, wanted, found, settings, patience, on_progress)
        require_as_declared(connection, wanted)

    _in_turn(index, patience, on_progress, work)
    return index


def drop(engine: Engine, target: IndexTarget, *, lock_timeout: float = 5.0, attempts: int = 5) -> bool:
    """Drop the index of a column while the table is used: ``DROP INDEX CONCURRENTLY IF EXISTS ...``.

    Postgres has no concurrent form for a partitioned table: there all partitions are locked for a moment.

    :param lock_timeout: seconds to wait for that moment, each time; readers and writers wait as long.
    :param attempts: how often to try; pauses between are of 1, 2, 4, ... seconds.
    :returns: whether there was one.
    :raises IndexBuildError: somebody who does not use pgembed builds it, or keeps a partition locked.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, name_of(index), lock_timeout, attempts)

    def work(connection: Connection) -> bool:
        found = find(connection, index)
        if found is not None:
            found.refuse_while_building()
            _drop(connection, found, patience, _table(index))
        _remove_leftovers(connection, index, patience)
        return found is not None

    return _in_turn(index, patience, None, work)


def _in_turn(
    index: Index, patience: Patience, on_progress: OnProgress | None, work: Callable[[Connection], T]
) -> T:
    """Work on a connection of its own while nobody else changes indexes of the table with pgembed.

    Where somebody who does not take turns gets in the way, it is begun again.
    """

    def waiting() -> None:
        if on_progress is not None:
            on_progress(Progress("waiting for another session that builds an index of the table", 0, 0))

    for attempt in range(patience.attempts):
        try:
            with _autocommit(patience.engine) as connection:
                try:
                    with (
                        unlimited(connection),
                        turn(connection, relation_of(index), name_of(index), on_wait=waiting),
                    ):
                        return work(connection)
                except PgembedError:
                    raise
                except BaseException:
                    connection.invalidate()  # and with it locks and settings that may not be taken back
                    raise
        except DBAPIError as error:
            if sqlstate(error) not in _COLLISIONS:
                raise
            if attempt == patience.attempts - 1:
                raise IndexBuildError(
                    name_of(index),
                    f"another session has been in the way, {patience.attempts} times: {error.orig}",
                    fix="Wait until it has changed the indexes of the table",
                ) from error
        time.sleep(2**attempt)
    raise AssertionError("there is a last attempt")


def _create(
    connection: Connection,
    index: Index,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
) -> None:
    _remove_leftovers(connection, index, patience)
    if is_partitioned(connection, relation_of(index)):
        root = _root(connection, index, patience)
        _series(connection, root, settings, patience, on_progress).complete(root)
        return
    patience.wait_for(_table(index))
    statement = CreateIndexConcurrently(index)
    _run(connection, _table(index), statement, settings, patience, on_progress, _cleaning(index, patience))


def _rebuild(
    connection: Connection,
    index: Index,
    found: StandingIndex,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
) -> None:
    changed = parameters_of(index, found.parameters) != parameters_of(index)
    if changed and found.partitioned:
        _replace_root(connection, index, found, settings, patience, on_progress)
        return
    _remove_leftovers(connection, index, patience)
    if found.partitioned:
        series = _series(connection, found, settings, patience, on_progress, anew=True)
        for partition, below in leaves(connection, found):
            series.rebuild(found, partition, below)
        return
    patience.wait_for(_table(index))
    if changed:
        _replace(connection, index, found, settings, patience, on_progress)
        return
    statement = ReindexConcurrently(found.schema, found.name)
    _run(connection, _table(index), statement, settings, patience, on_progress, _cleaning(index, patience))


def _replace(
    connection: Connection,
    index: Index,
    old: StandingIndex,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
) -> None:
    """Build another index beside the one that stands, in its tablespace, and give it name and comment.

    Names are swapped in one transaction, which locks nobody out.
    """
    kept = connection.execute(_KEPT, {"oid": old.oid}).one()
    new, gone = _beside(old.name, "new"), _beside(old.name, "old")
    statement = CreateIndexConcurrently(index, new)
    wanted = {**settings, "default_tablespace": kept.tablespace}
    clean = _cleaning(index, patience)
    _run(connection, _table(index), statement, wanted, patience, on_progress, clean)

    def swap(brief: Connection) -> None:
        if kept.comment is not None:
            brief.execute(CommentOnIndex(old.schema, new, kept.comment))
        brief.execute(RenameIndex(old.schema, old.name, gone))
        brief.execute(RenameIndex(old.schema, new, old.name))

    patience.briefly(_table(index), swap)
    connection.execute(DropIndexConcurrently(old.schema, gone))


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
        _run(connection, table, statement, settings, patience, told, clean)

    return Series(connection, concurrently=True, build=build, briefly=patience.briefly)


def _replace_root(
    connection: Connection,
    index: Index,
    old: StandingIndex,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
) -> None:
    """Build another index beside that of a partitioned table, partition by partition."""
    name = _beside(old.name, "new")
    new = _root(connection, index, patience, name)
    _series(connection, new, settings, patience, on_progress).complete(new)

    def swap(brief: Connection) -> None:
        brief.execute(DropIndexNow(old.schema, old.name))
        brief.execute(RenameIndex(new.schema, new.name, old.name))

    patience.briefly(_table(index), swap)


def _run(
    connection: Connection,
    table: Table,
    statement: DDLElement,
    settings: Mapping[str, str],
    patience: Patience,
    on_progress: OnProgress | None,
    clean: Callable[[Connection], object],
) -> None:
    """Build with these settings on a table whose turn it is; ``clean`` removes what a failure leaves."""
    engine = patience.engine

    def build(chosen: Mapping[str, str]) -> None:
        with applied(connection, chosen):
            watched(engine, connection, lambda: connection.execute(statement), on_progress)

    try:
        try:
            build(settings)
        except DBAPIError as error:
            if not (is_parallel(settings) and lacks_shared_memory(error)):
                raise
            clean(connection)
            build({**settings, **SERIAL})
    except BaseException:
        # What stays is for the next call: the error is that of the build.
        try:
            clean(connection)
        except SQLAlchemyError:
            connection.invalidate()
            with (
                suppress(SQLAlchemyError, IndexBuildError),
                _autocommit(engine) as fresh,
                unlimited(fresh),
                turn(fresh, written(table), patience.index, seconds=_CLEANING),
            ):
                clean(fresh)
        except IndexBuildError:
            pass
        raise


def _cleaning(index: Index, patience: Patience) -> Callable[[Connection], object]:
    return lambda connection: _remove_leftovers(connection, index, patience)


def _remove_leftovers(connection: Connection, index: Index, patience: Patience) -> None:
    """Drop what failed builds of this index have left, those of a failed REINDEX and of a swap included.

    The unfinished index of a partitioned table stays, to be gone on with.
    """
    name = name_of(index)
    for found in standing(connection, relation_of(index)):
        invalid = not found.valid and not found.partitioned and (found.name == name or _is_copy(found, name))
        if invalid or found.name in (_beside(name, "new"), _beside(name, "old")):
            found.refuse_while_building()
            _drop(connection, found, patience, _table(index))


def _is_copy(found: StandingIndex, name: str) -> bool:
    """Whether it is one that REINDEX CONCURRENTLY made of the index; long names are cut."""
    copy = _TRANSIENT.fullmatch(found.name)
    if copy is None:
        return False
    return copy[1] == name or (octets(found.name) == LONGEST_NAME and name.startswith(copy[1]))


def _drop(connection: Connection, found: StandingIndex, patience: Patience, table: Table) -> None:
    if found.partitioned:
        patience.briefly(table, lambda brief: brief.execute(DropIndexNow(found.schema, found.name)))
    else:
        connection.execute(DropIndexConcurrently(found.schema, found.name))


def _beside(name: str, which: str) -> str:
    """The name of an index that is built beside another, or that one's while it makes room for it."""
    suffix = f"_pgembed_{which}"
    return name.encode()[: LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


def _table(index: Index) -> Table:
    assert index.table is not None
    return index.table


def _autocommit(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
