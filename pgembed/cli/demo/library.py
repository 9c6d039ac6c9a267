"""The demo's database: one table that fills itself, and the questions put to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Text, delete, exists, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed.cli.demo.corpus import Documented
from pgembed.columns import TextEncoder, Vector, embedding_column
from pgembed.indexes import HNSW
from pgembed.queries import duplicate_groups, knn_classify, semantic_search

#: Objects of one flush, and so of one encoder batch.
BATCH = 500
#: Areas of this many entries or more are classified; one in ten of their entries is held back.
AREA_SIZE = 40


class Base(DeclarativeBase):
    """The demo's metadata."""


def entry_model(encoder: TextEncoder) -> Any:
    """The mapped class ``Entry``, whose embedding is made by ``encoder``."""

    class Entry(Base):
        """One docstring; ``area`` is empty where it is held back to be guessed."""

        __tablename__ = "entry"

        path: Mapped[str] = mapped_column(Text, primary_key=True)
        kind: Mapped[str] = mapped_column(Text)
        area: Mapped[str | None] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)
        doc: Mapped[str] = mapped_column(Text)
        embedding: Mapped[Vector | None] = embedding_column("name", "doc", encoder=encoder, index=HNSW())

    return Entry


def held_back(entries: Sequence[Documented]) -> dict[str, str]:
    """Paths whose area the database does not learn, and that area: every tenth of each large area."""
    sizes = Counter(entry.area for entry in entries)
    truth: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for entry in entries:
        if sizes[entry.area] >= AREA_SIZE and entry.kind != "module":
            seen[entry.area] += 1
            if seen[entry.area] % 10 == 0:
                truth[entry.path] = entry.area
    return truth


def is_empty(session: Session, model: Any) -> bool:
    """Whether no entry is in the table yet."""
    return session.scalar(select(~exists().select_from(model))) is True


def seconds_to_encode(encoder: TextEncoder, entries: Sequence[Documented]) -> float:
    """How long ``encoder`` takes for all entries, extrapolated from 100 of them, evenly chosen by length."""
    by_length = sorted((f"{entry.name}\n{entry.doc}" for entry in entries), key=len)
    sample = by_length[:: max(1, len(by_length) // 100)]
    encoder.encode_documents(sample[:1])  # opens the weights
    start = time.perf_counter()
    encoder.encode_documents(sample)
    return (time.perf_counter() - start) * len(by_length) / len(sample)


def load(
    session: Session,
    model: Any,
    entries: Sequence[Documented],
    hidden: dict[str, str],
    advance: Callable[[int], None],
) -> int:
    """Make the table hold just ``entries``; returns how many were written, and so encoded.

    Objects that are in the table with the same values cost one SELECT. Each flush encodes its new and changed
    objects in one batch; the longest texts come first, so that a batch holds texts of similar length.
    """
    present = {entry.path: entry for entry in session.scalars(select(model))}
    gone = present.keys() - {entry.path for entry in entries}
    if gone:
        session.execute(delete(model).where(model.path.in_(gone)))
    written = 0
    by_length = sorted(entries, key=lambda entry: len(entry.doc), reverse=True)
    for start in range(0, len(entries), BATCH):
        batch = by_length[start : start + BATCH]
        for entry in batch:
            values = {
                "kind": entry.kind,
                "area": None if entry.path in hidden else entry.area,
                "name": entry.name,
                "doc": entry.doc,
            }
            row = present.get(entry.path)
            if row is None:
                session.add(model(path=entry.path, **values))
            elif any(getattr(row, key) != value for key, value in values.items()):
                for key, value in values.items():
                    setattr(row, key, value)
            else:
                continue
            written += 1
        session.flush()
        advance(len(batch))
    session.commit()
    return written


def answers(session: Session, model: Any, question: str, limit: int = 5) -> list[tuple[Any, float]]:
    """The entries that answer a question best, and their scores."""
    rows = session.execute(semantic_search(model.embedding, question, limit=limit))
    return [(row[0], row.score) for row in rows]


def accuracy(session: Session, model: Any, truth: dict[str, str], advance: Callable[[int], None]) -> float:
    """The share of held-back entries whose area 15 neighbours guess right."""
    right = 0
    for entry in session.scalars(select(model).where(model.path.in_(truth))):
        best = session.execute(knn_classify(model.embedding, entry, label=model.area, k=15)).first()
        right += best is not None and best.label == truth[entry.path]
        advance(1)
    return right / max(len(truth), 1)


def largest_groups(session: Session, model: Any, min_score: float) -> list[list[str]]:
    """Groups of near-duplicates, as lists of paths; the largest first."""
    groups: dict[int, list[str]] = {}
    for group, path in session.execute(duplicate_groups(model.embedding, min_score=min_score)):
        groups.setdefault(group, []).append(path)
    return sorted(groups.values(), key=len, reverse=True)
