"""Names as SQL writes them, no longer than the 63 bytes at which Postgres cuts them with a mere notice."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import conv
from sqlalchemy.sql.selectable import FromClause

#: Bytes of a name at most (``NAMEDATALEN`` less one).
LONGEST_NAME = 63
#: Quotes names that are sent as values: the driver's own dialect would double per cent signs.
NAMES: Any = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]


def octets(name: str) -> int:
    """Length of a name as Postgres counts it, in a UTF-8 database."""
    return len(name.encode())


def shortened(name: str) -> conv:
    """A name that pgembed chooses, shortened as SQLAlchemy does, but counted in bytes: a checksum at the end
    keeps similar names apart."""
    if octets(name) <= LONGEST_NAME:
        return conv(name)
    checksum = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[-4:]
    start = name.encode()[: LONGEST_NAME - 8].decode(errors="ignore")
    return conv(f"{start}_{checksum}")


def written(table: Table | FromClause) -> str:
    """A table as SQL writes it, as a value."""
    return str(NAMES.format_table(table))
