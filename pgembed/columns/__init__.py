"""Embedding columns: declaration, type, digest and the predicate of pending rows."""

import pgembed.columns.dialects  # noqa: F401
from pgembed.columns.declaration import embedding_column
from pgembed.columns.embedding import (
    Embedding,
    EmbeddingColumn,
    PendingIndex,
    TextEncoder,
    answered,
    bound,
    embeddings_of,
)
from pgembed.columns.types import Vector, VectorType
from pgembed.columns.values import Array, as_array

__all__ = [
    "Array",
    "Embedding",
    "EmbeddingColumn",
    "PendingIndex",
    "TextEncoder",
    "Vector",
    "VectorType",
    "answered",
    "as_array",
    "bound",
    "embedding_column",
    "embeddings_of",
]
