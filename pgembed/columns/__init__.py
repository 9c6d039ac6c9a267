"""Embedding columns: declaration, type, digest and the predicate of pending rows."""

import pgembed.columns.dialects
import pgembed.columns.extension
import pgembed.columns.guards
import pgembed.columns.hooks
import pgembed.columns.registration  # noqa: F401  (all five listen on import)
from pgembed.columns.declaration import embedding_column
from pgembed.columns.embedding import (
    Embedding,
    EmbeddingColumn,
    Freshness,
    PendingIndex,
    bound,
    embeddings_of,
    fresh_of,
)
from pgembed.columns.text_encoder import TextEncoder, answered
from pgembed.columns.types import Vector, VectorType
from pgembed.columns.values import Array, as_array
from pgembed.columns.words import Words

__all__ = [
    "Array",
    "Embedding",
    "EmbeddingColumn",
    "Freshness",
    "PendingIndex",
    "TextEncoder",
    "Vector",
    "VectorType",
    "Words",
    "answered",
    "as_array",
    "bound",
    "embedding_column",
    "embeddings_of",
    "fresh_of",
]
