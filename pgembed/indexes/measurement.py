"""The recall of an index when it was last measured, kept as its comment, where anybody can read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgembed.exc import sqlstate
from pgembed.indexes.ddl import CommentOnIndex
from pgembed.indexes.server_settings import applied, nested
from pgembed.indexes.standing import StandingIndex

_COMMENT = re.compile(
    r"pgembed: recall@(?P<k>\d+) (?P<recall>[\d.]+) \((?P<low>[\d.]+) to (?P<high>[\d.]+)\), "
    r"(?P<setting>ef_search|probes) (?P<value>\d+), (?P<queries>\d+) queries, "
    r"(?P<measured_at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC"
)
#: Not the owner of the index; a transaction that only reads, or a standby; the index is locked.
_MAY_NOT = ("42501", "25006", "55P03")
#: Searches and writes do not wait for it, but it waits for a build.
_PATIENCE = {"lock_timeout": "1s"}


@dataclass(frozen=True)
class Measurement:
    """What :func:`pgembed.measuring.recall` has found, and when.

    :ivar recall: the share of the ``k`` nearest rows that the index has found, and ``low`` and ``high`` the
        ends of its 95 % interval.
    :ivar setting: ``"ef_search"`` or ``"probes"``, which had the value ``value``.
    """

    recall: float
    low: float
    high: float
    k: int
    setting: str
    value: int
    queries: int
    measured_at: datetime

    def __str__(self) -> str:
        return (
            f"recall@{self.k} {self.recall:.4f} ({self.low:.4f} to {self.high:.4f}), {self.setting} "
            f"{self.value}, {self.queries} queries, {self.measured_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        )

    @classmethod
    def read(cls, comment: str | None) -> Measurement | None:
        """The one that a comment holds; ``None`` where it is somebody else's."""
        found = _COMMENT.fullmatch(comment or "")
        if found is None:
            return None
        return cls(
            float(found["recall"]),
            float(found["low"]),
            float(found["high"]),
            int(found["k"]),
            found["setting"],
            int(found["value"]),
            int(found["queries"]),
            datetime.fromisoformat(found["measured_at"]).replace(tzinfo=UTC),
        )

    def keep(self, connection: Connection, index: StandingIndex) -> None:
        """Make it the comment of the index, as far as the role may, and no comment of another kind is there::

        COMMENT ON INDEX public.ix_article_embedding_hnsw IS 'pgembed: recall@10 0.9830 ...'
        """
        if index.comment is not None and Measurement.read(index.comment) is None:
            return
        try:
            with nested(connection), applied(connection, _PATIENCE):
                connection.execute(CommentOnIndex(index.schema, index.name, f"pgembed: {self}"))
        except DBAPIError as error:
            if sqlstate(error) not in _MAY_NOT:
                raise
