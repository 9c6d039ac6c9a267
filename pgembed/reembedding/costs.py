"""What a change of encoder by a second column will take: space, time, and the name of the column."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select, text

from pgembed.columns import EmbeddingColumn, TextEncoder
from pgembed.columns.names import written
from pgembed.exc import DeclarationError, EncoderError
from pgembed.filling.backfill import texts_per_second
from pgembed.filling.registry import columns_of
from pgembed.filling.targets import Refused, find_targets
from pgembed.indexes.build_plan import server_of
from pgembed.indexes.differences import form_of
from pgembed.indexes.sizes import METHODS, Build, vector_size
from pgembed.indexes.standing import StandingIndex, standing_on

#: Rows in an index and those of partitions, when it was last built, vacuumed or analysed.
_HELD = text("""
SELECT sum(c.reltuples) FILTER (WHERE c.reltuples >= 0)
  FROM (SELECT CAST(CAST(:index AS bigint) AS oid) AS relid
        UNION SELECT relid FROM pg_catalog.pg_partition_tree(CAST(CAST(:index AS bigint) AS oid))) AS part
  JOIN pg_catalog.pg_class AS c ON c.oid = part.relid AND c.relkind = 'i'
""")


@dataclass(frozen=True)
class ReembeddingPlan:
    """What it takes to re-embed a column; sizes are bytes.

    :ivar new: the name that the new column is given.
    :ivar rows: rows that have a text.
    :ivar column_size: what the new vectors add to the table.
    :ivar index_size: what their index takes, built like that of the old column, and
        ``index_memory``, what its build holds in memory; ``None`` without one.
    :ivar rows_per_second: of the encoder, with a sample of the texts; ``None`` without its weights.
    """

    table: str
    old: str
    new: str
    rows: int
    dimensions: int
    column_size: int
    index_size: int | None
    index_memory: int | None
    rows_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """How long one encoder like this one takes for all rows."""
        return None if self.rows_per_second is None else self.rows / self.rows_per_second

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return {**asdict(self), "seconds": self.seconds}


def plan_reembedding(
    connection: Connection, table: str, column_name: str, encoder: TextEncoder, *, sample: int = 256
) -> ReembeddingPlan:
    """What it takes to fill a second column with another encoder.

    :param table: as SQL writes it.
    :param sample: how many texts to encode, to see how fast it goes.
    :raises NotInstalledError: that is not an embedding column.
    :raises DeclarationError: the column has that encoder.
    """
    (target,) = find_targets(connection, table=table, column_name=column_name)
    if isinstance(target, Refused):
        raise target.error
    embedding = target.column
    declaration = embedding.declaration
    if declaration.encoder.fingerprint == encoder.fingerprint:
        raise DeclarationError(f"{target}: the column has that encoder already")
    has_text = embedding.wanted().is_not(None)
    rows = connection.scalar(select(func.count()).select_from(embedding.table).where(has_text)) or 0
    texts = connection.execute(select(*embedding.sources).where(has_text).limit(sample)).all()
    index = standing_on(connection, written(embedding.table), column_name)
    memory, size = _index_takes(connection, index, embedding, encoder, rows)
    return ReembeddingPlan(
        table=table,
        old=column_name,
        new=next_name(column_name, {*columns_of(connection, target.relation)}),
        rows=rows,
        dimensions=encoder.dimensions,
        column_size=rows * vector_size(declaration.storage, encoder.dimensions),
        index_size=size,
        index_memory=memory,
        rows_per_second=_speed(encoder, [declaration.compose(tuple(row)) for row in texts]),
    )


def _index_takes(
    connection: Connection,
    index: StandingIndex | None,
    embedding: EmbeddingColumn,
    encoder: TextEncoder,
    rows: int,
) -> tuple[int | None, int | None]:
    """Memory and disk of an index like the existing one, over the vectors of the new encoder."""
    form = None if index is None else form_of(index, embedding.vector)
    if index is None or form is None or index.access_method not in METHODS:
        return None, None
    if form.where is not None:  # its predicate is not run: nothing from the catalogue is
        held = connection.scalar(_HELD, {"index": index.oid})
        rows = rows if held is None else min(rows, int(held))
    dimensions = min(form.dimensions or encoder.dimensions, encoder.dimensions)
    size = vector_size(index.storage, dimensions)
    build = Build(index.access_method, index.all_parameters, size, dimensions, server_of(connection))
    return build.memory(rows), build.disk(rows)


def next_name(old: str, taken: set[str]) -> str:
    """The name that migrations choose for the new column: ``embedding_2`` for ``embedding``."""
    match = re.fullmatch(r"(.*)_(\d+)", old)
    stem, number = (match[1], int(match[2])) if match else (old, 1)
    while True:
        number += 1
        ending = f"_{number}"
        name = stem.encode()[: 63 - len(f"{ending}_digest")].decode(errors="ignore") + ending
        if not {name, f"{name}_digest"} & taken:
            return name


def _speed(encoder: TextEncoder, texts: list[str]) -> float | None:
    try:
        return texts_per_second(encoder, texts) if texts else None
    except EncoderError:
        return None
