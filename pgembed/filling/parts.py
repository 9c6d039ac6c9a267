"""Parts of texts on their way: split, encoded where their vector is not there, written as one.

A row's parts and its digest are written in one transaction, and only if the row still has the text that was
split. New parts are inserted first, while the row is not locked: an index on vectors makes that slow. Then
the row is locked, and what it has by now is compared with what it should have: parts of the same digest stay,
with key and vector, whatever their place.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import Connection

from pgembed.columns import Array
from pgembed.exc import EncoderError, TextError
from pgembed.filling.bisection import Encoding
from pgembed.filling.flow import EncodedRows, Pace, Row
from pgembed.filling.parts_statements import DEFERRED, PartsStatements, placed
from pgembed.filling.sql import lines
from pgembed.filling.transactions import Transactions
from pgembed.filling.writes import Writing, named
from pgembed.parts import Cut, PartsDeclaration, Stored, matched

#: Bytes of text to claim at once, if it is more than one text: they are written when all are encoded.
OCTETS = 1 << 20
#: Parts in one INSERT, and in one UPDATE.
_INSERTED, _MOVED = 500, 5000


class ChangedError(Exception):
    """Rows lost parts since they were read: they are left, and are pending as they were."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys


def split(
    rows: Iterable[Row], declaration: PartsDeclaration, on_failure: Callable[[Row, Exception], None]
) -> list[Row]:
    """The rows with their parts; without those whose text cannot be split.

    :raises EncoderError: the tokenizer is not here.
    """
    found: list[Row] = []
    for row in rows:
        try:
            cuts = declaration.cut(row.texts) if row.digest is not None else []
        except EncoderError as error:
            if not isinstance(error, TextError):
                raise
            on_failure(row, error)
        except Exception as error:  # of a splitter or a tokenizer of the user's own
            on_failure(row, error)
        else:
            found.append(row._replace(cuts=tuple(cuts), texts=()))
    return found


def _stored(connection: Connection, statement: Any, keys: Iterable[str]) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = defaultdict(list)
    for key, *part in connection.execute(statement, {"keys": lines(keys)}):
        found[key].append(Stored(*part))
    return found


@dataclass
class _Open:
    """A row whose parts are being encoded."""

    row: Row
    missing: set[UUID]
    vectors: dict[UUID, Array] = field(default_factory=dict)


class PartsEncoding:
    """The encoder's part of the cycle for parts, as :class:`Encoding` is for columns.

    :param encoding: encodes texts; it is given the parts of a claim together, each text once.
    :param pace: how many parts make one use of the encoder.
    :param claims: how many rows make a claim; it learns from each.
    :param stopped: whether to end before the next use of the encoder.
    :param on_failure: called with each row that has a part that fails alone, and its error.
    """

    def __init__(
        self,
        encoding: Callable[[Callable[[Row, Exception], None]], Encoding],
        transactions: Transactions,
        statements: PartsStatements,
        *,
        pace: Pace,
        claims: Pace,
        stopped: Callable[[], bool],
        on_failure: Callable[[Row, Exception], None],
    ) -> None:
        self._encoding = encoding(self._failed)
        self._transactions = transactions
        self._statement = statements.stored()
        self._pace = pace
        self._claims = claims
        self._stopped = stopped
        self._on_failure = on_failure
        self._open: dict[str, _Open] = {}
        self._wanting: dict[UUID, list[str]] = {}

    def open(self) -> None:
        """As :meth:`Encoding.open`."""
        self._encoding.open()

    @property
    def suspects(self) -> deque[list[Row]]:
        """Parts that wait for another try."""
        return self._encoding.suspects

    @property
    def suspected_rows(self) -> int:
        """How many they are."""
        return self._encoding.suspected_rows

    def window(self, rows: list[Row]) -> EncodedRows | None:
        """Encode the parts of rows that were just claimed, unless they are stored; the rows that are done.

        :raises BrokenEncoderError: the encoder fails with anything.
        """
        started = time.perf_counter()
        keys = [row.key for row in rows]
        stored = self._transactions.run(lambda connection: _stored(connection, self._statement, keys))
        parts: list[Row] = []
        for row in rows:
            missing = {cut.digest: cut for cut in matched(row.cuts, stored.get(row.key, ()))[1]}
            self._open[row.key] = _Open(row, set(missing))
            for digest, cut in missing.items():
                if digest not in self._wanting:
                    parts.append(Row(str(digest), str(digest), cut.encoded))
                self._wanting.setdefault(digest, []).append(row.key)
        done = self._done()  # their parts are all stored
        start = 0
        while start < len(parts) and not self._stopped():
            end = start + self._pace.rows
            self._take(self._encoding.window(parts[start:end]))
            start = end
        if rows:
            self._claims.took(len(rows), time.perf_counter() - started)
        return _together([*done, *self._done()])

    def suspect(self) -> EncodedRows | None:
        """Encode the next suspects; the rows that are done by that."""
        self._take(self._encoding.suspect())
        return _together(self._done())

    def _take(self, encoded: EncodedRows | None) -> None:
        if encoded is None:
            return
        for part, vector in zip(encoded.rows, encoded.vectors, strict=True):
            digest = UUID(part.key)
            for key in self._wanting.pop(digest):
                if key in self._open:
                    self._open[key].vectors[digest] = vector
                    self._open[key].missing.discard(digest)

    def _failed(self, part: Row, error: Exception) -> None:
        """A part that fails fails its rows, of which nothing is written."""
        for key in self._wanting.pop(UUID(part.key)):
            if (found := self._open.pop(key, None)) is not None:
                self._on_failure(found.row, error)

    def _done(self) -> list[_Open]:
        done = [each for each in self._open.values() if not each.missing]
        for each in done:
            del self._open[each.row.key]
        return done


def _together(done: list[_Open]) -> EncodedRows | None:
    if not done:
        return None
    vectors = np.empty(len(done), dtype=object)
    vectors[:] = [each.vectors for each in done]
    return EncodedRows([each.row for each in done], vectors)


class PartsWriting(Writing):
    """The database's part of the cycle for parts: those of a row and its digest, in one transaction."""

    def __init__(self, transactions: Transactions, statements: PartsStatements, **options: Any) -> None:
        super().__init__(transactions, statements, **options)
        self._stored = statements.stored()
        self._insert = statements.insert()
        self._move = statements.move()
        self._delete = statements.delete()
        self._keeps_text = statements.keeps_text

    def _write_some(self, some: EncodedRows, attempt: int) -> None:
        try:
            super()._write_some(some, attempt)
        except ChangedError as changed:
            self._on_settled([row for row in some.rows if row.key in changed.keys], 0)
            rest = [place for place, row in enumerate(some.rows) if row.key not in changed.keys]
            if rest:
                self._write_some(
                    EncodedRows([some.rows[place] for place in rest], some.vectors[rest]), attempt
                )

    def _execute(self, connection: Connection, some: EncodedRows) -> dict[str, str | None]:
        connection.execute(DEFERRED)
        cuts = {row.key: row.cuts for row in some.rows}
        stored = _stored(connection, self._stored, cuts)
        new = [
            (row.key, cut, made.get(cut.digest))
            for row, made in zip(some.rows, some.vectors, strict=True)
            for cut in matched(row.cuts, stored.get(row.key, ()))[1]
        ]
        if lost := {key for key, _, vector in new if vector is None}:
            raise ChangedError(lost)
        gone: list[int] = []
        for start in range(0, len(new), _INSERTED):
            inserted = self._put(connection, new[start : start + _INSERTED])
            gone += inserted  # but for those of rows that turn out to be locked here
        written = super()._execute(connection, some)
        stored = _stored(connection, self._stored, written)
        moved: list[tuple[Cut, Stored]] = []
        stay: set[int] = set()
        for key in written:
            kept, missing, old = matched(cuts[key], stored.get(key, ()))
            if missing:
                lost.add(key)
            gone += old
            stay.update(part.id for _, part in kept)
            moved += [(cut, part) for cut, part in kept if self._differs(cut, part)]
        if lost:
            raise ChangedError(lost)
        for start in range(0, len(moved), _MOVED):
            self._put_elsewhere(connection, moved[start : start + _MOVED])
        if left := [number for number in gone if number not in stay]:
            connection.execute(self._delete, {"ids": lines(map(str, left))})
        return written

    def _bound(self, some: EncodedRows) -> dict[str, Any]:
        return named(some.rows)

    def _put(self, connection: Connection, new: Sequence[tuple[str, Cut, Array]]) -> list[int]:
        keys, cuts, vectors = zip(*new, strict=True)
        given = {
            "keys": lines(keys),
            **placed(cuts),
            "digests": lines(str(cut.digest) for cut in cuts),
            "texts": [cut.text if self._keeps_text else None for cut in cuts],
            "vectors": np.stack(vectors),
        }
        return list(connection.scalars(self._insert, given))

    def _differs(self, cut: Cut, part: Stored) -> bool:
        place = (part.number, part.start, part.end, part.has_text)
        return place != (cut.number, cut.start, cut.end, self._keeps_text)

    def _put_elsewhere(self, connection: Connection, moved: Sequence[tuple[Cut, Stored]]) -> None:
        cuts = [cut for cut, _ in moved]
        texts = [cut.text if self._keeps_text and not part.has_text else None for cut, part in moved]
        ids = lines(str(part.id) for _, part in moved)
        connection.execute(self._move, {"ids": ids, **placed(cuts), "texts": texts})
