"""The folder ``sql/`` as statements."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from sqlalchemy import Boolean, Insert, Integer, Text, column, func, table
from sqlalchemy.dialects.postgresql import insert

from pgembed import constants

#: Rises with every release that changes the folder ``sql/``.
REVISION = 1

_version = table(
    "version",
    column("only_row", Boolean),
    column("revision", Integer),
    column("checksum", Text),
    column("installed_at"),
    schema="pgembed",
)


@dataclass(frozen=True)
class Installation:
    """What installs pgembed's SQL objects.

    :ivar statements: in order, each with its semicolon.
    :ivar checksum: of all of them.
    """

    statements: tuple[str, ...]
    checksum: str

    def record(self) -> Insert:
        """``INSERT INTO pgembed.version ... ON CONFLICT DO UPDATE``: what is installed from now on."""
        new = insert(_version).values(revision=REVISION, checksum=self.checksum)
        return new.on_conflict_do_update(
            index_elements=["only_row"],
            set_={
                "revision": new.excluded.revision,
                "checksum": new.excluded.checksum,
                "installed_at": func.clock_timestamp(),
            },
        )


def installation(extension_schema: str) -> Installation:
    """The scripts of ``sql/`` in the order of their names, with the values of :mod:`pgembed.constants` for
    their names: ``@ALIKE@``, ``@NEIGHBOURS.most@``, ``@OVERSAMPLE.bit@``.

    :param extension_schema: the quoted name of the schema where the extension ``vector`` is.
    """
    scripts = sorted(
        (file for file in _folder().iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    script = "\n".join(file.read_text(encoding="utf-8") for file in scripts)
    script = re.sub(r"@([A-Z_]+)(?:\.(\w+))?@", _constant, script)
    script = script.replace("@extschema:vector@", extension_schema)
    return Installation(tuple(_split(script)), hashlib.sha256(script.encode()).hexdigest())


def _constant(name: re.Match[str]) -> str:
    value = getattr(constants, name[1])
    if name[2] is not None:
        value = value[name[2]] if isinstance(value, dict) else getattr(value, name[2])
    return str(value)


def _split(script: str) -> Iterator[str]:
    """One statement at a time: some drivers prepare what they are given."""
    start = 0
    for token in re.finditer(r"\$(\w*)\$.*?\$\1\$|'[^']*'|--[^\n]*|;", script, re.DOTALL):
        if token[0] == ";":
            yield script[start : token.end()].strip()
            start = token.end()


def _folder() -> Traversable:
    """``sql/`` lies inside the installed package, and beside it in a checkout."""
    packaged = files("pgembed") / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"
