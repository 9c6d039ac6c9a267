"""Vector indexes: declaration, plan, build, and what they find."""

from pgembed.indexes.build import create, is_built
from pgembed.indexes.checking import Finding, check
from pgembed.indexes.concurrent import create_concurrently, drop, reindex
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.errors import IndexBuildError, IndexMissingError, IndexNotUsedError
from pgembed.indexes.explaining import Explanation, explain
from pgembed.indexes.indexed import Indexed, indexed
from pgembed.indexes.measuring import Latency, Recall, recall
from pgembed.indexes.methods import ACCESS_METHODS, AccessMethod, Parameter, Search
from pgembed.indexes.planning import Plan, plan
from pgembed.indexes.progress import Progress
from pgembed.indexes.sweeping import plot, sweep
from pgembed.indexes.tables import access_method_of, indexes_on, vector_index_of
from pgembed.indexes.tuning import Tuning, tune

__all__ = [
    "ACCESS_METHODS",
    "HNSW",
    "AccessMethod",
    "Explanation",
    "Finding",
    "IVFFlat",
    "IndexBuildError",
    "IndexMissingError",
    "IndexNotUsedError",
    "Indexed",
    "Latency",
    "Parameter",
    "Plan",
    "Progress",
    "Recall",
    "Search",
    "Tuning",
    "VectorIndex",
    "access_method_of",
    "check",
    "create",
    "create_concurrently",
    "drop",
    "explain",
    "indexed",
    "indexes_on",
    "is_built",
    "plan",
    "plot",
    "recall",
    "reindex",
    "sweep",
    "tune",
    "vector_index_of",
]
