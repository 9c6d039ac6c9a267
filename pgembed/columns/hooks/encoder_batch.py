"""Encoding what a flush or a bulk statement is about to write: one batch an encoder."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from pgembed.columns.concurrency import off_event_loop
from pgembed.columns.embedding import Embedding, EmbeddingColumn, TextEncoder, answered
from pgembed.columns.hooks.mapped import MappedEmbedding
from pgembed.encoders import Encoder
from pgembed.exc import encoder_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filling:
    """One vector to compute.

    :ivar texts: those of the sources, not all of them empty.
    :ivar digest: the digest of the texts.
    :ivar write: takes vector and digest, by the names of attributes, to where they are written from.
    """

    mapped: MappedEmbedding
    texts: tuple[str | None, ...]
    digest: uuid.UUID
    write: Callable[[dict[str, Any]], None]

    @property
    def embedding(self) -> EmbeddingColumn:
        """The column that the vector is for."""
        return self.mapped.embedding


def encode(fillings: Iterable[Filling]) -> None:
    """Compute the vectors and put them in place; under asyncio, off the event loop.

    :raises Exception: whatever an encoder raises, unless all its columns say ``on_error="pending"``.
    """
    by_encoder: dict[TextEncoder, list[Filling]] = {}
    for filling in fillings:
        by_encoder.setdefault(filling.embedding.declaration.encoder, []).append(filling)
    for encoder, group in by_encoder.items():
        _encode(encoder, group)


def _encode(encoder: TextEncoder, fillings: list[Filling]) -> None:
    texts = [filling.embedding.declaration.compose(filling.texts) for filling in fillings]
    before = encoder.cut if isinstance(encoder, Encoder) else 0
    try:
        documents = encoder_errors(encoder.name)(encoder.encode_documents)
        column = ", ".join(dict.fromkeys(str(filling.embedding) for filling in fillings))
        vectors = answered(encoder, off_event_loop(documents, texts), len(texts), column=column)
    except Exception as error:
        if any(filling.embedding.declaration.on_error == "raise" for filling in fillings):
            raise
        logger.warning("%d rows stay pending: encoder %r failed: %s", len(texts), encoder.name, error)
        return
    if isinstance(encoder, Encoder) and encoder.cut > before:
        _say_what_is_cut(encoder, fillings, texts)
    vectors.flags.writeable = False
    for filling, vector in zip(fillings, vectors, strict=True):
        filling.write({filling.mapped.vector: vector, filling.mapped.digest: filling.digest})


#: Declarations of columns of which it was said that texts are cut.
_said: WeakSet[Embedding] = WeakSet()


def _say_what_is_cut(encoder: Encoder, fillings: list[Filling], texts: list[str]) -> None:
    """Warn, once a column and process, that a text is longer than the encoder's limit.

    The encoder counts over all its columns and threads; whose texts they were is counted here, once more.
    """
    by_column: dict[Embedding, list[str]] = {}
    for filling, text in zip(fillings, texts, strict=True):
        by_column.setdefault(filling.embedding.declaration, []).append(text)
    names = {filling.embedding.declaration: str(filling.embedding) for filling in fillings}
    for declaration, given in by_column.items():
        if declaration not in _said and off_event_loop(encoder.count_cut, given):
            _said.add(declaration)
            logger.warning(
                "texts of %s are cut at the %d tokens of encoder %r: their vectors cover the beginning. "
                "`pgembed status` says how many are; see docs/filling.md. (Said once a column and process.)",
                names[declaration],
                encoder.max_tokens,
                encoder.name,
            )
