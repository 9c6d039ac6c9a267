"""Bugs of pgvector that leak, crash, lose rows or make VACUUM fail, with the versions that have them."""

from __future__ import annotations

from dataclasses import dataclass

_ISSUES = "https://github.com/pgvector/pgvector/issues/"
_CHANGES = "https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md"


@dataclass(frozen=True)
class Bug:
    """One bug.

    :ivar method: the access method whose indexes it concerns.
    :ivar since: the first version that has it, and ``fixed`` the first that does not.
    :ivar source: where it is described.
    :ivar only_32_bit: whether 64-bit servers are safe from it.
    """

    method: str
    since: tuple[int, int, int]
    fixed: tuple[int, int, int]
    what: str
    source: str
    only_32_bit: bool = False


BUGS = (
    Bug(
        "hnsw",
        (0, 6, 0),
        (0, 8, 2),
        "parallel builds can overflow a buffer, leak data of other tables and crash (CVE-2026-3172)",
        _ISSUES + "959",
    ),
    Bug("hnsw", (0, 5, 0), (0, 8, 3), "VACUUM can corrupt the index", _CHANGES),
    Bug(
        "hnsw",
        (0, 5, 0),
        (0, 8, 4),
        "VACUUM can fail with 'hnsw graph not repaired', and inserts while it runs",
        _ISSUES + "993",
    ),
    Bug(
        "ivfflat",
        (0, 1, 0),
        (0, 8, 6),
        "builds can write out of bounds and run foreign code (CVE-2026-18022)",
        _ISSUES + "1006",
        only_32_bit=True,
    ),
    Bug("ivfflat", (0, 1, 0), (0, 8, 7), "a build can overflow a buffer", _ISSUES + "1036"),
)


def bugs_of(method: str, version: str, *, is_32_bit: bool = False) -> list[Bug]:
    """The bugs of an access method in a version of pgvector, as ``extversion`` says it."""
    installed = tuple(int(part) for part in version.split(".") if part.isdigit())
    return [
        bug
        for bug in BUGS
        if bug.method == method and bug.since <= installed < bug.fixed and (is_32_bit or not bug.only_32_bit)
    ]
