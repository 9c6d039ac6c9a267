"""K-means on streamed vectors, beside scikit-learn's MiniBatchKMeans on all of them in memory.

Usage::

    pip install scikit-learn
    python benchmarks/clusters.py [ROWS]

It makes unit vectors of 384 dimensions about 200 points, some with a hundred times the rows of others,
stored in the order of these points as tables often are. Each contestant runs in a process of its own, which
reads the vectors from Postgres. Printed are the inertia, the time, and the peak memory of the process above
what it had after its imports.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert, select, text

from pgembed import kmeans
from pgembed.columns.types import VectorType
from pgembed.database import embedded, install

DIMENSIONS, POINTS, CLUSTERS = 384, 200, 50

ITEM = Table(
    "item",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("topic", Integer),
    Column("vector", VectorType(DIMENSIONS)),
)


def fill(engine: Engine, rows: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((POINTS, DIMENSIONS))
    share = np.geomspace(1, 100, POINTS)
    own = np.sort(rng.choice(POINTS, rows, p=share / share.sum()))
    with engine.begin() as connection:
        install(connection)
        ITEM.create(connection)
        for start in range(0, rows, 5000):
            part = own[start : start + 5000]
            vectors = points[part] + 1.5 * rng.standard_normal((len(part), DIMENSIONS))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            given = [{"id": start + n, "vector": vector} for n, vector in enumerate(vectors)]
            connection.execute(insert(ITEM), given)
        connection.execute(text("ANALYZE item"))


def streamed(engine: Engine) -> float:
    return kmeans(engine, ITEM.c.vector, clusters=CLUSTERS).inertia


def streamed_and_written(engine: Engine) -> float:
    return kmeans(engine, ITEM.c.vector, clusters=CLUSTERS, write=ITEM.c.topic).inertia


def in_memory(engine: Engine) -> float:
    with engine.connect() as connection:
        vectors = np.stack(connection.scalars(select(ITEM.c.vector)).all())
    model = MiniBatchKMeans(CLUSTERS, random_state=0).fit(vectors)
    return float(model.inertia_) / len(vectors)


def peak() -> float:
    """The most memory that this process has had, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


def measured(contestant: Callable[[Engine], float], url: str) -> tuple[float, float, float, float]:
    """In a process of its own: inertia, seconds, peak memory and what it was before."""
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    before, started = peak(), time.perf_counter()
    inertia = contestant(engine)
    seconds = time.perf_counter() - started
    engine.dispose()
    return inertia, seconds, peak(), before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="?", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        engine = create_engine(url)
        fill(engine, rows)
        engine.dispose()
        print(f"{rows:,} rows, {CLUSTERS} clusters")
        for name, contestant in (
            ("kmeans", streamed),
            ("kmeans, labels written", streamed_and_written),
            ("fetching, MiniBatchKMeans", in_memory),
        ):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                given = url.render_as_string(hide_password=False)
                inertia, seconds, most, before = pool.submit(measured, contestant, given).result()
            memory = f"{most - before:6.0f} MB above {before:.0f}"
            print(f"{name:28} inertia {inertia:.4f} {seconds:7.1f} s, {memory}", flush=True)


if __name__ == "__main__":
    main()
