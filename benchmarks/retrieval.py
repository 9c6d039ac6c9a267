"""Retrieval with relevance judgements, through the ORM: vectors, words, and both fused.

Usage::

    python benchmarks/retrieval.py cranfield FOLDER     # cran.all.1400, cran.qry, cranqrel
    python benchmarks/retrieval.py abt-buy FOLDER       # AbtBuy_Abt.csv, AbtBuy_Buy.csv: the same product
    python benchmarks/retrieval.py mrpc FOLDER          # msr_paraphrase_*.txt: the paraphrase of a sentence

None of the data is shipped. It prints nDCG@10 and milliseconds for each query (the encoder's time apart), and
checks that semantic search ranks as an exact search with numpy does, and BM25 as bm25s does over the same
tokens (``pip install bm25s``). The queries of Cranfield are numbered by their order in the file, and all
listed pairs are relevant.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Encoder, Vector, Words, embedding_column, hybrid_search, keyword_search, semantic_search
from pgembed.columns import bound
from pgembed.database import embedded, install
from pgembed.encoders import packaged
from pgembed.filling import refresh_words

#: Documents, queries, and the documents that are relevant to each query.
Task = tuple[list[str], list[str], list[set[int]]]


def fields(file: Path, field: str) -> list[str]:
    """One field of each record of a file of Cranfield's."""
    records = re.split(r"^\.I .*\n", file.read_text(), flags=re.MULTILINE)[1:]
    found = (re.search(rf"^\.{field}\n(.*?)(?=^\.[A-Z]\n|\Z)", each, re.S | re.M) for each in records)
    return [" ".join(each[1].split()) if each else "" for each in found]


def cranfield(folder: Path) -> Task:
    """Abstracts and questions of aerodynamics."""

    documents, queries = fields(folder / "cran.all.1400", "W"), fields(folder / "cran.qry", "W")
    relevant: list[set[int]] = [set() for _ in queries]
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, *_ = map(int, line.split())
        relevant[query - 1].add(document - 1)
    return documents, queries, relevant


def abt_buy(folder: Path) -> Task:
    """The products of one shop, by the names of another one."""

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / f"AbtBuy_{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    abt, buy = rows("Abt"), rows("Buy")
    same = defaultdict(set)
    for place, row in enumerate(abt):
        same[row["unique_id"]].add(place)
    asked = [row for row in buy if row["unique_id"] in same]
    documents = [f"{row['title']} {row['description']}".strip() for row in abt]
    return documents, [row["title"] for row in asked], [same[row["unique_id"]] for row in asked]


def mrpc(folder: Path) -> Task:
    """The second sentences of all pairs, by the first ones of the paraphrases."""
    pairs = []
    for name in ("train", "test"):
        lines = (folder / f"msr_paraphrase_{name}.txt").read_text(encoding="utf-8-sig").splitlines()[1:]
        pairs += [line.split("\t") for line in lines]
    documents = list(dict.fromkeys(pair[4] for pair in pairs))
    place = {document: number for number, document in enumerate(documents)}
    relevant: dict[str, set[int]] = defaultdict(set)
    for quality, _, _, first, second in pairs:
        if quality == "1":
            relevant[first].add(place[second])
    queries = list(relevant)[:500]
    return documents, queries, [relevant[query] for query in queries]


def gain(ranking: list[int], relevant: set[int]) -> float:
    """nDCG@10 of binary relevance."""
    best = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))))
    return sum(1 / math.log2(rank + 2) for rank, key in enumerate(ranking[:10]) if key in relevant) / best


def measure(engine: Engine, task: Task, encoder: Any) -> None:
    """Load, search, print."""

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding: Mapped[Vector | None] = embedding_column("body", encoder=encoder, words=Words("body"))

    documents, queries, relevant = task
    Base.metadata.create_all(engine)
    vectors = encoder.encode_documents(documents)
    declaration = bound(Document.__table__.c.embedding).declaration  # type: ignore[union-attr]
    with Session(engine) as session:
        rows = [
            {"id": n, "body": body, "embedding": vector, "embedding_digest": declaration.digest([body])}
            for n, (body, vector) in enumerate(zip(documents, vectors, strict=True))
        ]
        session.execute(insert(Document.__table__), rows)
        refresh_words(session.connection(), Document.embedding)
        session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    asked = encoder.encode_queries(queries)
    with Session(engine) as session:
        _check(session, queries, asked, vectors, Document)
        either = "websearch_to_tsquery('english', replace(:q, ' ', ' or '))"
        column, base = Document.embedding, select(Document.id)
        plain = text(
            f"SELECT id FROM document, {either} AS asked WHERE embedding_words @@ asked "
            "ORDER BY ts_rank_cd(embedding_words, asked) DESC, id LIMIT 10"
        )

        def hybrid(**options: Any) -> Callable[[int], Any]:
            return lambda n: hybrid_search(column, asked[n], terms=queries[n], base=base, **options)

        contestants: dict[str, Callable[[int], Any]] = {
            "semantic_search": lambda n: semantic_search(column, asked[n], base=base),
            "ts_rank_cd": lambda n: plain.bindparams(q=queries[n]),
            "ts_rank(..., 1)": lambda n: keyword_search(
                column, queries[n], text=Document.__table__.c.embedding_words, base=base
            ),
            "keyword_search (BM25)": lambda n: keyword_search(column, queries[n], base=base),
            "hybrid_search": hybrid(),
            "hybrid_search, weighted": hybrid(fusion="weighted"),
            "hybrid_search without words=": hybrid(text=Document.__table__.c.embedding_words),
        }
        print(f"{len(documents):,} documents, {len(queries)} queries")
        gains = {name: [0.0] * len(queries) for name in contestants}
        times = {name: [0.0] * len(queries) for name in contestants}
        for n in range(-10, len(queries)):  # in turn, and some before it counts
            for name, contestant in contestants.items():
                started = time.perf_counter()
                ranking = session.scalars(contestant(n)).all()
                times[name][n] = time.perf_counter() - started
                gains[name][n] = gain(list(ranking), relevant[n])
        for name in contestants:
            print(f"{name:30} {100 * np.mean(gains[name]):6.1f} {1000 * np.median(times[name]):6.1f} ms")


def _check(session: Session, queries: list[str], asked: Any, vectors: Any, document: Any) -> None:
    """
    :raises AssertionError: a leg ranks otherwise than its reference.
    """
    import bm25s

    tokens: list[list[str]] = [[] for _ in vectors]
    for key, lexeme, count in session.execute(
        text("SELECT id, lexeme, cardinality(positions) FROM document, unnest(embedding_words)")
    ):
        tokens[key] += [lexeme] * count
    reference = bm25s.BM25(method="lucene", k1=1.2, b=0.75, dtype="float64")
    reference.index(tokens, show_progress=False)
    read = text(
        "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', "
        "translate(:q, '/.-_@:~+<>&', '           ')))"
    )
    largest = 0.0
    for query, vector in zip(queries, asked, strict=True):
        lexemes = [each for each, count in session.execute(read, {"q": query}) for _ in range(count)]
        known = [each for each in lexemes if each in reference.vocab_dict]
        scores = reference.get_scores(known) if known else np.zeros(len(tokens))
        rows = session.execute(keyword_search(document.embedding, query, base=select(document.id))).all()
        best = np.sort(scores)[::-1][: len(rows)]
        largest = max([largest, *(abs(row.score - scores[row.id]) for row in rows)])
        assert np.allclose([row.score for row in rows], best, atol=1e-4), query
        exact = np.sort(vectors.astype(np.float64) @ vector.astype(np.float64))[::-1][:10]
        rows = session.execute(semantic_search(document.embedding, vector, base=select(document.id))).all()
        assert np.allclose([row.score for row in rows], exact, atol=5e-4), query
    print(f"semantic_search equals numpy; keyword_search equals bm25s, to {largest:.0e}")


def main() -> None:
    """Measure and print."""
    tasks = {"cranfield": cranfield, "abt-buy": abt_buy, "mrpc": mrpc}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tasks)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory(prefix="pgembed-") as folder,
        embedded(Path(folder) / "data") as url,
        Encoder(packaged("all-MiniLM-L6-v2")) as encoder,
    ):
        engine = create_engine(url)
        with engine.begin() as connection:
            install(connection)
        measure(engine, tasks[arguments.task](arguments.folder), encoder)
        engine.dispose()


if __name__ == "__main__":
    main()
