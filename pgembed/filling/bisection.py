"""Texts to vectors with an encoder that may fail: bisection finds the bad rows, and the good ones go first.

Where a batch fails, a harmless text tells an encoder that is broken from one that stumbled over a text. A
broken encoder is the column's error. Otherwise the batch is halved, and the halves wait as *suspects*: the
cycle takes a new batch for each suspect that it tries, so a bad row never holds up the others, however slow
the encoder is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pgembed.columns import Array, TextEncoder, answered
from pgembed.encoders.threads import encoder_errors
from pgembed.exc import EncoderAnswerError, EncoderError, TextError
from pgembed.filling.flow import EncodedRows, Pace, Row
from pgembed.parts.late import encode

#: A text that every working encoder can encode.
_HARMLESS = "text"


class BrokenEncoderError(EncoderError):
    """An encoder fails with every text, so no row is at fault; the cause is its own error."""

    def __init__(self, encoder: str, cause: BaseException) -> None:
        self.encoder = encoder
        super().__init__(f"encoder {encoder!r} fails with any text: {type(cause).__name__}: {cause}")


class Encoding:
    """The encoder's part of the cycle.

    :param column: what errors call the column.
    :param before_call: called before every use of the encoder, which can take long: renews the leases.
    :param on_encoded: called with the number of texts that were encoded.
    :param on_failure: called with each row that fails alone, and its error.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        pace: Pace,
        *,
        column: str,
        before_call: Callable[[], None],
        on_encoded: Callable[[int], None],
        on_failure: Callable[[Row, Exception], None],
    ) -> None:
        self._encoder = encoder
        self._column = column
        self._pace = pace
        self._before_call = before_call
        self._on_encoded = on_encoded
        self._on_failure = on_failure
        self.suspects: deque[list[Row]] = deque()

    def open(self) -> None:
        """Open the encoder's weights, if it has any, before rows are claimed.

        :raises EncoderError: they are not here, or damaged.
        """
        opened = getattr(self._encoder, "open", None)
        if callable(opened):
            with encoder_errors(self._encoder.name):
                opened()

    @property
    def suspected_rows(self) -> int:
        """Rows that wait for another try."""
        return sum(map(len, self.suspects))

    def window(self, rows: list[Row]) -> EncodedRows | None:
        """Encode rows that were just claimed; ``None`` if all of them failed or became suspects.

        :raises BrokenEncoderError: the encoder fails with anything.
        """
        self.suspects.extend([row] for row in rows if row.failed_before)
        return self._try([row for row in rows if not row.failed_before], probe=True)

    def suspect(self) -> EncodedRows | None:
        """Encode the next suspects."""
        return self._try(self.suspects.popleft(), probe=False)

    def _try(self, rows: list[Row], *, probe: bool) -> EncodedRows | None:
        if not rows:
            return None
        started = time.perf_counter()
        try:
            vectors, refused = self._call([row.text for row in rows])
        except Exception as error:
            if isinstance(error, TextError) and error.position is not None and error.position < len(rows):
                self._fail(rows[error.position], error)
                self._suspect(rows[: error.position] + rows[error.position + 1 :])
                return None
            if probe or len(rows) == 1:
                self._probe(error)
            if len(rows) == 1:
                self._fail(rows[0], error)
                return None
            middle = len(rows) // 2
            self._suspect(rows[:middle])
            self._suspect(rows[middle:])
            return None
        self._pace.took(len(rows), time.perf_counter() - started)
        return self._finite(rows, vectors, refused)

    def _call(self, texts: list[str]) -> tuple[Array, dict[int, EncoderAnswerError]]:
        """The vectors, and why some of them cannot be stored, by position."""
        self._before_call()
        with encoder_errors(self._encoder.name):
            found = encode(self._encoder, texts)
        refused: dict[int, EncoderAnswerError] = {}
        vectors = answered(self._encoder, found, len(texts), column=self._column, refuse=refused.__setitem__)
        return vectors, refused

    def _probe(self, error: Exception) -> None:
        """
        :raises BrokenEncoderError: a harmless text fails as well.
        """
        try:
            self._call([_HARMLESS])
        except Exception as cause:
            raise BrokenEncoderError(self._encoder.name, cause) from error

    def _suspect(self, rows: list[Row]) -> None:
        if rows:
            self.suspects.append(rows)

    def _fail(self, row: Row, error: Exception) -> None:
        self._on_failure(row, error)

    def _finite(
        self, rows: list[Row], vectors: Array, refused: dict[int, EncoderAnswerError]
    ) -> EncodedRows | None:
        """Leave out the rows whose vectors Postgres would refuse: one of them would fail the whole
        statement."""
        self._on_encoded(len(rows) - len(refused))
        if not refused:
            return EncodedRows(rows, vectors)
        for position, error in refused.items():
            self._fail(rows[position], error)
        good = [position for position in range(len(rows)) if position not in refused]
        return EncodedRows([rows[position] for position in good], vectors[good]) if good else None
