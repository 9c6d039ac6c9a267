"""The installation as statements, for scripts that are run by hand."""

from __future__ import annotations

import hashlib

from sqlalchemy import Integer, Text, column, func, table
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert

from pgembed.database.install import REVISION, _script, _statements


def installation_script(extension_schema: str) -> list[str]:
    """The statements that :func:`pgembed.database.install` runs, without their final semicolons.

    :param extension_schema: the quoted name of the schema where the extension ``vector`` is.
    """
    script = _script().replace("@extschema:vector@", extension_schema)
    statements = [statement.strip().removesuffix(";") for statement in _statements(script)]
    version = table(
        "version",
        column("revision", Integer),
        column("checksum", Text),
        column("installed_at"),
        schema="pgembed",
    )
    values = {"revision": REVISION, "checksum": hashlib.sha256(script.encode()).hexdigest()}
    record = (
        insert(version)
        .values(values)
        .on_conflict_do_update(
            index_elements=["only_row"], set_={**values, "installed_at": func.clock_timestamp()}
        )
    )
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return [*statements, str(record.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))]
