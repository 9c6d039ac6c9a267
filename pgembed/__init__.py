"""Embeddings as an ordinary part of a Postgres schema.

Importing this package loads no ONNX runtime, no Alembic and no command line. The parts that need a database
are loaded at first use: a program that only encodes starts without them.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from pgembed.encoders import Encoder, Reranker, export_onnx
from pgembed.exc import PgembedError

if TYPE_CHECKING:
    from pgembed import clustering, database, filling, indexes, measuring
    from pgembed.clustering import kmeans, write_labels
    from pgembed.columns import TextEncoder, Vector, Words, embedding_column
    from pgembed.indexes import HNSW, IVFFlat
    from pgembed.measuring import evaluate
    from pgembed.parts import Part, embedding_parts
    from pgembed.queries import (
        aexplain_search,
        apassages,
        arerank,
        centroid_classify,
        cluster,
        count_within,
        decay,
        diversify,
        duplicate_groups,
        duplicates_of,
        explain_search,
        facets,
        hard_negatives,
        hybrid_search,
        keep_list,
        keyword_search,
        knn_classify,
        knn_classify_many,
        label_issues,
        match,
        merge_duplicates,
        mine_pairs,
        near_duplicates,
        outliers,
        passages,
        recommend,
        representatives,
        rerank,
        rethreshold,
        search_many,
        semantic_search,
        softmax,
        suggest_threshold,
        topics,
        vector_of,
        zero_shot,
    )
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in ("clustering", "database", "filling", "indexes", "measuring"):
            return import_module(f"pgembed.{name}")
        for part in ("columns", "parts", "indexes", "queries", "measuring", "clustering"):
            module = import_module(f"pgembed.{part}")
            globals().update((each, getattr(module, each)) for each in __all__ if hasattr(module, each))
        return globals()[name]


@event.listens_for(Pool, "first_connect")
def _know_vectors(*_: Any) -> None:
    """Reflection knows vectors even where a program did no more than ``import pgembed``."""
    if "sqlalchemy.dialects.postgresql" in sys.modules:
        import_module("pgembed.columns")


__all__ = [
    "HNSW",
    "Encoder",
    "IVFFlat",
    "Part",
    "PgembedError",
    "Reranker",
    "TextEncoder",
    "Vector",
    "Words",
    "aexplain_search",
    "apassages",
    "arerank",
    "centroid_classify",
    "cluster",
    "clustering",
    "count_within",
    "database",
    "decay",
    "diversify",
    "duplicate_groups",
    "duplicates_of",
    "embedding_column",
    "embedding_parts",
    "evaluate",
    "explain_search",
    "export_onnx",
    "facets",
    "filling",
    "hard_negatives",
    "hybrid_search",
    "indexes",
    "keep_list",
    "keyword_search",
    "kmeans",
    "knn_classify",
    "knn_classify_many",
    "label_issues",
    "match",
    "measuring",
    "merge_duplicates",
    "mine_pairs",
    "near_duplicates",
    "outliers",
    "passages",
    "recommend",
    "representatives",
    "rerank",
    "rethreshold",
    "search_many",
    "semantic_search",
    "softmax",
    "suggest_threshold",
    "topics",
    "vector_of",
    "write_labels",
    "zero_shot",
]
