"""Encoding what a flush or a bulk statement is about to write: one batch an encoder."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pgembed.columns import Array, Embedding, TextEncoder
from pgembed.columns.concurrency import off_event_loop
from pgembed.exc import EncoderError, encoder_errors

logger = logging.getLogger(__name__)

Texts: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True)
class Filling:
    """One vector to compute.

    :ivar texts: those of the sources, not all of them empty.
    :ivar digest: the digest of the texts.
    :ivar put: takes the vector to where it is written from.
    """

    declaration: Embedding
    texts: Texts
    digest: uuid.UUID
    put: Callable[[Array, uuid.UUID], None]


def encode(fillings: Iterable[Filling]) -> None:
    """Compute the vectors and put them in place; under asyncio, off the event loop.

    :raises Exception: whatever an encoder raises, unless all its columns say ``on_error="pending"``.
    """
    by_encoder: dict[TextEncoder, list[Filling]] = {}
    for filling in fillings:
        by_encoder.setdefault(filling.declaration.encoder, []).append(filling)
    for encoder, group in by_encoder.items():
        _encode(encoder, group)


def _encode(encoder: TextEncoder, fillings: list[Filling]) -> None:
    texts = [filling.declaration.compose(filling.texts) for filling in fillings]
    try:
        documents = encoder_errors(encoder.name)(encoder.encode_documents)
        vectors = _checked(encoder, off_event_loop(documents, texts), len(texts))
    except Exception as error:
        if any(filling.declaration.on_error == "raise" for filling in fillings):
            raise
        logger.warning("%d rows stay pending: encoder %r failed: %s", len(texts), encoder.name, error)
        return
    vectors.flags.writeable = False
    for filling, vector in zip(fillings, vectors, strict=True):
        filling.put(vector, filling.digest)


def _checked(encoder: TextEncoder, vectors: Array, count: int) -> Array:
    """
    :raises EncoderError: not one finite vector of the encoder's dimensions for each text.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.shape != (count, encoder.dimensions):
        raise EncoderError(
            f"encoder {encoder.name!r} gave an array of the shape {array.shape} for {count} texts; "
            f"needed is {(count, encoder.dimensions)}"
        )
    if not np.isfinite(array).all():
        raise EncoderError(f"encoder {encoder.name!r} gave a vector with NaN or infinity in it")
    return array
