"""What an index takes: memory while it is built and space on the disk, computed from its parameters.

The formulas count what pgvector allocates and writes (``hnswbuild.c``, ``hnswutils.c``, ``ivfbuild.c``,
``ivfutils.c`` of pgvector 0.8), for vectors that all differ: HNSW keeps up to ten equal ones in one node.
All sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

#: The access methods that are known here.
METHODS = ("hnsw", "ivfflat")
#: Bytes of a page, and of those the ones that pgvector can fill: without header, and the 8 at its end.
PAGE = 8192
_USABLE = 8160
_HEADROOM = 1.1
_BASE = 4 * 1024**2
#: Postgres plans a parallel build only with this much maintenance_work_mem for each process.
_PER_PROCESS = 32 * 1024**2
#: ``maintenance_work_mem`` cannot be set higher than this many kB, nor lower than 1 MB.
_HIGHEST = 2147483647 * 1024
_LOWEST = 1024**2


@dataclass(frozen=True)
class Build:
    """What the size of an index depends on.

    :ivar method: one of :data:`METHODS`.
    :ivar vector: bytes of one indexed value.
    :ivar server: the major version of Postgres.
    """

    method: str
    parameters: dict[str, int]
    vector: int
    dimensions: int
    server: int

    def memory(self, rows: int) -> int:
        """Memory that the build takes for this number of rows."""
        if self.method == "ivfflat":
            return ivfflat_memory(rows, self.vector, self.dimensions, self.parameters["lists"])
        return hnsw_memory(rows, self.vector, self.parameters["m"], self.server)

    def disk(self, rows: int) -> int:
        """Size of the index for this number of rows."""
        if self.method == "ivfflat":
            return ivfflat_disk(rows, self.vector, self.parameters["lists"])
        return hnsw_disk(rows, self.vector, self.parameters["m"])


def vector_size(storage: str, dimensions: int) -> int:
    """Bytes of one value: ``vector`` has 4 per dimension, ``halfvec`` 2, ``bit`` 1/8, and all a header of
    8."""
    bits = {"vector": 32, "halfvec": 16, "bit": 1}[storage]
    return ceil(bits * dimensions / 8) + 8


def hnsw_memory(rows: int, vector: int, m: int, server: int) -> int:
    """Memory of an HNSW graph: a node has its vector, 2 m neighbours of 16 bytes and about 195 bytes more.

    It is allocated in four pieces, whose headers take 8 bytes each; before Postgres 16 they took 24.
    """
    return rows * (vector + 32 * m + 195 + (4 * 16 if server < 16 else 0))


def hnsw_disk(rows: int, vector: int, m: int) -> int:
    """Size of an HNSW index.

    A node and its list of neighbours share a page, if one page can hold both. Only whole nodes fit, so 1,024
    dimensions take as much as 1,536.
    """
    node = _aligned(72 + vector)
    neighbours = _aligned(4 + 12 * m)
    a_row = node + neighbours + 8
    if a_row > _USABLE:
        return PAGE + rows * 2 * PAGE
    return PAGE + ceil(rows / (_USABLE // a_row)) * PAGE


def ivfflat_samples(lists: int) -> int:
    """Rows that IVFFlat finds its clusters from."""
    return max(50 * lists, 10_000)


def ivfflat_memory(rows: int, vector: int, dimensions: int, lists: int) -> int:
    """Memory of the k-means (Elkan 2003) that an IVFFlat build begins with; it fails where it has less."""
    samples = min(ivfflat_samples(lists), rows)
    bounds = samples * lists + lists**2 + lists * dimensions
    return (lists + samples) * vector + 4 * bounds


def ivfflat_disk(rows: int, vector: int, lists: int) -> int:
    """Size of an IVFFlat index: whole pages, the last of each list half full on average."""
    entries = _USABLE // (_aligned(8 + vector) + 4)
    centers = _USABLE // (_aligned(8 + vector) + 4)
    return PAGE * (1 + ceil(rows / entries + lists / 2) + ceil(lists / centers))


def work_memory(memory: int, workers: int) -> int:
    """The ``maintenance_work_mem`` that holds a build of ``memory`` bytes by a leader and ``workers``.

    A tenth and 4 MB more than needed, in whole kB. With workers, at least 32 MB per process, below which
    Postgres plans none.
    """
    wanted = max(int(memory * _HEADROOM) + _BASE, _PER_PROCESS * (workers + 1) if workers else 0)
    return min(max(ceil(wanted / 1024) * 1024, _LOWEST), _HIGHEST)


def readable(size: float) -> str:
    """``"52.1 MB"``: a size for people, in units of 1024."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def _aligned(size: int) -> int:
    return (size + 7) // 8 * 8
