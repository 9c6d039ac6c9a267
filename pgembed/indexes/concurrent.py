"""Building, rebuilding and dropping indexes while the table is read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection, Engine, Index, Table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import DDLElement

from pgembed.columns.names import written
from pgembed.exc import need_engine
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
from pgembed.indexes.differences import (
    differences,
    refuse_other_form,
    require_as_declared,
    stands_as_declared,
)
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.locks import Patience, turn
from pgembed.indexes.measurement import Measurement
from pgembed.indexes.partitions import PartitionBuilds, count_leaves, is_partitioned, leaves
from pgembed.indexes.progress import OnProgress, Progress, watched
from pgembed.indexes.server_settings import applied, autocommitting, unlimited
from pgembed.indexes.standing import StandingIndex, beside, find, left_over, present
from pgembed.indexes.tables import IndexTarget, declared_index, name_of, relation_of

#: Seconds to wait for a turn to clean up after a build; the session that has it cleans up too.
_CLEANING = 5.0

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

    At its end Postgres waits for transactions that are older than the build; no session waits for the build
    meanwhile.

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
    :raises IndexBuildError: IVFFlat on fewer than 50 rows per list; an index of that name has other settings;
        or a session without pgembed builds it, or keeps the table locked.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, name_of(index), lock_timeout, attempts)

    def work(connection: Connection) -> None:
        if not stands_as_declared(connection, index):
            wanted = resolved(connection, index)
            settings = settings_for(connection, wanted, maintenance_work_mem, workers)
            _Build(connection, wanted, settings, patience, on_progress).create()
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

    This is also how ``m``, ``ef_construction`` and ``lists`` are changed: where the declaration has other
    values, another index is built beside the old one and takes its name. Whatever happens, the old one keeps
    its own parameters. IVFFlat finds its clusters again. Partitions are rebuilt one by one. An invalid index
    that a failed build left is built again. Arguments are those of :func:`create_concurrently`.

    :raises IndexMissingError: there is no such index.
    :raises IndexBuildError: as :func:`create_concurrently`; or the index has another access method, metric,
        expression or predicate than declared.
    """
    need_engine(engine)
    index = declared_index(target)
    patience = Patience(engine, name_of(index), lock_timeout, attempts)

    def work(connection: Connection) -> None:
        found = present(connection, index, by="create_concurrently")
        wanted = resolved(connection, index)
        settings = settings_for(connection, wanted, maintenance_work_mem, workers)
        build = _Build(connection, wanted, settings, patience, on_progress)
        if not found.valid:
            build.create()
        else:
            refuse_other_form(found, wanted)
            build.rebuild(found)
        require_as_declared(connection, wanted)

    _in_turn(index, patience, on_progress, work)
    return index


def drop(engine: Engine, target: IndexTarget, *, lock_timeout: float = 5.0, attempts: int = 5) -> bool:
    """Drop the index of a column while the table is used: ``DROP INDEX CONCURRENTLY IF EXISTS ...``.

    Postgres has no concurrent form for a partitioned table: there all partitions are locked for a moment.

    :param lock_timeout: seconds to wait for that moment, each time; readers and writers wait as long.
    :param attempts: how often to try; pauses between are of 1, 2, 4, ... seconds.
    :returns: whether there was one.
    :raises IndexBuildError: a session without pgembed builds it, or keeps a partition locked.
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
    def waiting() -> None:
        if on_progress is not None:
            on_progress(Progress("waiting for another session that builds an index of the table", 0, 0))

    return patience.in_turn(relation_of(index), work, waiting)


@dataclass(frozen=True)
class _Build:
    """The builds of one index beside readers and writers.

    :ivar index: as declared, with all parameters as numbers.
    :ivar settings: of the session, for the builds.
    """

    connection: Connection
    index: Index
    settings: Mapping[str, str]
    patience: Patience
    on_progress: OnProgress | None

    def create(self) -> None:
        """Build the index that is not there, or not finished."""
        self.clean(self.connection)
        if is_partitioned(self.connection, relation_of(self.index)):
            root = self._root()
            self._partitions(root).complete(root)
            return
        self.patience.wait_for(_table(self.index))
        self._run(_table(self.index), CreateIndexConcurrently(self.index))

    def rebuild(self, found: StandingIndex) -> None:
        """Build a valid index anew, with the declared parameters."""
        changed = differences(found, self.index).parameters
        if changed and found.partitioned:
            self._replace_root(found)
            return
        self.clean(self.connection)
        if found.partitioned:
            builds = self._partitions(found, anew=True)
            for partition, below in leaves(self.connection, found):
                builds.rebuild(found, partition, below)
            return
        self.patience.wait_for(_table(self.index))
        if changed:
            self._replace(found)
        else:
            self._run(_table(self.index), ReindexConcurrently(found.schema, found.name))

    def clean(self, connection: Connection) -> None:
        """Remove what failed builds have left."""
        _remove_leftovers(connection, self.index, self.patience)

    def _replace(self, old: StandingIndex) -> None:
        """Build another index beside the existing one, in its tablespace, with its name and comment, but for
        what was measured of the old one.

        Names are swapped in one transaction, which does not lock others out.
        """
        new, gone = beside(old.name, "new"), beside(old.name, "old")
        statement = CreateIndexConcurrently(self.index, new)
        self._run(_table(self.index), statement, {"default_tablespace": old.tablespace})

        def swap(brief: Connection) -> None:
            if old.comment is not None and Measurement.read(old.comment) is None:
                brief.execute(CommentOnIndex(old.schema, new, old.comment))
            brief.execute(RenameIndex(old.schema, old.name, gone))
            brief.execute(RenameIndex(old.schema, new, old.name))

        self.patience.briefly(_table(self.index), swap)
        self.connection.execute(DropIndexConcurrently(old.schema, gone))

    def _replace_root(self, old: StandingIndex) -> None:
        """Build another index beside that of a partitioned table, partition by partition."""
        new = self._root(beside(old.name, "new"))
        self._partitions(new).complete(new)

        def swap(brief: Connection) -> None:
            brief.execute(DropIndexNow(old.schema, old.name))
            brief.execute(RenameIndex(new.schema, new.name, old.name))

        self.patience.briefly(_table(self.index), swap)

    def _root(self, name: str | None = None) -> StandingIndex:
        self.patience.briefly(_table(self.index), lambda brief: root_of(brief, self.index, name))
        found = find(self.connection, self.index, name)
        assert found is not None
        return found

    def _partitions(self, root: StandingIndex, *, anew: bool = False) -> PartitionBuilds:
        """The partitions' builds, each when its table is free.

        :param anew: whether those that have the index are built too.
        """
        parts = count_leaves(self.connection, root.relation)
        parts -= 0 if anew else len(list(leaves(self.connection, root)))
        begun = 0

        def report(progress: Progress) -> None:
            assert self.on_progress is not None
            self.on_progress(replace(progress, part=begun, parts=parts))

        told = replace(self, on_progress=None if self.on_progress is None else report)

        def build(table: Table, statement: DDLElement, clean: Callable[[Connection], object]) -> None:
            nonlocal begun
            begun += 1
            self.patience.wait_for(table)
            told._run(table, statement, clean=clean)

        return PartitionBuilds(self.connection, concurrently=True, build=build, briefly=self.patience.briefly)

    def _run(
        self,
        table: Table,
        statement: DDLElement,
        further: Mapping[str, str] | None = None,
        clean: Callable[[Connection], object] | None = None,
    ) -> None:
        """Build on a table whose turn it is.

        :param further: settings beside those of all builds.
        :param clean: removes what a failure leaves.
        """
        clean = clean or self.clean
        settings = {**self.settings, **(further or {})}
        engine = self.patience.engine

        def build(chosen: Mapping[str, str]) -> None:
            with applied(self.connection, chosen):
                watched(engine, self.connection, lambda: self.connection.execute(statement), self.on_progress)

        try:
            try:
                build(settings)
            except DBAPIError as error:
                if not (is_parallel(settings) and lacks_shared_memory(error)):
                    raise
                clean(self.connection)
                build({**settings, **SERIAL})
        except BaseException:
            # What stays is for the next call: the error is that of the build.
            try:
                clean(self.connection)
            except SQLAlchemyError:
                self.connection.invalidate()
                with (
                    suppress(SQLAlchemyError, IndexBuildError),
                    autocommitting(engine) as fresh,
                    unlimited(fresh),
                    turn(fresh, written(table), self.patience.index, seconds=_CLEANING),
                ):
                    clean(fresh)
            except IndexBuildError:
                pass
            raise


def _remove_leftovers(connection: Connection, index: Index, patience: Patience) -> None:
    """Drop what failed builds of this index have left."""
    for found in left_over(connection, index):
        found.refuse_while_building()
        _drop(connection, found, patience, _table(index))


def _drop(connection: Connection, found: StandingIndex, patience: Patience, table: Table) -> None:
    if found.partitioned:
        patience.briefly(table, lambda brief: brief.execute(DropIndexNow(found.schema, found.name)))
    else:
        connection.execute(DropIndexConcurrently(found.schema, found.name))


def _table(index: Index) -> Table:
    assert index.table is not None
    return index.table
