"""Duplicates: how well thresholds and matches do on labelled data; how long pairs, groups, keep lists take.

Usage::

    python benchmarks/duplicates.py mrpc FOLDER         # msr_paraphrase_{train,test}.txt
    python benchmarks/duplicates.py abt-buy FOLDER      # AbtBuy_Abt.csv, AbtBuy_Buy.csv
    python benchmarks/duplicates.py planted ROWS        # a twentieth copies, a tenth paraphrases
    python benchmarks/duplicates.py graph               # groups and keep lists of a chain and of random edges
    python benchmarks/duplicates.py guard [SECONDS]     # inserts with unique_within= and without

None of the data is shipped. ``--encoder FOLDER`` takes another encoder than all-MiniLM-L6-v2,
``--shared-buffers 1GB`` gives the server more memory. ``planted`` makes unit vectors of 384 dimensions, and
compares the pairs found with all that numpy finds; its times include reading from the database and writing
to it. With ``--peers``, in an environment that has ``sentence-transformers`` and ``semhash`` beside pgembed,
it times their ``paraphrase_mining_embeddings`` and ``self_deduplicate`` on the same vectors.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.pool import NullPool

from pgembed import HNSW, Encoder, duplicate_groups, keep_list, match, near_duplicates, suggest_threshold
from pgembed.columns.guards import CreateGuard
from pgembed.columns.types import VectorType
from pgembed.database import embedded, install
from pgembed.encoders import packaged
from pgembed.exc import DuplicateMeaningError
from pgembed.indexes import create

DIMENSIONS = 384
LEAST = 0.9


def items(name: str, *indexes: Any) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("body", Text),
        Column("vector", VectorType(DIMENSIONS)),
        *indexes,
    )


def fill(connection: Connection, table: Table, vectors: Iterable[Any]) -> None:
    table.create(connection)
    rows = [{"id": key, "vector": vector} for key, vector in enumerate(vectors)]
    for start in range(0, len(rows), 5000):
        connection.execute(insert(table), rows[start : start + 5000])
    connection.execute(text(f"ANALYZE {table.name}"))


def timed(connection: Connection, what: str, work: Callable[[], Any]) -> Any:
    """Run it, and print how long it took, and the processor time of this process and of its session."""
    backend = connection.scalar(text("SELECT pg_backend_pid()"))

    def cpu() -> float:
        ticks = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[11:13]
        return time.process_time() + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    start, spent = time.perf_counter(), cpu()
    done = work()
    print(f"{what:<58} {time.perf_counter() - start:8.2f} s {cpu() - spent:8.2f} s of CPU", flush=True)
    return done


def f1(found: int, right: int, every: int) -> str:
    precision, recall = right / max(found, 1), right / every
    return f"precision {precision:.3f}, recall {recall:.3f}, F1 {200 * right / (found + every):.1f}"


def mrpc(connection: Connection, folder: Path, encoder: Encoder) -> None:
    """The threshold of the training pairs, on the test pairs."""
    pairs: dict[str, list[tuple[int, int, bool]]] = {}
    sentences: list[str] = []
    for part in ("train", "test"):
        lines = (folder / f"msr_paraphrase_{part}.txt").read_text(encoding="utf-8-sig").splitlines()[1:]
        fields = [line.split("\t") for line in lines]
        pairs[part] = []
        for same, _, _, one, other in fields:
            pairs[part].append((len(sentences), len(sentences) + 1, same == "1"))
            sentences += [one, other]
    table = items("sentence")
    fill(connection, table, encoder.encode_documents(sentences))
    for wished in (None, 0.8):
        found = suggest_threshold(connection, table.c.vector, pairs["train"], precision=wished)
        what = "best F1" if wished is None else f"precision {wished}"
        print(f"{what} on training: {found}")
        scores = {
            (left, right): score
            for left, right, score in connection.execute(
                near_duplicates(table.c.vector, min_score=found.min_score)
            )
        }
        test = pairs["test"]
        hits = [same for left, right, same in test if (left, right) in scores]
        print("  on test:", f1(len(hits), sum(hits), sum(same for *_, same in test)))
    best = suggest_threshold(connection, table.c.vector, pairs["test"])
    print(f"best F1 on test itself: {100 * best.f1 if best.f1 else 0:.1f} at {best.min_score:.3f}")
    print(f"guess without labels: {suggest_threshold(connection, table.c.vector).min_score:.3f}")


def abt_buy(connection: Connection, folder: Path, encoder: Encoder) -> None:
    """Products of two shops: every other one is for training, which decides min_score."""
    tables, ids = [], []
    for name in ("Abt", "Buy"):
        with (folder / f"AbtBuy_{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = items(name.lower())
        fill(connection, table, encoder.encode_documents([row["title"] for row in rows]))
        tables.append(table)
        ids.append([row["unique_id"] for row in rows])
    left, right = (table.c.vector for table in tables)
    every = sum(one == other for one in ids[0] for other in ids[1])
    for options in ({}, {"margin": 0.0}):
        rows = timed(
            connection,
            f"match {options or ''}",
            lambda options=options: connection.execute(match(left, right, **options)).all(),
        )
        value = "margin" if options else "score"
        labelled = [(getattr(row, value), ids[0][row.left_key] == ids[1][row.right_key], row) for row in rows]
        print("  all:", f1(len(rows), sum(same for _, same, _ in labelled), every))
        training = sorted((v, same) for v, same, row in labelled if row.left_key % 2 == 0)
        true = [sum(a == b for a in ids[0][part::2] for b in ids[1]) for part in (0, 1)]
        least = max(
            (v for v, _ in training),
            key=lambda v: (
                sum(s for x, s in training if x >= v) / (sum(x >= v for x, _ in training) + true[0])
            ),
        )
        kept = [same for v, same, row in labelled if row.left_key % 2 and v >= least]
        print(
            f"  {value} >= {least:.3f} (of one half), on the other half:", f1(len(kept), sum(kept), true[1])
        )


def planted(connection: Connection, rows: int, *, peers: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, DIMENSIONS)).astype(np.float32)
    copies, near = rows // 20, rows // 10
    vectors[:copies] = vectors[rows - copies :]
    noise = rng.standard_normal((near, DIMENSIONS)) * rng.uniform(0.05, 0.45, (near, 1))
    vectors[copies : copies + near] = vectors[rows - copies - near : rows - copies] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = items("item", HNSW("vector"))
    timed(connection, "rows written", lambda: fill(connection, table, vectors))
    timed(connection, "index built", lambda: create(connection, table.c.vector))
    expected = set()
    for start in range(0, rows, 2000):
        a, b = np.nonzero(vectors[start : start + 2000] @ vectors.T >= LEAST)
        expected |= {(int(x) + start, int(y)) for x, y in zip(a, b, strict=True) if x + start < y}
    columns = ("left_key", "right_key", "score")
    pair = Table(
        "pair", MetaData(), Column("left_key", Integer), Column("right_key", Integer), Column("score", Float)
    )
    pair.create(connection)
    statement = near_duplicates(table.c.vector, min_score=LEAST)
    timed(
        connection,
        "near_duplicates into a table",
        lambda: connection.execute(insert(pair).from_select(columns, statement)),
    )
    found = {(a, b) for a, b, _ in connection.execute(select(pair))}
    recall, wrong = len(found & expected) / len(expected), len(found - expected)
    print(f"  {len(found)} pairs, recall {recall:.4f}, wrong {wrong}")
    for helper in (duplicate_groups, keep_list):
        made = helper(table.c.vector, min_score=LEAST, pairs=pair)
        timed(
            connection,
            f"{helper.__name__} of the stored pairs",
            lambda made=made: connection.execute(made).all(),
        )
    if peers:
        paraphrase_mining(connection, table, pair, expected)
        semhash(connection, table)


def read(connection: Connection, table: Table) -> Any:
    rows = connection.execute(select(table.c.id, table.c.vector).order_by(table.c.id)).all()
    return np.stack([row.vector for row in rows])


def paraphrase_mining(
    connection: Connection, table: Table, pair: Table, expected: set[tuple[int, int]]
) -> None:
    from sentence_transformers.util import paraphrase_mining_embeddings

    def work() -> list[Any]:
        connection.execute(pair.delete())
        mined = paraphrase_mining_embeddings(read(connection, table), top_k=10, max_pairs=1_000_000)
        rows = [
            {"left_key": min(a, b), "right_key": max(a, b), "score": float(score)}
            for score, a, b in mined
            if score >= LEAST
        ]
        connection.execute(insert(pair), rows)
        return rows

    rows = timed(connection, "sentence-transformers' paraphrase_mining, read and written", work)
    found = {(row["left_key"], row["right_key"]) for row in rows}
    print(f"  {len(found)} pairs, recall {len(found & expected) / len(expected):.4f}")


def semhash(connection: Connection, table: Table) -> None:
    from semhash import SemHash

    class Given:
        """An encoder that looks vectors up by the texts, which are their numbers."""

        def __init__(self) -> None:
            self.vectors = read(connection, table)

        def encode(self, texts: list[str], **_: Any) -> Any:
            return self.vectors[[int(words) for words in texts]]

    def work() -> Any:
        model = Given()
        numbers = [str(n) for n in range(len(model.vectors))]
        result = SemHash.from_records(records=numbers, model=model).self_deduplicate(threshold=LEAST)
        connection.execute(text("CREATE TABLE kept (id integer)"))
        connection.execute(text("INSERT INTO kept VALUES (:id)"), [{"id": int(n)} for n in result.selected])
        return result

    result = timed(connection, "semhash's self_deduplicate, read and written", work)
    print(f"  {len(result.selected)} rows kept")


def graph(connection: Connection, sizes: Iterable[int] = (100_000, 1_000_000)) -> None:
    """Groups and keep lists of stored pairs."""
    chain, many = sizes
    rng = np.random.default_rng(0)
    for name, count, edges in (
        (f"sorted chain of {chain:,}", chain, np.stack([np.arange(chain - 1), np.arange(1, chain)], axis=1)),
        (f"{many:,} random edges of {many:,} rows", many, rng.integers(0, many, (many, 2))),
    ):
        connection.execute(text("DROP TABLE IF EXISTS edge, item"))
        connection.execute(
            text(
                rf"CREATE TABLE item AS SELECT n AS id, NULL\:\:vector({DIMENSIONS}) AS vector "
                f"FROM generate_series(0, {count - 1}) AS n"
            )
        )
        connection.execute(text("ALTER TABLE item ADD PRIMARY KEY (id)"))
        connection.execute(text("CREATE TABLE edge (left_key integer, right_key integer, score float)"))
        arrays = {"a": edges.min(axis=1).tolist(), "b": edges.max(axis=1).tolist()}
        connection.execute(
            text(
                "INSERT INTO edge SELECT a, b, 0.95 "
                "FROM unnest(CAST(:a AS integer[]), CAST(:b AS integer[])) "
                "AS e (a, b) WHERE a <> b"
            ),
            arrays,
        )
        connection.execute(text("ANALYZE item, edge"))
        edge = Table(
            "edge",
            MetaData(),
            Column("left_key", Integer),
            Column("right_key", Integer),
            Column("score", Float),
        )
        vector = items("item").c.vector
        for what, made in (
            ("duplicate_groups", duplicate_groups(vector, min_score=LEAST, pairs=edge)),
            ("keep_list", keep_list(vector, min_score=LEAST, pairs=edge)),
        ):
            timed(connection, f"{what}, {name}", lambda made=made: connection.execute(made).all())


def guard(engine: Engine, seconds: float, writers: int = 20) -> None:
    """Rows of random vectors, every fourth a copy of one of 50, from many writers, one in a transaction."""
    copies = np.random.default_rng(0).standard_normal((50, DIMENSIONS), dtype=np.float32)
    for what in ("without a guard", "with one"):
        table = Table(
            "guarded",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("vector", VectorType(DIMENSIONS)),
        )
        with engine.begin() as connection:
            table.drop(connection, checkfirst=True)
            table.create(connection)
            if what == "with one":
                connection.execute(CreateGuard(table, "vector", (), LEAST, "cosine"))
        end = time.perf_counter() + seconds

        def write(seed: int, table: Table = table, end: float = end) -> tuple[int, int]:
            rng, written, refused = np.random.default_rng(seed), 0, 0
            while time.perf_counter() < end:
                fresh = rng.standard_normal(DIMENSIONS, dtype=np.float32)
                vector = copies[rng.integers(50)] if rng.integers(4) == 0 else fresh
                try:
                    with engine.begin() as connection:
                        connection.execute(insert(table), {"vector": vector})
                    written += 1
                except DuplicateMeaningError:
                    refused += 1
            return written, refused

        with ThreadPoolExecutor(writers) as pool:
            counts = list(pool.map(write, range(1, writers + 1)))
        written, refused = map(sum, zip(*counts, strict=True))
        print(
            f"{writers} writers, {what}: {written / seconds:.0f} inserts/s ({written} rows), "
            f"{refused / seconds:.0f} refused/s",
            flush=True,
        )
    # Of the guarded rows alone: without a guard there are far more, and their pairs take hours to compare.
    within = "SELECT count(*) FROM guarded AS a JOIN guarded AS b ON a.id < b.id AND "
    with engine.connect() as connection:
        pairs = connection.scalar(text(within + "a.vector <=> b.vector <= :most"), {"most": 1 - LEAST})
    print(f"{pairs} pairs within {LEAST} of those with one")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["mrpc", "abt-buy", "planted", "graph", "guard"])
    parser.add_argument("argument", nargs="?", help="the folder, the number of rows, or seconds")
    parser.add_argument("--peers", action="store_true", help="sentence-transformers and semhash too")
    parser.add_argument("--shared-buffers", help="the server's memory for pages, such as 1GB")
    parser.add_argument("--encoder", help="a folder; all-MiniLM-L6-v2 otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder:
        if options.shared_buffers:
            with embedded(Path(folder) / "data") as url:
                set_shared_buffers(create_engine(url, poolclass=NullPool), options.shared_buffers)
        with embedded(Path(folder) / "data") as url:
            run(url, options)


def set_shared_buffers(engine: Engine, size: str) -> None:
    """From the server's next start on."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER SYSTEM SET shared_buffers = '{size}'"))


def run(url: URL, options: argparse.Namespace) -> None:
    engine = create_engine(url, pool_size=20)
    with engine.begin() as connection:
        install(connection)
    if options.task == "guard":
        guard(engine, float(options.argument or 60))
        engine.dispose()
        return
    with engine.begin() as connection:
        if options.task == "planted":
            planted(connection, int(options.argument or 100_000), peers=options.peers)
        elif options.task == "graph":
            graph(connection)
        else:
            with Encoder(options.encoder or packaged("all-MiniLM-L6-v2")) as encoder:
                task = mrpc if options.task == "mrpc" else abt_buy
                task(connection, Path(options.argument), encoder)
    engine.dispose()


if __name__ == "__main__":
    main()
