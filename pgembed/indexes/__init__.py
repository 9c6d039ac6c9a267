"""Vector indexes: declaration and build."""

from pgembed.indexes.build import create, is_built
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex, access_method_of, vector_index_of

__all__ = ["HNSW", "IVFFlat", "VectorIndex", "access_method_of", "create", "is_built", "vector_index_of"]
