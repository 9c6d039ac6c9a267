"""How long a build takes, from builds on a sample of the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import Column, Connection, Index, MetaData, Table, func, insert, select, tablesample, text
from sqlalchemy.schema import CreateIndex

from pgembed.indexes import sizes
from pgembed.indexes.indexed import Indexed

#: What a process of a parallel build does, compared with one that builds alone; 0.61 and 0.66 were measured
#: with three processes on two cores.
_EFFICIENCY = 0.6
#: A row of a graph that is larger than a processor's cache takes so much longer; measured on 100,000 rows.
_OUT_OF_CACHE = 1.5
_CACHE = 32 * 1024**2
_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")


def seconds_for(
    connection: Connection, what: Indexed, build: sizes.Build, parts: Sequence[int], workers: int, sample: int
) -> float:
    """Seconds to build the index on all rows.

    :param parts: the rows of each partition.
    :param sample: rows to build HNSW on; IVFFlat takes as many as its clusters are found from.
    """
    rows = sum(parts)
    processes = max(1.0, _EFFICIENCY * (workers + 1))
    if build.method == "hnsw":
        taken, seconds = _timed(connection, what, build, rows, min(sample, rows))

        def cost(count: int) -> float:
            return count * math.log(count + 1) * (_OUT_OF_CACHE if build.memory(count) > _CACHE else 1.0)

        return seconds * sum(cost(part) for part in parts) / cost(taken) / processes if taken else 0.0
    # Up to `first` rows the clusters are found from all of them, by one process; what three times as many
    # take on top is for assigning rows to clusters, and that is all that further rows cost.
    first = min(rows, sizes.ivfflat_samples(build.parameters["lists"]))
    taken, clusters = _timed(connection, what, build, rows, first)
    assigning = 0.0
    if rows > taken > 0:
        more, seconds = _timed(connection, what, build, rows, min(rows, 4 * first))
        assigning = max(seconds - clusters, 0.0) / (more - taken) if more > taken else 0.0
    return sum(
        clusters * min(1.0, part / taken) + assigning * max(0, part - taken) / processes
        for part in parts
        if taken
    )


def _timed(
    connection: Connection, what: Indexed, build: sizes.Build, rows: int, wanted: int
) -> tuple[int, float]:
    """Build the index on about ``wanted`` rows: how many there were, and the seconds that it took."""
    sampled = Table(
        "pgembed_sample", MetaData(), Column("vector", what.expression.type), prefixes=["TEMPORARY"]
    )
    # Pages are drawn, not rows: half as many again make it likely that there are enough.
    share = min(100.0, 150.0 * wanted / rows)
    drawn = tablesample(what.column.table, func.system(share))
    vector = drawn.c[what.column.key]
    source = select(what.over(vector)).where(vector.is_not(None)).limit(wanted)
    savepoint = connection.begin_nested()
    try:
        sampled.create(connection)
        connection.execute(insert(sampled).from_select(["vector"], source))
        taken = connection.scalar(select(func.count()).select_from(sampled)) or 0
        budget = sizes.work_memory(build.memory(taken), 0)
        connection.execute(
            select(func.set_config("maintenance_work_mem", text(f"'{budget // 1024}kB'"), True))
        )
        # Declared now: an index that is there already is created with the table.
        copy = Index(
            "pgembed_sample_index",
            sampled.c.vector,
            postgresql_using=build.method,
            postgresql_with=build.parameters,
            postgresql_ops={} if what.metric is None else {"vector": what.metric.opclass(what.storage)},
        )
        started = connection.scalar(_CLOCK)
        connection.execute(CreateIndex(copy))
        seconds = connection.scalar(_CLOCK) - started
    finally:
        savepoint.rollback()
    return taken, float(seconds)
