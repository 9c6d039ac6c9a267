"""What happens to the embedding of a row that is written, for flushes and statements alike.

One table decides, and what has to be encoded is encoded in one batch for each encoder.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

import numpy as np
from sqlalchemy import Null

from pgembed.columns.embedding import Embedding, EmbeddingColumn, Fill
from pgembed.columns.hooks.mapped import MappedEmbedding
from pgembed.columns.text_encoder import TextEncoder, answered
from pgembed.encoders import Encoder
from pgembed.encoders.threads import encoder_errors, off_event_loop

logger = logging.getLogger(__name__)

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
    """What happens to vector and digest.

    :cvar LEAVE: nothing is written; the row's digest tells whether its vector is fresh.
    :cvar KEEP: the vector that is assigned counts for the texts, and gets their digest.
    :cvar CLEAR: both are NULL, because there is no text.
    :cvar ENCODE: both are made of the texts, in the same statement.
    :cvar PENDING: it is unknown what the vector was made from: the digest is NULL.
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


@dataclass(frozen=True)
class Filling:
    """One vector to compute.

    :ivar text: what is encoded.
    :ivar digest: the digest of the texts of the sources.
    :ivar write: takes vector and digest, by the names of attributes, to where they are written from.
    """

    mapped: MappedEmbedding
    text: str
    digest: uuid.UUID
    write: Callable[[dict[str, Any]], None]


def settle(
    mapped: MappedEmbedding,
    change: Change,
    texts: Sequence[Any],
    vector: Any,
    digest: Any,
    write: Callable[[dict[str, Any]], None],
    *,
    expressions: bool = True,
) -> list[Filling]:
    """Write into one row what the table says; returns what has to be encoded for it.

    :param texts: those that the row will hold; what is neither a text nor ``None`` is not known.
    :param vector: what is assigned, or ``None``; and ``digest``, or :data:`ABSENT`.
    :param write: takes values by the names of attributes.
    :param expressions: whether it takes SQL expressions.
    """
    declaration = mapped.embedding.declaration
    known = all(text is None or isinstance(text, str) for text in texts)
    wanted: uuid.UUID | None = declaration.digest(texts) if known else None
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
        return [Filling(mapped, declaration.compose(texts), wanted, write)]
    return []


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


def encode(fillings: Iterable[Filling]) -> None:
    """Compute the vectors and put them in place; under asyncio, off the event loop.

    :raises Exception: whatever an encoder raises, unless all its columns say ``on_error="pending"``.
    """
    by_encoder: dict[TextEncoder, list[Filling]] = {}
    for filling in fillings:
        by_encoder.setdefault(filling.mapped.embedding.declaration.encoder, []).append(filling)
    for encoder, group in by_encoder.items():
        _encode(encoder, group)


def _encode(encoder: TextEncoder, fillings: list[Filling]) -> None:
    texts = [filling.text for filling in fillings]
    columns = dict.fromkeys(filling.mapped.embedding for filling in fillings)
    before = encoder.cut if isinstance(encoder, Encoder) else 0
    try:
        documents = encoder_errors(encoder.name)(encoder.encode_documents)
        answer = off_event_loop(documents, texts)
        vectors = answered(encoder, answer, len(texts), column=", ".join(map(str, columns)))
    except Exception as error:
        if any(column.declaration.on_error == "raise" for column in columns):
            raise
        logger.warning("%d rows stay pending: encoder %r failed: %s", len(texts), encoder.name, error)
        return
    if isinstance(encoder, Encoder) and encoder.cut > before:
        _say_what_is_cut(encoder, fillings)
    vectors.flags.writeable = False
    for filling, vector in zip(fillings, vectors, strict=True):
        filling.write({filling.mapped.vector: vector, filling.mapped.digest: filling.digest})


#: Declarations of columns whose cut texts were reported.
_said: WeakSet[Embedding] = WeakSet()


def _say_what_is_cut(encoder: Encoder, fillings: list[Filling]) -> None:
    """Warn, once per column and process, that a text is longer than the encoder's limit.

    The encoder counts over all its columns and threads, so the texts of each column are counted again here.
    """
    by_column: dict[EmbeddingColumn, list[str]] = {}
    for filling in fillings:
        by_column.setdefault(filling.mapped.embedding, []).append(filling.text)
    for column, texts in by_column.items():
        if column.declaration not in _said and off_event_loop(encoder.count_cut, texts):
            _said.add(column.declaration)
            logger.warning(
                "texts of %s are cut at the %d tokens of encoder %r: their vectors cover the beginning. "
                "`pgembed status` says how many are; embedding_parts(...) finds all of a text: see "
                "docs/long_texts.md. (Logged once per column and process.)",
                column,
                encoder.max_tokens,
                encoder.name,
            )
