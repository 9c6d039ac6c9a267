"""Vector indexes: declaration, plan, build, and what they find.

=========================  ==============================================================================
file                       what it is for
=========================  ==============================================================================
methods, declaration       HNSW and IVFFlat: what they can do, and as ``sqlalchemy.Index`` objects
indexed, tables            what an index holds of a row; an index and its table, or a copy of it
ddl                        statements about indexes that SQLAlchemy has no construct for
build_plan, sizes          ``plan``: memory, space and time that a build takes
build, concurrent          ``create``; and while the table is used: build, rebuild, drop
partitions, progress       indexes of partitioned tables; how far a build is
locks, server_settings     short locks; settings of the server for the time of a block
standing, differences      the indexes of a database, and whether they are as declared
readiness                  whether an index that a search needs is there, asked within its statement
findings                   ``check``: what is wrong with them; bugs of pgvector, by version
measurement                the recall of an index when it was last measured
query_plan                 ``explain``: whether a statement uses an index, and why not
errors                     errors of building and measuring
=========================  ==============================================================================

``recall``, ``tune`` and ``sweep`` are in :mod:`pgembed.measuring`; their names are still answered here.
"""

from typing import TYPE_CHECKING

from pgembed.indexes.build import create, is_built
from pgembed.indexes.build_plan import Plan, plan
from pgembed.indexes.concurrent import create_concurrently, drop, reindex
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.errors import (
    IndexBuildError,
    IndexMissingError,
    IndexNotUsedError,
    NoNeighboursError,
)
from pgembed.indexes.findings import Finding, check
from pgembed.indexes.indexed import Indexed, indexed
from pgembed.indexes.methods import ACCESS_METHODS, AccessMethod, Parameter, Search
from pgembed.indexes.progress import Progress
from pgembed.indexes.query_plan import Explanation, explain
from pgembed.indexes.tables import access_method_of, indexes_on, vector_index_of

if TYPE_CHECKING:
    from pgembed.measuring import Latency, Recall, Tuning, plot, recall, sweep, tune
else:

    def __getattr__(name):
        if name not in ("Latency", "Recall", "Tuning", "plot", "recall", "sweep", "tune"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import pgembed

        return getattr(pgembed.measuring, name)


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
    "NoNeighboursError",
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
