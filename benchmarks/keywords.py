"""Searches by words on many rows: how long they take, and whether they find what full BM25 finds.

Usage::

    python benchmarks/keywords.py FILE [FILE ...] [--rows 100000] [--writers 8]

``FILE`` holds real sentences, one a line (or a cell of tab-separated columns). Rows are made of some of them
each, drawn at random. For questions of several kinds it prints the median time of ``keyword_search``, of BM25
over all rows that have any of the words, and of ``ts_rank_cd`` over those; and how many of the first ten rows
of full BM25 ``keyword_search`` finds. Then it prints what inserting rows costs with the statistics beside the
same with a generated tsvector and its GIN index alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Vector, Words, constants, embedding_column, keyword_search
from pgembed.database import embedded, install
from pgembed.filling import refresh_words
from pgembed.testing import HashEncoder


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[Vector | None] = embedding_column(
        "body", encoder=HashEncoder(8), fill="worker", words=Words("body")
    )


def sentences(files: list[Path]) -> list[str]:
    """The different texts of more than three words."""
    cells = (
        cell.replace("\0", " ").strip()
        for file in files
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for cell in line.split("\t")
    )
    return list(dict.fromkeys(cell for cell in cells if len(cell.split()) > 3))


def questions(session: Session, texts: list[str]) -> dict[str, list[str]]:
    """Questions of some kinds: real ones, and words by how many rows have them."""
    rows: int = session.scalar(text("SELECT rows FROM document_embedding_words WHERE lexeme = ''")) or 0

    def having(least: float, most: float) -> list[str]:
        found = text(
            "SELECT lexeme FROM document_embedding_words WHERE rows BETWEEN :a AND :b AND lexeme <> ''"
        )
        return list(session.scalars(found, {"a": least * rows, "b": most * rows}))

    often, middling, rare = having(0.1, 1), having(0.01, 0.1), having(0.00005, 0.002)
    real = [each for each in texts if 8 <= len(each.split()) <= 12]
    kinds: dict[str, Callable[[], list[str]]] = {
        "3 rare words": lambda: random.sample(rare, 3),
        "3 mixed": lambda: [random.choice(kind) for kind in (often, middling, rare)],
        "8 mixed": lambda: random.sample(often, 3) + random.sample(middling, 3) + random.sample(rare, 2),
        "12 mixed": lambda: random.sample(often, 6) + random.sample(middling, 4) + random.sample(rare, 2),
        "3 frequent words": lambda: random.sample(often, 3),
        "sentences of 8 to 12 words": lambda: [random.choice(real)],
    }
    return {name: [" ".join(make()) for _ in range(30)] for name, make in kinds.items()}


def search(session: Session, texts: list[str]) -> None:
    """Time and agreement of each kind of question."""
    usual = constants.WORDS_PER_ROW
    plain = text(
        "SELECT id FROM document, CAST(replace(CAST(plainto_tsquery('english', :q) AS text), '&', '|') AS "
        "tsquery) AS asked WHERE embedding_words @@ asked "
        "ORDER BY ts_rank_cd(embedding_words, asked) DESC, id LIMIT 10"
    )
    print(f"{'':28} {'keyword_search':>15} {'full BM25':>10} {'ts_rank_cd':>11} {'first 10':>9}")
    for kind, asked in questions(session, texts).items():
        times: dict[str, list[float]] = {"ours": [], "full": [], "ts_rank_cd": []}
        shared = []
        for question in asked:
            found = {}
            for name in times:
                constants.WORDS_PER_ROW = 10**12 if name == "full" else usual
                # Of a condition, so that what was built with the other constant is not taken.
                where = None if name == "ours" else Document.id >= 0
                statement: Any = keyword_search(
                    Document.embedding, question, base=select(Document.id), where=where
                )
                if name == "ts_rank_cd":
                    statement = plain.bindparams(q=question)
                session.scalars(statement).all()
                started = time.perf_counter()
                found[name] = session.scalars(statement).all()
                times[name].append(1000 * (time.perf_counter() - started))
            if found["full"]:
                shared.append(len({*found["ours"]} & {*found["full"]}) / len(found["full"]))
        constants.WORDS_PER_ROW = usual
        medians = [statistics.median(each) for each in times.values()]
        print(
            f"{kind:28} {medians[0]:12.0f} ms {medians[1]:7.0f} ms {medians[2]:8.0f} ms "
            f"{statistics.mean(shared):9.3f}"
        )


def write(engine: Engine, texts: list[str], writers: int) -> None:
    """Rows inserted by several writers at once, one row a transaction."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE plain (id int PRIMARY KEY, body text NOT NULL, "
                "words tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED)"
            )
        )
        connection.execute(text("CREATE INDEX ON plain USING gin (words)"))
    first = 10_000_000

    def seconds(table: str, start: int) -> float:
        def work(writer: int) -> None:
            with engine.connect() as connection:
                for n in range(100):
                    key = start + writer * 1000 + n
                    connection.execute(
                        text(f"INSERT INTO {table} (id, body) VALUES (:id, :body)"),
                        {"id": key, "body": " ".join(texts[(key + m) % len(texts)] for m in range(6))},
                    )
                    connection.commit()

        threads = [threading.Thread(target=work, args=(writer,)) for writer in range(writers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    ratios = []
    for turn in range(5):
        start = first + turn * 1_000_000
        ratios.append(seconds("document", start) / seconds("plain", start))
    print(
        f"inserts by {writers} writers, beside a generated tsvector and GIN: "
        f"{statistics.median(ratios):.2f} times"
    )


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=8)
    arguments = parser.parse_args()
    random.seed(1)
    texts = sentences(arguments.files)
    with tempfile.TemporaryDirectory(prefix="pgembed-") as folder, embedded(Path(folder) / "data") as url:
        engine = create_engine(url, pool_size=arguments.writers)
        with engine.begin() as connection:
            install(connection)
            Base.metadata.create_all(connection)
            for start in range(0, arguments.rows, 10_000):
                rows = [
                    {"id": start + n, "body": " ".join(random.sample(texts, random.randrange(3, 14)))}
                    for n in range(min(10_000, arguments.rows - start))
                ]
                connection.execute(insert(Document.__table__), rows)
            found = refresh_words(connection, Document.embedding)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        print(f"{found.rows:,} rows of {found.mean_length:.0f} words, {found.words:,} different ones")
        with Session(engine) as session:
            search(session, texts)
        write(engine, texts, arguments.writers)
        engine.dispose()


if __name__ == "__main__":
    main()
