"""``op.install_pgembed`` and ``op.uninstall_pgembed``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import DropSchema

from pgembed.columns.extension import require_visible
from pgembed.database.install import install
from pgembed.database.scripts import REVISION, installation
from pgembed.migrations.definitions import MigrationError
from pgembed.migrations.operations.base import NothingOp, PgembedOp
from pgembed.migrations.rendering import call


@dataclass(eq=False)
class InstallPgembedOp(PgembedOp):
    """The extension ``vector`` and pgembed's SQL objects.

    :ivar existing: the revision that autogenerate found installed.
    :ivar had_extension: whether autogenerate found the extension.
    """

    names = ("install_pgembed",)

    revision: int = REVISION
    extension: bool = True
    extension_schema: str = "public"
    existing: int | None = None
    had_extension: bool = False

    @classmethod
    def install_pgembed(
        cls,
        operations: Operations,
        revision: int = REVISION,
        *,
        extension: bool = True,
        extension_schema: str = "public",
    ) -> None:
        """Install pgembed's SQL objects, or bring them up to date, as :func:`pgembed.database.install` does.

        ::

            CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
            CREATE SCHEMA IF NOT EXISTS pgembed;
            ...

        It installs the objects of the package that runs the migration, and does nothing where it has them.

        :param revision: the revision that the migration was written for. An older package refuses it.
        :param extension: create the extension ``vector`` if it is missing; with ``False``, a missing one is
            an error.
        :param extension_schema: where the extension is, or goes, for the offline form, which cannot look it
            up.
        :raises MigrationError: the package is older than the migration.
        """
        operations.invoke(cls(revision, extension=extension, extension_schema=extension_schema))

    def run(self, operations: Operations) -> None:
        if self.revision > REVISION:
            raise MigrationError(
                f"this migration needs revision {self.revision} of pgembed's SQL objects, the installed "
                f"package has revision {REVISION}: upgrade the package"
            )
        context = operations.get_context()
        if not context.as_sql:
            install(operations.get_bind(), extension=self.extension)
            require_visible(operations.get_bind())
            return
        schema = context.dialect.identifier_preparer.quote_schema(self.extension_schema)
        if self.extension:
            operations.execute(f"CREATE EXTENSION IF NOT EXISTS vector SCHEMA {schema}")
        for statement in installation_script(schema):
            context.impl.static_output(statement + context.impl.command_terminator)

    def render(self, context: AutogenContext) -> list[str]:
        return [call(context, "install_pgembed", [], revision=self.revision)]

    def reverse(self) -> MigrateOperation:
        if self.existing is not None:
            # Newer objects serve older models.
            return NothingOp(
                self, comment="pgembed's SQL objects stay as they are; they serve older models as well"
            )
        return UninstallPgembedOp(not self.had_extension, self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("install_pgembed", self.existing, self.revision)


@dataclass(eq=False)
class UninstallPgembedOp(PgembedOp):
    """The opposite of :class:`InstallPgembedOp`."""

    names = ("uninstall_pgembed",)

    extension: bool = False
    opposite: InstallPgembedOp = field(default_factory=InstallPgembedOp)

    @classmethod
    def uninstall_pgembed(cls, operations: Operations, *, extension: bool = False) -> None:
        """Drop pgembed's SQL objects; tables, their vectors and their indexes stay.

        ::

            DROP SCHEMA IF EXISTS pgembed CASCADE;
            DROP EXTENSION IF EXISTS vector;        -- with extension=True

        :param extension: drop the extension as well, which fails while a column of its types is left.
        """
        operations.invoke(cls(extension=extension))

    def run(self, operations: Operations) -> None:
        operations.execute(DropSchema("pgembed", cascade=True, if_exists=True))
        if self.extension:
            operations.execute("DROP EXTENSION IF EXISTS vector")

    def render(self, context: AutogenContext) -> list[str]:
        return [call(context, "uninstall_pgembed", [], extension=self.extension or None)]

    def reverse(self) -> MigrateOperation:
        return self.opposite

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("uninstall_pgembed", self.extension)


def installation_script(extension_schema: str) -> list[str]:
    """The statements that :func:`pgembed.database.install` runs, without their final semicolons.

    :param extension_schema: the quoted name of the schema where the extension ``vector`` is.
    """
    scripts = installation(extension_schema)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    record = scripts.record().compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return [*(statement.removesuffix(";") for statement in scripts.statements), str(record)]
