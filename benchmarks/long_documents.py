"""Retrieval of long documents: by their beginnings, by their parts, and by parts that know what is around.

Usage::

    python benchmarks/long_documents.py FOLDER [--max-tokens 128] [--shuffled]      # Cranfield's files
    python benchmarks/long_documents.py FOLDER --speed              # of filling, beside the encoder's own
    python benchmarks/long_documents.py FOLDER --megabytes 50       # memory for texts of 1 MB of pydoc's

None of the data is shipped. Twenty abstracts of Cranfield, each below its title, make a document; a query is
answered by each document that holds a relevant abstract. It prints nDCG@10 for

* the encoder's reading of the whole text, which ends at its limit,
* parts, the best of which says how near a document is,
* parts with the title that they stand below as context,
* late chunking over the same parts, in windows of the encoder's limit and of all its positions,

and checks that each search ranks documents as an exact computation with numpy does. Abstracts are in the
order of the collection, where neighbours have like subjects, or in any.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
import zlib
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from retrieval import cranfield, fields, gain
from sqlalchemy import create_engine, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgembed import Encoder, Vector, embedding_column, semantic_search
from pgembed.database import embedded, install
from pgembed.encoders import packaged
from pgembed.filling import backfill
from pgembed.parts import embedding_parts, parts_of

ABSTRACTS = 20


def documents(folder: Path, *, shuffled: bool) -> tuple[list[str], list[str], list[set[int]]]:
    """Documents of abstracts below their titles, queries, and the documents that answer each."""
    abstracts, queries, relevant = cranfield(folder)
    titles = fields(folder / "cran.all.1400", "T")
    bodies = [
        f"# {title}\n\n{body.removeprefix(title).strip()}"  # which begins with its title
        for title, body in zip(titles, abstracts, strict=True)
    ]
    order = np.random.default_rng(1).permutation(len(bodies)) if shuffled else np.arange(len(bodies))
    place = {int(abstract): number // ABSTRACTS for number, abstract in enumerate(order)}
    made = [
        "\n\n".join(bodies[abstract] for abstract in order[start : start + ABSTRACTS])
        for start in range(0, len(order), ABSTRACTS)
    ]
    return made, queries, [{place[abstract] for abstract in each} for each in relevant]


def tables(encoder: Encoder, long: Encoder, max_tokens: int) -> Any:
    """The class of documents, with one column and four tables of parts."""

    class Base(DeclarativeBase):
        pass

    parts: dict[str, Any] = {
        "encoder": encoder,
        "format": "markdown",
        "max_tokens": max_tokens,
        "fill": "worker",
    }

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        whole: Mapped[Vector | None] = embedding_column("body", encoder=encoder)
        plain: Mapped[list[Any]] = embedding_parts("body", **parts)
        titled: Mapped[list[Any]] = embedding_parts("body", context="{heading}\n", **parts)
        late: Mapped[list[Any]] = embedding_parts("body", pooling="late", **parts)
        longer: Mapped[list[Any]] = embedding_parts("body", pooling="late", **parts | {"encoder": long})

    return Document


def table(engine: Any, encoder: Any) -> tuple[Any, Any]:
    """The class of documents with one table of parts, created, and these."""

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        parts: Mapped[list[Any]] = embedding_parts("body", encoder=encoder, fill="worker")

    Base.metadata.create_all(engine)
    return Document, parts_of(Document.parts)


def vectors_of(session: Session, attribute: Any, count: int) -> list[Any]:
    """The vectors of each document, as the table of parts has them."""
    found = parts_of(attribute)
    assert found is not None
    stored: list[Any] = [[] for _ in range(count)]
    for key, vector in session.execute(select(found.owner[0], found.parts.c.embedding)):
        stored[key].append(vector)
    return [np.array(each) for each in stored]


def ranked(session: Session, attribute: Any, key: Any, vectors: list[Any], asked: Any) -> list[int]:
    """The keys of the documents that a search finds.

    :raises AssertionError: the scores are not those of an exact computation.
    """
    rows = session.execute(semantic_search(attribute, asked, base=select(key))).all()
    scores = np.array([float((each @ asked).max()) for each in vectors])
    keys = [int(row[0]) for row in rows]
    found = [row.score for row in rows]
    assert len(set(keys)) == len(keys) == 10
    assert np.allclose(found, np.sort(scores)[::-1][:10], atol=1e-5)
    assert np.allclose(found, scores[keys], atol=1e-5)
    return keys


def measure(engine: Any, encoder: Encoder, long: Encoder, options: argparse.Namespace) -> None:
    """Load, search, print."""
    texts, queries, relevant = documents(options.folder, shuffled=options.shuffled)
    document = tables(encoder, long, options.max_tokens)
    document.metadata.create_all(engine)
    tokens = int(encoder.count_tokens(texts).sum())
    print(f"{len(texts)} documents of {tokens / len(texts):,.0f} tokens, {len(queries)} queries")
    asked = encoder.encode_queries(queries)
    assert np.allclose(asked, long.encode_queries(queries), atol=1e-5), "a query beyond the lower limit"
    limit = encoder.max_tokens
    contestants = {
        f"whole text, {limit} tokens of it": document.whole,
        f"parts of {options.max_tokens} tokens": document.plain,
        "parts with their titles": document.titled,
        f"late chunking, windows of {limit}": document.late,
        f"late chunking, windows of {long.max_tokens}": document.longer,
    }
    with Session(engine) as session:
        session.add_all(document(id=key, body=body) for key, body in enumerate(texts))
        session.commit()
        print(f"{'':36}{'nDCG@10':>8}{'parts':>8}")
        for name, attribute in contestants.items():
            if attribute is document.whole:
                rows = session.execute(select(document.id, attribute).order_by(document.id))
                vectors = [row[1][None] for row in rows]
            else:
                backfill(engine, attribute)
                vectors = vectors_of(session, attribute, len(texts))
            session.execute(text("ANALYZE"))
            session.commit()
            gains = [
                gain(ranked(session, attribute, document.id, vectors, query), answers)
                for query, answers in zip(asked, relevant, strict=True)
            ]
            print(f"{name:36}{100 * np.mean(gains):8.1f}{sum(map(len, vectors)):8}", flush=True)
    print("each search equals numpy")


def speed(engine: Any, encoder: Encoder, folder: Path) -> None:
    """Print how fast parts are filled, beside the encoder alone on the same parts, in turn."""
    texts = documents(folder, shuffled=False)[0][:16]
    document, bound = table(engine, encoder)
    with engine.begin() as connection:
        rows = [{"id": key, "body": body} for key, body in enumerate(texts)]
        connection.execute(insert(document.__table__), rows)
    filling = alone = 0.0
    parts = 0
    encoder.open()
    for start in range(0, len(texts), 4):
        started = time.perf_counter()
        backfill(engine, document.parts, where=document.id.between(start, start + 3))
        filling += time.perf_counter() - started
        encoded = [cut.encoded for body in texts[start : start + 4] for cut in bound.declaration.cut([body])]
        started = time.perf_counter()
        encoder.encode_documents(encoded)
        alone += time.perf_counter() - started
        parts += len(encoded)
    print(
        f"{parts} parts of {encoder.max_tokens} tokens at most: filled at {parts / filling:.1f} a second, "
        f"{alone / filling:.0%} of the encoder's own {parts / alone:.1f}"
    )


class Checksums:
    """An encoder that costs nothing beside the tokenizer of a real one: vectors are made of checksums."""

    name, dimensions, fingerprint = "checksums", 384, "checksums"

    def __init__(self, tokenizer: Encoder) -> None:
        self.max_tokens = tokenizer.max_tokens
        self.count_tokens = tokenizer.count_tokens

    def encode_documents(self, texts: Any) -> Any:
        """A vector for each text."""
        seeds = np.array([zlib.crc32(each.encode()) for each in texts], dtype=np.uint64)
        return (np.outer(seeds, np.arange(1, 385, dtype=np.uint64)) % np.uint64(997)).astype(np.float32)

    encode_queries = encode_documents


def memory(engine: Any, encoder: Encoder, megabytes: int) -> None:
    """Print what filling a table of texts of 1 MB takes."""
    document, bound = table(engine, Checksums(encoder))
    paragraphs = [each for body in topics.values() for each in body.split("\n\n")]
    with engine.begin() as connection:
        for key in range(megabytes):
            size, body = 0, []
            for number in itertools.count():
                body.append(f"{key}.{number} {paragraphs[(key * 997 + number) % len(paragraphs)]}")
                size += len(body[-1]) + 2
                if size >= 10**6:
                    break
            connection.execute(insert(document.__table__), [{"id": key, "body": "\n\n".join(body)}])
            if key == 0:
                first = body
    encoder.count_tokens(first)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    backfill(engine, document.parts)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with engine.connect() as connection:
        parts = connection.scalar(select(func.count()).select_from(bound.parts))
    print(
        f"{megabytes} texts of 1 MB, {parts:,} parts: {grown / 1024:.0f} MB more memory, {seconds:.0f} s "
        "with an encoder that costs nothing"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--speed", action="store_true", help="how fast parts are filled, instead")
    parser.add_argument("--megabytes", type=int, help="the memory that so many texts of 1 MB take, instead")
    options = parser.parse_args()
    weights = packaged("all-MiniLM-L6-v2")
    with (
        tempfile.TemporaryDirectory(prefix="pgembed-") as folder,
        embedded(Path(folder) / "data") as url,
        Encoder(weights) as encoder,
        Encoder(weights, max_tokens=encoder.spec.token_limit) as long,
    ):
        engine = create_engine(url)
        with engine.begin() as connection:
            install(connection)
        if options.megabytes:
            memory(engine, encoder, options.megabytes)
        elif options.speed:
            speed(engine, encoder, options.folder)
        else:
            measure(engine, encoder, long, options)
        engine.dispose()


if __name__ == "__main__":
    main()
