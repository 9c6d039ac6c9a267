"""A change of encoder by a second column: how far it has got, and whether searches may switch.

The migrations are those of :mod:`pgembed.migrations`; the new column's registration names the one that it
replaces, and the rest is read from the database.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, func, select, text

from pgembed.columns import EmbeddingColumn, Freshness, answered
from pgembed.columns.names import written
from pgembed.database.install import require_installed
from pgembed.exc import DeclarationError, EncoderError
from pgembed.filling.registry import columns_of
from pgembed.filling.targets import Refused, Target, find_targets
from pgembed.indexes import (
    IndexMissingError,
    IndexNotUsedError,
    NoNeighboursError,
    Recall,
    recall,
    vector_index_of,
)
from pgembed.indexes.differences import declared_as
from pgembed.indexes.standing import StandingIndex, standing_on
from pgembed.queries import semantic_search

#: The share of fresh rows from which a column counts as filled: in a table in use, some are always pending.
FILLED = 0.99
#: Stored vectors are of another space if their cosine with the encoder's is lower.
_SAME = 0.99

#: Tables with fewer rows are scanned as fast as an index is searched.
_SCANNED = 10_000

_CHANGES = text("""
WITH columns AS (
    SELECT relation, column_name, facts ->> 'encoder' AS encoder, facts ->> 'fingerprint' AS fingerprint,
           facts ->> 'replaces' AS replaces
      FROM pgembed.registrations
     WHERE problem IS NULL
)
SELECT CAST(n.relation AS text) AS relation, n.column_name, n.encoder, n.fingerprint, n.replaces,
       o.encoder AS old_encoder, o.fingerprint AS old_fingerprint,
       EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = n.relation AND NOT a.attisdropped AND a.attname = n.replaces) AS old_exists
  FROM columns AS n
  LEFT JOIN columns AS o ON o.relation = n.relation AND o.column_name = n.replaces
 WHERE n.replaces IS NOT NULL
 ORDER BY 1, 2
""")


@dataclass(frozen=True)
class Change:
    """How far a change of encoder has got.

    :ivar old: the column in use, and ``new``, the one that takes its place.
    :ivar rows: all that have a vector or are to get one; of them ``pending`` are still without their new
        vector.
    :ivar index: the new column's: ``"none"``, ``"building"``, ``"invalid"`` or its access method.
    :ivar old_index: the old column's, ``"none"`` if it has none.
    :ivar recall: what its index finds, if that was measured.
    :ivar exact: whether there was nothing to measure, because searches scan the rows, which are few or
        have no index.
    :ivar obstacles: what prevents searches from using the new column; none when it is ready.
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
    exact: bool
    obstacles: tuple[str, ...]
    next_step: str

    @property
    def filled(self) -> float:
        """The share of the rows that have their new vector."""
        return 1.0 if self.rows == 0 else 1 - self.pending / self.rows

    def as_dict(self) -> dict[str, Any]:
        """The state as plain values, for JSON."""
        return {**asdict(self), "filled": self.filled, "ready": not self.obstacles}


def changes(
    connection: Connection,
    embeddings: Sequence[Freshness] | None = None,
    *,
    min_recall: float | None = None,
    queries: int = 200,
) -> list[Change]:
    """How far every change of encoder in the database has got.

    :param embeddings: the columns of models, whose encoders are then used; else those of the registry.
    :param min_recall: measure what the new index finds, and let searches not switch below this recall. Some
        vectors are also compared with what the encoder makes of their texts, and one is searched for.
    :param queries: how many rows to ask for.
    :raises NotInstalledError: the database has no SQL objects of pgembed.
    :raises PgembedError: to measure recall, models and database must declare the columns alike.
    """
    require_installed(connection)
    found = []
    of_models = [] if embeddings is None else find_targets(connection, embeddings)
    seen: set[str] = set()
    for row in connection.execute(_CHANGES).all():
        (target,) = find_targets(connection, table=row.relation, column_name=row.column_name)
        if isinstance(target, Refused):
            raise target.error
        seen.add(target.name)
        obstacles = []
        if embeddings is not None:
            same = next((one for one in of_models if one.name == target.name), None)
            if isinstance(same, Target):
                target = same
            else:
                obstacles.append(
                    f"the models do not have {row.column_name} as the database has it: write "
                    f'name="{row.column_name}", replaces="{row.replaces}" in its embedding_column()'
                )
        found.append(_change(connection, row, target, obstacles, min_recall, queries))
    if min_recall is not None and not any(change.obstacles for change in found):
        _check_models(connection, of_models, seen)
    return found


def _check_models(connection: Connection, of_models: Sequence[Target | Refused], seen: set[str]) -> None:
    """An application of these models finds each column as it declares it.

    :param seen: the columns whose change was looked at.
    """
    for target in of_models:
        if isinstance(target, Refused):
            raise target.error
        replaces = target.embedding.declaration.replaces
        if replaces in columns_of(connection, target.relation) and str(target) not in seen:
            raise DeclarationError(
                f"{target}: the models have replaces={replaces!r}, the database does not know of it: "
                "alembic revision --autogenerate, alembic upgrade head"
            )


def _change(
    connection: Connection,
    row: Row[Any],
    target: Target,
    obstacles: list[str],
    min_recall: float | None,
    queries: int,
) -> Change:
    embedding = target.column
    # Rows without a text have no vector, and do not count.
    counted = select(func.count()).select_from(embedding.table)
    rows = connection.scalar(counted.where(embedding.vector.is_not(None) | embedding.pending())) or 0
    pending = connection.scalar(counted.where(embedding.pending())) or 0
    relation = written(embedding.table)
    index = standing_on(connection, relation, row.column_name)
    old_index = standing_on(connection, relation, row.replaces)
    if rows and 1 - pending / rows < FILLED:
        obstacles.append(
            f"fill it: run a worker, or `pgembed backfill '{row.relation}' {shlex.quote(row.column_name)}`"
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
    exact = False
    if min_recall is not None and rows and not obstacles:
        measured, problems = _measure(connection, target, index, rows, min_recall, queries)
        exact = measured is None and not problems
        obstacles += problems
    if not row.old_exists:
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
        exact=exact,
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
    """What the new index finds, and what is wrong with the new column."""
    problems = _other_space(connection, target.column)
    declared = vector_index_of(target.column.vector)
    if declared is None and index is not None:
        declared = declared_as(index, target.column.vector)
        if declared is None:
            return None, [*problems, f"the recall of {index.name} is not known: give --models"]
    if declared is None:
        return None, problems  # searches are exact
    try:
        found = recall(connection, declared, queries=queries)
    except NoNeighboursError:
        return None, problems  # a search can only find that one row
    except IndexNotUsedError as error:
        # The planner scans small tables, so searches are exact.
        return None, problems if rows < _SCANNED else [*problems, str(error)]
    except IndexMissingError as error:
        return None, [*problems, str(error)]
    if found.recall < min_recall:
        problems.append(
            f"the recall of {found.index} is {found.recall:.3f} at {found.setting} = {found.value}, "
            f"expected at least {min_recall}: see `pgembed index tune`"
        )
    return found, problems


def _other_space(connection: Connection, embedding: EmbeddingColumn, sample: int = 16) -> list[str]:
    """Problems: vectors are not those of the encoder, or a search for the text of one finds nothing."""
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
        documents = declaration.encoder.encode_documents(texts)
        made = answered(declaration.encoder, documents, len(texts), column=embedding)
        asked = next((text for text in texts if text and text.strip()), made[0])
        hits = connection.execute(semantic_search(embedding.vector, asked, limit=1)).all()
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


def _state(index: StandingIndex | None) -> str:
    if index is None:
        return "none"
    return index.access_method if index.valid else "building" if index.building else "invalid"
