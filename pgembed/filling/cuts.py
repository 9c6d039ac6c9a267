"""How many texts are longer than their encoder's limit, so that their vectors cover the beginning alone.

Nothing records it: a random sample of rows is tokenised, without the encoder's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Double, func, literal, select

from pgembed.encoders import Encoder
from pgembed.exc import EncoderOptionError
from pgembed.filling.targets import Target

#: Bytes of text to look at, at most.
_OCTETS = 16 << 20


@dataclass(frozen=True)
class Cuts:
    """
    :ivar sampled: texts that were looked at; rows without a text have no vector, and do not count.
    :ivar cut: how many of them are cut.
    """

    sampled: int
    cut: int

    @property
    def share(self) -> float | None:
        """The part that is cut, 0 to 1; ``None`` where there are no texts."""
        return self.cut / self.sampled if self.sampled else None


def count_cuts(connection: Connection, target: Target, *, total: int, rows: int = 1000) -> Cuts:
    """Look at about ``rows`` rows, or at all of a smaller table::

        SELECT title FROM article TABLESAMPLE system (:percent) ORDER BY random() LIMIT :rows

    The sample consists of pages, so a large table is never read as a whole.

    :param total: about how many rows there are.
    :raises EncoderOptionError: the encoder cannot say what it cuts.
    :raises EncoderNotFoundError: it is not on this machine.
    """
    encoder = target.encoder
    if target.parts is not None:  # each fits
        return Cuts(0, 0)
    if not isinstance(encoder, Encoder):
        raise EncoderOptionError("encoder", encoder.name, needed="one that tells what it cuts")
    embedding = target.embedding
    # A few more, because pages differ in how many rows they hold.
    percent = min(100.0, 150.0 * rows / max(total, 1)) if total > rows else 100.0
    sample = embedding.table.tablesample(func.system(literal(percent, Double())))
    statement = (
        select(*(sample.c[source.key] for source in embedding.sources)).order_by(func.random()).limit(rows)
    )
    texts: list[str] = []
    octets = 0
    with connection.execute(statement.execution_options(stream_results=True, max_row_buffer=100)) as found:
        for row in found:
            if any(row):
                texts.append(embedding.declaration.compose(tuple(row)))
                octets += len(texts[-1].encode())
            if octets > _OCTETS:
                break
    return Cuts(len(texts), encoder.count_cut(texts))
