"""Embeddings as an ordinary part of a Postgres schema.

Importing this package loads no ONNX runtime, no Alembic and no command line.
"""

from pgembed import database, filling, indexes  # with filling, the hooks of sessions begin to listen
from pgembed.columns import Vector, embedding_column
from pgembed.encoders import Encoder, export_onnx
from pgembed.exc import PgembedError
from pgembed.indexes import HNSW, IVFFlat
from pgembed.queries import (
    duplicate_groups,
    hybrid_search,
    knn_classify,
    near_duplicates,
    semantic_search,
)

__all__ = [
    "HNSW",
    "Encoder",
    "IVFFlat",
    "PgembedError",
    "Vector",
    "database",
    "duplicate_groups",
    "embedding_column",
    "export_onnx",
    "filling",
    "hybrid_search",
    "indexes",
    "knn_classify",
    "near_duplicates",
    "semantic_search",
]
