"""Vector indexes: declaration, plan and build."""

from pgembed.indexes.build import create, is_built
from pgembed.indexes.concurrent import create_concurrently, drop, reindex
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex, access_method_of, vector_index_of
from pgembed.indexes.errors import IndexBuildError, IndexMissingError, IndexNotUsedError
from pgembed.indexes.planning import Plan, plan
from pgembed.indexes.progress import Progress

__all__ = [
    "HNSW",
    "IVFFlat",
    "IndexBuildError",
    "IndexMissingError",
    "IndexNotUsedError",
    "Plan",
    "Progress",
    "VectorIndex",
    "access_method_of",
    "create",
    "create_concurrently",
    "drop",
    "is_built",
    "plan",
    "reindex",
    "vector_index_of",
]
