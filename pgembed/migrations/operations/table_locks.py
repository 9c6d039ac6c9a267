"""``op.lock_table`` and ``op.set_not_null``: changes of a table in use that hardly block others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations, ops
from sqlalchemy import CheckConstraint, Column, MetaData, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import AddConstraint, conv
from sqlalchemy.types import NullType, TypeEngine

from pgembed.columns.extension import LOCK_NOT_AVAILABLE
from pgembed.exc import sqlstate
from pgembed.migrations.definitions import MigrationError
from pgembed.migrations.operations.base import Identifier, NothingOp, PgembedOp, Statement
from pgembed.migrations.operations.concurrency import autocommit, check_own_transaction, temporary_name
from pgembed.migrations.rendering import call, comment

_CHECK_VIOLATION = "23514"


# A block with an exception clause is a savepoint: it releases its locks before it sleeps.
_LOCK = """DO $pgembed$
DECLARE
    given text := current_setting('lock_timeout');
BEGIN
    FOR attempt IN 1 .. :attempts LOOP
        BEGIN
            PERFORM set_config('lock_timeout', :milliseconds || 'ms', true);
            LOCK TABLE :table IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', given, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt = :attempts THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(:milliseconds / 1000.0);
        END;
    END LOOP;
END
$pgembed$"""


@dataclass(eq=False)
class LockTableOp(PgembedOp):
    """Take the lock that the next statements need, without making others wait for long.

    :ivar reason: why, for reviewers of the migration.
    """

    names = ("lock_table",)

    table_name: str
    timeout: float = 1.0
    attempts: int = 30
    schema: str | None = None
    reason: tuple[str, ...] = ()

    @classmethod
    def lock_table(
        cls,
        operations: Operations,
        table_name: str,
        *,
        timeout: float = 1.0,
        attempts: int = 30,
        schema: str | None = None,
    ) -> None:
        """Lock a table for the statements that follow in the migration, in short attempts.

        ::

            SET LOCAL lock_timeout = '1000ms'; LOCK TABLE article IN ACCESS EXCLUSIVE MODE

        ``ADD COLUMN`` and ``DROP COLUMN`` take milliseconds once they have their lock. But while they wait
        for it, behind some long transaction, all other readers and writers of the table wait behind them. So
        each attempt is short, and is repeated after a pause. The lock is held until the transaction ends.
        Offline it is the same ``DO`` block.

        :param timeout: seconds for one attempt, and so the longest time that others wait behind it.
        :param attempts: the number of attempts, with a pause of ``timeout`` seconds between them.
        :raises MigrationError: all attempts have failed.
        """
        operations.invoke(cls(table_name, timeout=timeout, attempts=attempts, schema=schema))

    def run(self, operations: Operations) -> None:
        table = Table(self.table_name, MetaData(), schema=self.schema)
        milliseconds = round(self.timeout * 1000)
        try:
            operations.execute(
                Statement(_LOCK, table=table, milliseconds=milliseconds, attempts=int(self.attempts))
            )
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            raise MigrationError(
                f"other sessions kept {table.fullname} locked during {self.attempts} attempts of "
                f"{self.timeout:g} s: look for long transactions in pg_stat_activity, then run the "
                "migration again"
            ) from error

    def render(self, context: AutogenContext) -> list[str]:
        reason = [line for paragraph in self.reason for line in comment(paragraph)]
        return [*reason, call(context, "lock_table", [self.table_name], schema=self.schema)]

    def reverse(self) -> MigrateOperation:
        return NothingOp(LockTableOp(self.table_name, schema=self.schema))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("lock_table", self.schema, self.table_name)


@dataclass(eq=False)
class SetNotNullOp(PgembedOp):
    """``SET NOT NULL`` without blocking reads and writes while the table is scanned."""

    names = ("set_not_null",)

    table_name: str
    column_name: str
    schema: str | None = None
    existing_type: TypeEngine[Any] | None = None

    @classmethod
    def set_not_null(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Forbid NULL in a column of a table that is in use.

        ::

            ALTER TABLE article ADD CONSTRAINT embedding_not_null CHECK (embedding IS NOT NULL) NOT VALID;
            COMMIT;
            ALTER TABLE article VALIDATE CONSTRAINT embedding_not_null;    -- a scan that blocks no writes
            BEGIN;
            ALTER TABLE article ALTER COLUMN embedding SET NOT NULL;       -- without a scan
            ALTER TABLE article DROP CONSTRAINT embedding_not_null

        The strong locks are taken as by ``op.lock_table``. The migration's transaction is committed; a
        migration that failed can be run again.

        :raises MigrationError: there are rows with NULL, or the transaction is not Alembic's to commit.
        """
        operations.invoke(cls(table_name, column_name, schema=schema))

    def run(self, operations: Operations) -> None:
        column: Column[Any] = Column(self.column_name, NullType())
        table = Table(self.table_name, MetaData(), column, schema=self.schema)
        name = conv(temporary_name(self.column_name, "not_null"))
        check = CheckConstraint(column.is_not(None), name=name, postgresql_not_valid=True)
        table.append_constraint(check)
        lock = LockTableOp(self.table_name, schema=self.schema)
        names: dict[str, Any] = {"table": table, "name": Identifier(name)}
        drop = Statement("ALTER TABLE :table DROP CONSTRAINT IF EXISTS :name", **names)
        check_own_transaction(operations, f"{table.fullname}.{column.name} is made NOT NULL in steps")

        lock.run(operations)
        operations.execute(drop)
        operations.execute(AddConstraint(check))
        with autocommit(operations):
            try:
                operations.execute(Statement("ALTER TABLE :table VALIDATE CONSTRAINT :name", **names))
            except DBAPIError as error:
                if sqlstate(error) != _CHECK_VIOLATION:
                    raise
                operations.execute(drop)
                raise MigrationError(
                    f"{table.fullname}.{column.name}: there are rows with NULL, pending or without a text: "
                    "fill them, or declare the column nullable"
                ) from error
        lock.run(operations)
        operations.alter_column(self.table_name, self.column_name, nullable=False, schema=self.schema)
        operations.execute(drop)

    def render(self, context: AutogenContext) -> list[str]:
        return [call(context, "set_not_null", [self.table_name, self.column_name], schema=self.schema)]

    def reverse(self) -> MigrateOperation:
        return ops.AlterColumnOp(
            self.table_name,
            self.column_name,
            schema=self.schema,
            existing_type=self.existing_type,
            existing_nullable=False,
            modify_nullable=True,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("set_not_null", self.schema, self.table_name, self.column_name)


def locked(
    modify_ops: ops.ModifyTableOps, operations: list[MigrateOperation], reason: tuple[str, ...] = ()
) -> list[MigrateOperation]:
    """Operations with the lock of their table, in ``upgrade()`` as in ``downgrade()``."""
    lock = LockTableOp(modify_ops.table_name, schema=modify_ops.schema, reason=reason)
    return [lock, *operations, lock.reverse()] if operations else []
