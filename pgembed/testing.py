"""For the tests of applications: encoders without weights, and tables on databases without vectors.

::

    from pgembed.testing import encoder_swapped

    with encoder_swapped(Base):
        ...  # flushes, searches and migrations as ever, and no weights are opened
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy import MetaData

from pgembed.columns import Array, Embedding, TextEncoder, fresh_of
from pgembed.columns.types import TEXT_DIALECTS
from pgembed.exc import DeclarationError
from pgembed.parts import TokenCounter


def allow_dialect(name: str) -> None:
    """Let ``create_all`` create embedding columns on another database than Postgres, for this process.

    So tests that only need the tables to exist can go on using SQLite. Flushes fill the columns as they do
    on Postgres, and vectors, stored as text, load as arrays; there are no pending indexes, and searches are
    refused.

    :param name: what SQLAlchemy calls the dialect, such as ``"sqlite"``.
    """
    TEXT_DIALECTS.add(name)


class HashEncoder:
    """A deterministic encoder: every word has a pseudo-random direction, a text is their normalised sum.

    Texts that share words are near each other, equal texts are equal, and nothing is read from disk.
    ``calls`` holds the encoded batches, as tuples of texts.

    :param dimensions: length of the vectors.
    :param name: what statements and ``pgembed.status`` call it; part of the fingerprint.
    :param max_tokens: words of a part of a long text, at most; see :func:`pgembed.embedding_parts`.
    """

    def __init__(self, dimensions: int = 8, name: str = "hash", max_tokens: int = 256) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.dimensions = dimensions
        self.fingerprint = hashlib.sha256(f"{name}/{dimensions}".encode()).hexdigest()
        self.calls: list[tuple[str, ...]] = []

    def __repr__(self) -> str:
        return f"HashEncoder(dimensions={self.dimensions}, name={self.name!r})"

    def encode_documents(self, texts: Sequence[str]) -> Array:
        """Vectors of the texts, float32 ``(n, dimensions)`` of length one."""
        self.calls.append(tuple(texts))
        return np.array([self._vector(text) for text in texts], dtype=np.float32).reshape(-1, self.dimensions)

    def encode_queries(self, texts: Sequence[str]) -> Array:
        """The same as :meth:`encode_documents`: queries and documents share one space."""
        return self.encode_documents(texts)

    def encode_spans(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> list[Array]:
        """Vectors of spans, into which a tenth of the vector of the whole text is mixed."""
        found = []
        for text, each in zip(texts, spans, strict=True):
            mixed = [self._vector(text[start:end]) + self._vector(text) / 10 for start, end in each]
            self.calls.append(tuple(text[start:end] for start, end in each))
            found.append(np.array([vector / np.linalg.norm(vector) for vector in mixed], dtype=np.float32))
        return found

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The words of each text."""
        return [len(text.split()) for text in texts]

    def _vector(self, text: str) -> Array:
        total = np.zeros(self.dimensions)
        for word in text.lower().split() or [text]:
            seed = int.from_bytes(hashlib.blake2b(f"{self.name} {word}".encode(), digest_size=8).digest())
            total += np.random.default_rng(seed).standard_normal(self.dimensions)
        return (total / np.linalg.norm(total)).astype(np.float32)


class StandIn:
    """An encoder that replaces another in all but its vectors, and needs none of its files.

    Name, fingerprint, dimensions and options are those of the original, so digests, registrations and
    migrations are too. ``calls`` holds the encoded batches, as tuples of texts.

    :param original: the encoder to replace.
    :param vectors: what computes the vectors.
    """

    def __init__(self, original: TextEncoder, vectors: TextEncoder) -> None:
        self.original = original
        self.calls: list[tuple[str, ...]] = []
        self._vectors = vectors

    # What only a pgembed.Encoder has, such as options, its stand-in has too.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.original)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "original":
            raise AttributeError(name)
        return getattr(self.original, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        return self

    def __repr__(self) -> str:
        return f"<StandIn for {self.original!r}>"

    def encode_documents(self, texts: Iterable[str]) -> Array:
        """Vectors of the other encoder, float32 ``(n, dimensions)``."""
        listed = list(texts)
        self.calls.append(tuple(listed))
        return self._vectors.encode_documents(listed)

    def encode_queries(self, texts: Iterable[str]) -> Array:
        """Vectors of the other encoder, float32 ``(n, dimensions)``."""
        listed = list(texts)
        self.calls.append(tuple(listed))
        return self._vectors.encode_queries(listed)

    @property
    def max_tokens(self) -> int:
        """The limit of the other encoder, if it counts tokens; the original's tokenizer may not be here."""
        return self._counter.max_tokens

    def count_tokens(self, texts: Iterable[str]) -> Iterable[int]:
        """Tokens by the same encoder."""
        return self._counter.count_tokens(list(texts))

    @property
    def _counter(self) -> TokenCounter:
        found: Any = self._vectors if isinstance(self._vectors, TokenCounter) else self.original
        counter: TokenCounter = found
        return counter

    def encode_spans(self, texts: Iterable[str], spans: Iterable[Iterable[tuple[int, int]]]) -> list[Array]:
        """Vectors of the other encoder for the texts of the spans by themselves."""
        pairs = zip(texts, spans, strict=True)
        return [self.encode_documents([text[start:end] for start, end in each]) for text, each in pairs]

    async def aencode_documents(self, texts: Iterable[str]) -> Array:
        """As :meth:`encode_documents`."""
        return self.encode_documents(texts)

    async def aencode_queries(self, texts: Iterable[str]) -> Array:
        """As :meth:`encode_queries`."""
        return self.encode_queries(texts)

    def open(self) -> None:
        """Nothing: there are no weights."""

    def close(self) -> None:
        """Nothing: there are no weights."""


@contextmanager
def encoder_swapped(base: Any, encoder: TextEncoder | None = None) -> Iterator[list[StandIn]]:
    """Let another encoder compute the vectors of all embedding columns, for the time of the block.

    The schema stays what it is, for ``create_all`` and for ``alembic check``, since each :class:`StandIn`
    says that it is the encoder that was declared.

    :param base: the models: a declarative base (or ``SQLModel``), or a ``MetaData``.
    :param encoder: what computes the vectors; by default a :class:`HashEncoder` of the same dimensions.
    :returns: a context manager that gives the stand-ins, one for each encoder, in the order of the tables.
    :raises DeclarationError: no embedding column, or one of other dimensions than ``encoder``.
    """
    metadata = base if isinstance(base, MetaData) else getattr(base, "metadata", None)
    tables = metadata.tables.values() if isinstance(metadata, MetaData) else ()
    declarations = dict.fromkeys(embedding.declaration for table in tables for embedding in fresh_of(table))
    if not declarations:
        raise DeclarationError(
            f"{base!r} has no embedding column; expected a declarative base or a MetaData with one"
        )
    stand_ins: dict[int, StandIn] = {}
    originals: dict[Embedding, TextEncoder] = {each: each.encoder for each in declarations}
    for original in originals.values():
        vectors = HashEncoder(original.dimensions) if encoder is None else encoder
        if vectors.dimensions != original.dimensions:
            raise DeclarationError(
                f"encoder {vectors.name!r} has {vectors.dimensions} dimensions, expected the "
                f"{original.dimensions} of {original.name!r}, whose place it is to take"
            )
        stand_ins.setdefault(id(original), StandIn(original, vectors))
    try:
        for declaration, original in originals.items():
            _exchange(declaration, stand_ins[id(original)])
        yield list(stand_ins.values())
    finally:
        for declaration, original in originals.items():
            _exchange(declaration, original)


def _exchange(declaration: Embedding, encoder: TextEncoder) -> None:
    object.__setattr__(declaration, "encoder", encoder)  # of a frozen dataclass
