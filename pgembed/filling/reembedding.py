"""A change of encoder by a second column: what it takes, where it stands, and whether searches may switch.

The migrations are those of :mod:`pgembed.migrations`; the new column's registration names the one that it
replaces, and all the rest is read from the database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, func, select, text

from pgembed.columns import EmbeddingColumn, TextEncoder
from pgembed.exc import DeclarationError, EncoderError, NotInstalledError
from pgembed.filling.targets import Refused, Target, find_targets
from pgembed.indexes import (
    HNSW,
    IndexMissingError,
    IndexNotUsedError,
    IVFFlat,
    Recall,
    recall,
    vector_index_of,
)
from pgembed.indexes.catalogue import StandingIndex, standing
from pgembed.indexes.sizes import hnsw_disk, hnsw_memory, ivfflat_disk, ivfflat_memory, vector_size
from pgembed.queries import semantic_search

#: The share of fresh rows from which a column counts as filled: of a table in use, some are always pending.
FILLED = 0.99
#: Stored vectors whose cosine with those of the encoder at hand is lower are of another space.
_SAME = 0.99

#: Tables with fewer rows are scanned as fast as an index is searched.
_SCANNED = 10_000

_CHANGES = text("""
WITH columns AS (
    SELECT e.*, pgembed.registration(pg_catalog.obj_description(e.pending_index, 'pg_class')) ->> 'replaces'
                AS replaces
      FROM pgembed.embedding_columns AS e
)
SELECT CAST(n.relation AS text) AS relation, n.column_name, n.encoder, n.fingerprint, n.replaces,
       o.encoder AS old_encoder, o.fingerprint AS old_fingerprint,
       EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = n.relation AND NOT a.attisdropped AND a.attname = n.replaces) AS old_stands
  FROM columns AS n
  LEFT JOIN columns AS o ON o.relation = n.relation AND o.column_name = n.replaces
 WHERE n.replaces IS NOT NULL
 ORDER BY 1, 2
""")


@dataclass(frozen=True)
class ReembeddingPlan:
    """What it takes to re-embed a column; sizes are bytes.

    :ivar new: the name that the new column is given.
    :ivar rows: rows that have a text.
    :ivar column_size: what the new vectors add to the table.
    :ivar index_size: what their index takes, built like the one that stands on the old column, and
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


@dataclass(frozen=True)
class Change:
    """Where a change of encoder stands.

    :ivar old: the column in use, and ``new``, the one that takes its place.
    :ivar rows: all rows; of them ``pending`` are still without their new vector.
    :ivar index: the new column's: ``"none"``, ``"building"``, ``"invalid"`` or its access method.
    :ivar old_index: the old column's, ``"none"`` if it has none.
    :ivar recall: what its index finds, if that was measured.
    :ivar obstacles: what is to be done before searches may use the new column; none when it is ready.
    :ivar next_step: what to do now.
    """

    table: str
    old: str
    new: str
    old_encoder: str | None
    old_fingerprint: str | None
    new_encoder: str
    new_fingerprint: str
    rows: int
    pending: int
    index: str
    old_index: str
    recall: Recall | None
    obstacles: tuple[str, ...]
    next_step: str

    @property
    def filled(self) -> float:
        """The share of the rows that have their new vector."""
        return 1.0 if self.rows == 0 else 1 - self.pending / self.rows

    def as_dict(self) -> dict[str, Any]:
        """The state as plain values, for JSON."""
        return {**asdict(self), "filled": self.filled, "ready": not self.obstacles}


def plan_reembedding(
    connection: Connection, table: str, column_name: str, encoder: TextEncoder, *, sample: int = 256
) -> ReembeddingPlan:
    """What it takes to give a column's texts to another encoder, as a second column.

    :param table: as SQL writes it.
    :param sample: how many texts to encode, to see how fast it goes.
    :raises NotInstalledError: that is no embedding column.
    :raises DeclarationError: the column has that encoder.
    """
    (target,) = find_targets(connection, table=table, column_name=column_name)
    if isinstance(target, Refused):
        raise target.error
    embedding = target.embedding
    declaration = embedding.declaration
    if declaration.encoder.fingerprint == encoder.fingerprint:
        raise DeclarationError(f"{target}: the column has that encoder already")
    rows = connection.scalar(
        select(func.count()).select_from(embedding.table).where(embedding.wanted().is_not(None))
    )
    texts = connection.execute(
        select(*embedding.sources).where(embedding.wanted().is_not(None)).limit(sample)
    ).all()
    vector = vector_size(declaration.storage, encoder.dimensions)
    index = _index_on(connection, target.embedding)
    memory = size = None
    if index is not None and index.access_method == "hnsw":
        m = index.parameters.get("m", 16)
        size, memory = hnsw_disk(rows or 0, vector, m), hnsw_memory(rows or 0, vector, m)
    elif index is not None and index.access_method == "ivfflat":
        lists = index.parameters.get("lists", 100)
        size = ivfflat_disk(rows or 0, vector, lists)
        memory = ivfflat_memory(rows or 0, vector, encoder.dimensions, lists)
    return ReembeddingPlan(
        table=table,
        old=column_name,
        new=_free_name(connection, target),
        rows=rows or 0,
        dimensions=encoder.dimensions,
        column_size=(rows or 0) * vector,
        index_size=size,
        index_memory=memory,
        rows_per_second=_speed(encoder, [declaration.compose(tuple(row)) for row in texts]),
    )


def changes(
    connection: Connection,
    embeddings: Sequence[EmbeddingColumn] | None = None,
    *,
    min_recall: float | None = None,
    queries: int = 200,
) -> list[Change]:
    """Where every change of encoder of the database stands.

    :param embeddings: the columns of models, whose encoders are then used; else those of the registry.
    :param min_recall: measure what the new index finds, and let searches not switch below this recall. Some
        vectors are also compared with what the encoder makes of their texts, and one is searched for.
    :param queries: how many rows to ask for.
    :raises NotInstalledError: the database has no SQL objects of pgembed, or older ones.
    """
    if connection.scalar(text("SELECT to_regclass('pgembed.embedding_columns')")) is None:
        raise NotInstalledError("this database lacks pgembed's SQL objects: run `pgembed init`")
    found = []
    for row in connection.execute(_CHANGES).all():
        (target,) = find_targets(connection, table=row.relation, column_name=row.column_name)
        if isinstance(target, Refused):
            raise target.error
        obstacles = []
        if embeddings is not None:
            of_models = [one for one in find_targets(connection, embeddings) if one.name == target.name]
            if of_models and isinstance(of_models[0], Target):
                target = of_models[0]
            else:
                obstacles.append(
                    f"the models do not have {row.column_name} as the database has it: write "
                    f'name="{row.column_name}", replaces="{row.replaces}" in its embedding_column()'
                )
        found.append(_change(connection, row, target, obstacles, min_recall, queries))
    return found


def _change(
    connection: Connection,
    row: Row[Any],
    target: Target,
    obstacles: list[str],
    min_recall: float | None,
    queries: int,
) -> Change:
    embedding = target.embedding
    rows = connection.scalar(select(func.count()).select_from(embedding.table)) or 0
    pending = (
        connection.scalar(select(func.count()).select_from(embedding.table).where(embedding.pending())) or 0
    )
    index, old_index = _index_on(connection, embedding), _index_on(connection, embedding, row.replaces)
    if rows and 1 - pending / rows < FILLED:
        obstacles.append(
            f"fill it: run a worker, or `pgembed backfill '{row.relation}' {row.column_name}`"
            f" ({pending:,} of {rows:,} rows are pending)"
        )
    if _state(index) in ("building", "invalid") or (index is None and old_index is not None):
        obstacles.append(
            {
                "building": "wait until its index is built",
                "invalid": "build its index again: alembic upgrade",
            }.get(_state(index), "build its index: alembic upgrade head")
        )
    measured = None
    if min_recall is not None and not obstacles:
        measured, problems = _measure(connection, target, index, rows, min_recall, queries)
        obstacles += problems
    if not row.old_stands:
        step = f"take replaces={row.replaces!r} away: that column is gone"
    elif obstacles:
        step = obstacles[0]
    else:
        step = (
            f'release the application with name="{row.column_name}", replaces="{row.replaces}" in its '
            "embedding_column(); when the old one is gone, take replaces= away and run alembic revision "
            "--autogenerate"
        )
    return Change(
        table=row.relation,
        old=row.replaces,
        new=row.column_name,
        old_encoder=row.old_encoder,
        old_fingerprint=row.old_fingerprint,
        new_encoder=row.encoder,
        new_fingerprint=row.fingerprint,
        rows=rows,
        pending=pending,
        index=_state(index),
        old_index=_state(old_index),
        recall=measured,
        obstacles=tuple(obstacles),
        next_step=step,
    )


def _measure(
    connection: Connection,
    target: Target,
    index: StandingIndex | None,
    rows: int,
    min_recall: float,
    queries: int,
) -> tuple[Recall | None, list[str]]:
    """What the new index finds, and what speaks against the new column."""
    problems = _other_space(connection, target.embedding)
    declared = vector_index_of(target.embedding.vector)
    if declared is None and index is not None:
        kinds: dict[str, Any] = {"hnsw": HNSW, "ivfflat": IVFFlat}
        if index.column is None or index.access_method not in kinds:
            return None, [*problems, f"the recall of {index.name} is not known: give --models"]
        declared = kinds[index.access_method](
            target.embedding.vector, name=index.name, metric=index.metric, **index.parameters
        )
    if declared is None:
        return None, problems  # searches are exact
    try:
        found = recall(connection, declared, queries=queries)
    except IndexNotUsedError as error:
        # The planner scans small tables: such searches are exact.
        return None, problems if rows < _SCANNED else [*problems, str(error)]
    except IndexMissingError as error:
        return None, [*problems, str(error)]
    if found.recall < min_recall:
        problems.append(
            f"the recall of {found.index} is {found.recall:.3f} at {found.setting} = {found.value}, wanted "
            f"is {min_recall}: see `pgembed index tune`"
        )
    return found, problems


def _other_space(connection: Connection, embedding: EmbeddingColumn, sample: int = 16) -> list[str]:
    """Whether vectors are those of the encoder, and a search for one's text is answered."""
    declaration = embedding.declaration
    rows = connection.execute(
        select(embedding.vector, *embedding.sources)
        .where(embedding.vector.is_not(None), ~embedding.pending())
        .limit(sample)
    ).all()
    if not rows:
        return []
    texts = [declaration.compose(tuple(row)[1:]) for row in rows]
    try:
        made = declaration.encoder.encode_documents(texts)
        hits = connection.execute(semantic_search(embedding.vector, texts[0], limit=1)).all()
    except EncoderError as error:
        return [f"the encoder cannot be asked from here: {error}"]
    stored = np.array([row[0] for row in rows])
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(made, axis=1)
    cosine = np.sum(stored * made, axis=1) / np.maximum(lengths, 1e-12)
    problems = []
    if np.min(cosine) < _SAME:
        problems.append(
            f"{np.sum(cosine < _SAME)} of {len(rows)} vectors are not those that {declaration.encoder.name} "
            "makes of their texts: are they of another encoder?"
        )
    if not hits:
        problems.append("a search for the text of a row finds nothing")
    return problems


def _index_on(
    connection: Connection, embedding: EmbeddingColumn, column: str | None = None
) -> StandingIndex | None:
    """The index on a column of the table, the valid one if there are several."""
    relation = connection.dialect.identifier_preparer.format_table(embedding.table)
    name = column or str(embedding.vector.name)
    mentions = re.compile(rf'(?<![\w"]){re.escape(name)}(?!\w)|"{re.escape(name)}"')
    there = [
        index
        for index in standing(connection, relation)
        if index.column == name or (index.expression is not None and mentions.search(index.expression))
    ]
    return next((index for index in there if index.valid), there[0] if there else None)


def _state(index: StandingIndex | None) -> str:
    if index is None:
        return "none"
    return index.access_method if index.valid else "building" if index.building else "invalid"


def _free_name(connection: Connection, target: Target) -> str:
    """The name that migrations choose for the new column."""
    columns = set(
        connection.scalars(
            text("SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = :relation AND attnum > 0"),
            {"relation": target.relation},
        )
    )
    return next_name(target.column_name, columns)


def next_name(old: str, taken: set[str]) -> str:
    """The name of the column that takes the place of one: ``embedding_2`` for ``embedding``."""
    match = re.fullmatch(r"(.*)_(\d+)", old)
    stem, number = (match[1], int(match[2])) if match else (old, 1)
    while True:
        number += 1
        name = f"{stem}_{number}"
        if not {name, f"{name}_digest"} & taken:
            return name


def _speed(encoder: TextEncoder, texts: list[str]) -> float | None:
    """Texts a second."""
    if not texts:
        return None
    try:
        encoder.encode_documents(texts[:1])  # opens the weights, which is no part of the speed
        started = time.perf_counter()
        encoder.encode_documents(texts)
    except EncoderError:
        return None
    return len(texts) / max(time.perf_counter() - started, 1e-6)
