"""Names that Postgres keeps whole: it cuts what is longer than 63 bytes, and says so in a notice only."""

from __future__ import annotations

import hashlib

from sqlalchemy.schema import conv

#: Bytes of a name at most (``NAMEDATALEN`` less one).
LONGEST_NAME = 63


def octets(name: str) -> int:
    """Length of a name as Postgres counts it, in a UTF-8 database."""
    return len(name.encode())


def shortened(name: str) -> conv:
    """A name that pgembed chooses, shortened as SQLAlchemy would, but counted in bytes: a checksum at the
    end keeps apart what begins alike."""
    if octets(name) <= LONGEST_NAME:
        return conv(name)
    checksum = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[-4:]
    start = name.encode()[: LONGEST_NAME - 8].decode(errors="ignore")
    return conv(f"{start}_{checksum}")
