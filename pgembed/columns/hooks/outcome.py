"""What happens to the embedding of a row that is written: one table, for flushes and statements alike."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Literal, TypeAlias

import numpy as np
from sqlalchemy import Null

from pgembed.columns.embedding import Fill
from pgembed.columns.hooks.encoder_batch import Filling
from pgembed.columns.hooks.mapped import MappedEmbedding

#: Whether the row is new, and otherwise whether one of its texts is assigned.
Change: TypeAlias = Literal["new", "changed", "same"]
#: What is known of the texts that the row will hold: all of them, that all are empty, or not all of them.
Knowledge: TypeAlias = Literal["known", "empty", "unknown"]
#: The vector that is assigned: none (or NULL), one of the user's, or one that was loaded from some row.
Brought: TypeAlias = Literal["none", "own", "loaded"]
#: The digest that is assigned: nothing, NULL, that of the texts, or another.
Stamp: TypeAlias = Literal["absent", "null", "matching", "other"]

#: Stands for a digest that is not assigned.
ABSENT = object()


class Outcome(Enum):
    """What becomes of vector and digest.

    :cvar LEAVE: nothing is written; the digest in the row tells by itself whether its vector is fresh.
    :cvar KEEP: the vector that is assigned counts for the texts, and gets their digest.
    :cvar CLEAR: both are NULL, because there is no text.
    :cvar ENCODE: both are made of the texts, in the same statement.
    :cvar PENDING: nobody knows what the vector was made from: the digest is NULL.
    """

    LEAVE = "leave"
    KEEP = "keep"
    CLEAR = "clear"
    ENCODE = "encode"
    PENDING = "pending"


def outcome(change: Change, texts: Knowledge, brought: Brought, stamp: Stamp, fill: Fill) -> Outcome:
    """The table; it depends on nothing else."""
    if change == "same" and brought == "none":
        return Outcome.LEAVE
    unstamped = stamp in ("absent", "null")
    if texts == "unknown":
        if change != "same" or stamp != "absent":
            return Outcome.LEAVE
        return Outcome.KEEP if brought == "own" else Outcome.PENDING
    if texts == "empty":
        return Outcome.CLEAR
    if brought != "none" and (
        stamp == "matching" or (brought == "own" and unstamped and change != "changed")
    ):
        return Outcome.KEEP
    if fill == "flush":
        return Outcome.ENCODE
    return Outcome.PENDING if brought != "none" and unstamped else Outcome.LEAVE


def settle(
    mapped: MappedEmbedding,
    change: Change,
    texts: Sequence[Any],
    vector: Any,
    digest: Any,
    write: Callable[[dict[str, Any]], None],
    *,
    expressions: bool = True,
) -> Iterator[Filling]:
    """Write into one row what the table says; yields what has to be encoded for it.

    :param texts: those that the row will hold; what is neither a text nor ``None`` is not known.
    :param vector: what is assigned, or ``None``; and ``digest``, or :data:`ABSENT`.
    :param write: takes values by the names of attributes.
    :param expressions: whether it takes SQL expressions.
    """
    declaration = mapped.embedding.declaration
    known = all(text is None or isinstance(text, str) for text in texts)
    wanted: uuid.UUID | None = declaration.digest(tuple(texts)) if known else None
    chosen = outcome(
        change,
        "unknown" if not known else "empty" if wanted is None else "known",
        _origin(vector),
        _stamp(digest, wanted),
        declaration.fill,
    )
    if chosen is Outcome.KEEP and known:
        write({mapped.digest: wanted})
    elif chosen is Outcome.KEEP and expressions:
        write({mapped.digest: mapped.embedding.wanted()})  # of the texts that only the row knows
    elif chosen is Outcome.CLEAR:
        write({mapped.vector: None, mapped.digest: None})
    elif chosen is Outcome.PENDING:
        write({mapped.digest: None})
    elif chosen is Outcome.ENCODE and wanted is not None:
        yield Filling(mapped, tuple(texts), wanted, write)


def _origin(vector: Any) -> Brought:
    """Vectors that are loaded are read-only. One comes back by ``merge`` of a detached object, or is copied
    from another row."""
    if vector is None or isinstance(vector, Null):
        return "none"
    return "loaded" if isinstance(vector, np.ndarray) and not vector.flags.writeable else "own"


def _stamp(digest: Any, wanted: uuid.UUID | None) -> Stamp:
    if digest is ABSENT:
        return "absent"
    if digest is None:
        return "null"
    return "matching" if digest == wanted else "other"
