"""What filling costs beside what it cannot do without: ratios, each of two things done in one run.

Usage::

    python benchmarks/filling.py [--encoder FOLDER] [--texts 2000] [--rows 1000000] [--dimensions 384]
                                 [--rounds 3] [PART ...]

flush      a flush of 1,000 objects, beside encoding the same texts and a plain insert of the same rows
backfill   a backfill without an ANN index, beside the encoder alone on the same texts
bulk       a backfill with an encoder that costs nothing, beside a plain UPDATE from a COPYed table; memory
unrelated  updates of another column, with and without an HNSW index, with and without room for HOT

It starts the embedded server on a temporary folder. Rounds are interleaved; medians are printed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from sqlalchemy import Engine, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Encoder, Vector, embedding_column, indexes
from pgembed.columns import Array, bound
from pgembed.database import embedded, install
from pgembed.encoders import packaged
from pgembed.filling import backfill
from pgembed.indexes import HNSW
from pgembed.testing import HashEncoder


class Free(HashEncoder):
    """Vectors at no cost."""

    def encode_documents(self, texts: Sequence[str]) -> Array:
        return np.full((len(texts), self.dimensions), 0.5, dtype=np.float32)


def article(encoder: Any, **options: Any) -> Any:
    """A class with an embedding, in a metadata of its own."""

    class Base(DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        views: Mapped[int] = mapped_column(default=0)
        embedding: Mapped[Vector | None] = embedding_column("title", encoder=encoder, **options)

    return Article


@contextmanager
def created(engine: Engine, model: Any) -> Iterator[None]:
    model.metadata.create_all(engine)
    try:
        yield
    finally:
        model.metadata.drop_all(engine)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def shown(name: str, ours: list[float], others: list[float], unit: str = "s") -> None:
    a, b = statistics.median(ours), statistics.median(others)
    print(f"{name:58} {a:9.3f} {unit} beside {b:9.3f} {unit}, ratio {a / b:.3f}")


def flush(engine: Engine, encoder: Any, options: argparse.Namespace) -> None:
    """At most 1.05: the flush adds little to the encoder and to the insert."""
    texts = corpus.short(1000)
    model = article(encoder)
    encoder.encode_documents(texts)
    embedding = bound(model.__table__.c.embedding)
    assert embedding is not None
    ours, parts = [], []
    for _ in range(options.rounds):
        with created(engine, model), Session(engine) as session:
            session.add_all(model(title=one) for one in texts)
            ours.append(seconds(session.commit))

        def plain() -> None:
            vectors = encoder.encode_documents(texts)
            digests = [embedding.declaration.digest((one,)) for one in texts]
            rows = [
                {"title": one, "views": 0, "embedding": vector, "embedding_digest": digest}
                for one, vector, digest in zip(texts, vectors, digests, strict=True)
            ]
            with engine.begin() as connection:
                connection.execute(insert(model.__table__).returning(model.__table__.c.id), rows)

        with created(engine, model):
            parts.append(seconds(plain))
    shown("flush of 1,000 objects beside encoding and a plain insert", ours, parts)


def fill(engine: Engine, encoder: Any, options: argparse.Namespace) -> None:
    """At most 1.05: a backfill goes at 95 % or more of the encoder's own speed."""
    texts = corpus.mixed(options.texts)
    model = article(encoder)
    encoder.encode_documents(texts[:64])
    ours, alone = [], []
    for _ in range(options.rounds):
        alone.append(seconds(lambda: encoder.encode_documents(texts)))
        with created(engine, model):
            with engine.begin() as connection:
                connection.execute(insert(model.__table__), [{"title": one, "views": 0} for one in texts])
            ours.append(seconds(lambda: backfill(engine, model.embedding)))
    shown(f"backfill of {len(texts):,} rows beside the encoder alone", ours, alone)


def bulk(engine: Engine, _encoder: Any, options: argparse.Namespace) -> None:
    """At most 3: a third of the rows a second of a plain UPDATE."""
    model = article(Free(options.dimensions))
    embedding = bound(model.__table__.c.embedding)
    assert embedding is not None
    wanted = embedding.wanted().compile(engine, compile_kwargs={"literal_binds": True})
    ours, plain = [], []

    def update() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE article SET embedding = v.e, embedding_digest = {wanted} "
                "FROM vectors AS v WHERE v.id = article.id"
            )

    with created(engine, model):
        for _ in range(max(options.rounds // 3, 1)):
            with engine.begin() as connection:
                connection.execute(text("TRUNCATE article"))
                connection.execute(text("DROP TABLE IF EXISTS vectors"))
                connection.execute(
                    text(
                        "INSERT INTO article (id, title, views) SELECT i, 'a title of some words ' || i, 0 "
                        "FROM generate_series(1, :rows) AS i"
                    ),
                    {"rows": options.rows},
                )
                connection.execute(text(f"CREATE TABLE vectors (id bigint, e vector({options.dimensions}))"))
                raw = connection.connection.driver_connection
                vector = "[" + ",".join(["0.5"] * options.dimensions) + "]"
                with raw.cursor().copy("COPY vectors FROM STDIN") as copy:
                    for first in range(1, options.rows + 1, 1000):
                        numbers = range(first, min(first + 1000, options.rows + 1))
                        copy.write("".join(f"{number}\t{vector}\n" for number in numbers))
            _vacuum(engine)
            ours.append(seconds(lambda: backfill(engine, model.embedding)))
            with engine.begin() as connection:
                connection.execute(text("UPDATE article SET embedding = NULL, embedding_digest = NULL"))
            _vacuum(engine, full=True)
            plain.append(seconds(update))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS vectors"))
    shown(f"backfill of {options.rows:,} rows beside a plain UPDATE", ours, plain)
    print(f"{'':58} {options.rows / statistics.median(ours):9,.0f} rows/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'most memory of this process':58} {peak:9.0f} MB")


def unrelated(engine: Engine, _encoder: Any, options: argparse.Namespace) -> None:
    """What updates of a column that is not a source cost: alone, and 1,000 rows by one statement.

    A vector of 384 dimensions is stored in its row, five rows a page; one of 1,024 is stored out of line.
    """
    cases = [
        ("no vector index", 100, False),
        ("HNSW", 100, False),
        ("HNSW, fillfactor 80", 80, False),
        ("HNSW, fillfactor 45", 45, False),
        ("HNSW, fillfactor 45, an index on what changes", 45, True),
    ]
    for dimensions in (384, 1024):
        model = article(HashEncoder(dimensions), index=HNSW())
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, fillfactor, indexed in cases:
                with created(engine, model):
                    with engine.begin() as connection:
                        connection.execute(text(f"ALTER TABLE article SET (fillfactor = {fillfactor})"))
                        titles = [{"title": f"title {i}", "views": 0} for i in range(2000)]
                        connection.execute(insert(model.__table__), titles)
                    backfill(engine, model.embedding)
                    _vacuum(engine, full=True)
                    with engine.begin() as connection:
                        if name.startswith("HNSW"):
                            indexes.create(connection, model.embedding)
                        if indexed:
                            connection.execute(text("CREATE INDEX ON article (views)"))
                    _vacuum(engine)
                    engine.dispose()  # connections hand in their statistics when they end
                    for way, updates in _UPDATES.items():
                        taken.setdefault((way, name), []).append(_updated(engine, updates))
        for (way, name), found in taken.items():
            median = statistics.median(time for time, _ in found)
            plain = statistics.median(time for time, _ in taken[way, "no vector index"])
            print(
                f"{dimensions} d, {way}: {name}".ljust(72),
                f"{median:6.3f} ms an update, {median / plain:5.1f} times, {found[-1][1]:4.0%} HOT",
            )


#: 1,000 updates each, of different halves of the table.
_UPDATES = {
    "one a transaction": """
DO $$ BEGIN
  FOR i IN 1 .. 1000 LOOP
    SET LOCAL synchronous_commit = off;
    UPDATE article SET views = views + 1 WHERE id = 1 + mod(i * 7919, 1000);
    COMMIT;
  END LOOP;
END $$
""",
    "one statement": "UPDATE article SET views = views + 1 WHERE id > 1000",
}


def _updated(engine: Engine, updates: str) -> tuple[float, float]:
    """Milliseconds that one update took, and the share of them that were HOT."""
    figures = text("SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'article'")
    with engine.connect() as connection:
        before = connection.execute(figures).one()
    taken = seconds(lambda: _autocommit(engine, updates))
    engine.dispose()
    with engine.connect() as connection:
        after = connection.execute(figures).one()
    return taken, (after[0] - before[0]) / (after[1] - before[1])


def _autocommit(engine: Engine, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)


def _vacuum(engine: Engine, *, full: bool = False) -> None:
    _autocommit(engine, f"VACUUM ({'FULL, ' if full else ''}ANALYZE) article")


PARTS = {"flush": flush, "backfill": fill, "bulk": bulk, "unrelated": unrelated}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--encoder", type=Path, help="an encoder's folder; by default all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384, help="of the vectors that cost nothing")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.encoder or packaged("all-MiniLM-L6-v2", into=Path(__file__).parents[1] / ".encoders")
    with (
        tempfile.TemporaryDirectory() as data,
        embedded(Path(data) / "data") as url,
        Encoder(folder) as encoder,
    ):
        engine = create_engine(url)
        with engine.begin() as connection:
            install(connection)
        for name in options.parts or PARTS:
            PARTS[name](engine, encoder, options)
        engine.dispose()


if __name__ == "__main__":
    main()
