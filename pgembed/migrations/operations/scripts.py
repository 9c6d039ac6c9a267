"""The installation as statements, for scripts that are run by hand."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql

from pgembed.database.scripts import installation


def installation_script(extension_schema: str) -> list[str]:
    """The statements that :func:`pgembed.database.install` runs, without their final semicolons.

    :param extension_schema: the quoted name of the schema where the extension ``vector`` is.
    """
    scripts = installation(extension_schema)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    record = scripts.record().compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return [*(statement.removesuffix(";") for statement in scripts.statements), str(record)]
