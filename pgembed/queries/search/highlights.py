"""``passages``: the sentences of each row's text that are nearest to a query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row

from pgembed.columns import Array, answered
from pgembed.encoders.text.texts import checked
from pgembed.encoders.threads import encoder_errors, in_thread, off_event_loop
from pgembed.exc import QueryError
from pgembed.metrics import Metric
from pgembed.parts import FORMATS, Format
from pgembed.parts.sentences import breaks_character, words
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.parameters import QueryVectorType
from pgembed.queries.core.reading import AnySession, Read, Reading, check_async_session, check_session
from pgembed.queries.core.subject import Subject, VectorColumn, resolve
from pgembed.queries.core.vectors import query_type

if TYPE_CHECKING:  # at run time it needs the package greenlet
    from pgembed.queries.core.reading import AnyAsyncSession

#: Characters after which a sentence is cut: of longer ones, encoders read no more than the beginning.
_LONGEST = 1_000


@dataclass(frozen=True, slots=True)
class Passage:
    """A sentence of a text.

    :ivar start: of its first character, and ``end`` after its last: it is ``text[start:end]`` of the row's.
    :ivar score: of its vector and that of the query, by the metric of the column; higher is better.
    """

    text: str
    start: int
    end: int
    score: float


def passages(
    session: AnySession,
    statement: Any,
    query: Any,
    column: VectorColumn,
    *,
    text: Any = None,
    best: int = 1,
    format: str | Format = "text",
    characters: int = 20_000,
    params: Mapping[str, Any] | None = None,
) -> list[Row[Any]]:
    """The rows of a statement, each with its ``passages``: the sentences of a text nearest to ``query``.

    ::

        for row in passages(session, semantic_search(Article.embedding, query, limit=5), query,
                            Article.embedding, text=Article.body):
            print(row.Article.title, row.passages[0].text)

    The statement is executed with one more column, the text. The sentences of all its rows are encoded by the
    encoder of the column, as documents, in one batch; those that occur several times, once, and a row has the
    first of its equal ones. Rows stay in the order of the statement; those whose text is NULL or blank have
    no passages.

    :param session: a session or a connection; its transaction stays open while sentences are encoded.
    :param statement: any select, such as that of ``semantic_search``; or a list of rows, such as the one that
        ``rerank`` returns.
    :param query: a text or a vector.
    :param column: the embedding column whose encoder and metric are used.
    :param text: a column or an expression over the tables that the statement selects from, or a function that
        makes a text, or ``None``, of a row; left out, the source of the embedding column, where it has one.
    :param best: how many passages of each row at most, best first; equal scores in the order of the text.
    :param format: what the text is made of, as for :func:`pgembed.parts.split`.
    :param characters: how many characters of each text are read.
    :returns: the statement's rows, with the entities in them, and ``passages``, a tuple of
        :class:`Passage`.
    :raises QueryError: an argument is not what is expected, or the column has no encoder.
    :raises EncoderAnswerError: the encoder answers with something other than a vector for each sentence.
    """
    check_session(session, "passages")
    call = _Call(statement, query, column, text, best, format, characters)
    given = statement if isinstance(statement, list) else session.execute(call.statement, params or {})
    return call.found(call.read(given))


async def apassages(
    session: AnyAsyncSession,
    statement: Any,
    query: Any,
    column: VectorColumn,
    *,
    text: Any = None,
    best: int = 1,
    format: str | Format = "text",
    characters: int = 20_000,
    params: Mapping[str, Any] | None = None,
) -> list[Row[Any]]:
    """As :func:`passages`, with an ``AsyncSession``; sentences are encoded off the event loop."""
    check_async_session(session, "passages")
    call = _Call(statement, query, column, text, best, format, characters)
    if isinstance(statement, list):
        return await in_thread(call.found, call.read(statement))
    return await in_thread(call.found, call.read(await session.execute(call.statement, params or {})))


class _Call(Reading):
    """The arguments, checked."""

    def __init__(
        self, statement: Any, query: Any, column: Any, text: Any, best: Any, format: Any, characters: Any
    ) -> None:
        subject = resolve(column)
        kind = query_type(subject)
        if subject.declaration is None or not isinstance(kind, QueryVectorType):
            raise QueryError(
                f"{subject} is not declared with embedding_column(), and sentences need an encoder"
            )
        if isinstance(format, str) and format not in FORMATS:
            raise QueryError(f"format={format!r}; expected one of {', '.join(FORMATS)}, or a Format")
        self._subject, self._kind, self._encoder = subject, kind, subject.declaration.encoder
        self._format = FORMATS[format] if isinstance(format, str) else format
        self._query = kind.accepted(query)
        self._best = whole("best", best, 1)
        self._characters = whole("characters", characters, 1)
        super().__init__(statement, _source(subject) if text is None else text)

    def found(self, read: Read) -> list[Row[Any]]:
        """The rows with their passages."""
        places: list[dict[str, tuple[int, int]]] = []
        for text in checked(text or "" for text in read.texts):
            found: dict[str, tuple[int, int]] = {}
            for start, end in _spans(text[: self._characters], self._format):
                found.setdefault(text[start:end], (start, end))
            places.append(found)
        sentences = list(dict.fromkeys(sentence for found in places for sentence in found))
        scores = dict(zip(sentences, self._scores(sentences), strict=True))
        chosen = (sorted(found, key=lambda sentence: -scores[sentence])[: self._best] for found in places)
        values = (
            tuple(Passage(sentence, *found[sentence], scores[sentence]) for sentence in best)
            for found, best in zip(places, chosen, strict=True)
        )
        return read.extended("passages", enumerate(values))

    def _scores(self, sentences: list[str]) -> list[float]:
        if not sentences:
            return []
        encoder, metric = self._encoder, self._subject.metric
        answer = off_event_loop(encoder_errors(encoder.name)(encoder.encode_documents), sentences)
        vectors = answered(encoder, answer, len(sentences), column=self._subject)
        distances = _distances(metric, vectors, self._kind.to_array(self._query))
        return [float(metric.score(distance)) for distance in distances]


def _source(subject: Subject) -> Any:
    """The one text that the vectors are made of."""
    sources = () if subject.embedding is None else subject.embedding.sources
    if len(sources) != 1:
        names = ", ".join(source.key for source in sources) or "parts of texts"
        raise QueryError(
            f"the vectors of {subject} are made of {names}: pass the text whose sentences to compare, as in "
            "text=Article.body"
        )
    return subject.own(sources[0])


def _spans(text: str, format: Format) -> Iterator[tuple[int, int]]:
    """Start and end of the sentences, without the blanks around them."""
    places = (place for place, _ in format(text) if 0 < place < len(text))
    starts = sorted({0, *(place for place in places if not breaks_character(text, place)), len(text)})
    for start, end in pairwise(starts):
        for first, last in pairwise([start, *_inside(text, start, end), end]):
            part = text[first:last]
            if part.strip():
                yield first + len(part) - len(part.lstrip()), first + len(part.rstrip())


def _inside(text: str, start: int, end: int) -> Iterator[int]:
    """Where a sentence that is too long is cut, between words."""
    if end - start > _LONGEST:
        for place in words(text, start, end):
            if place - start >= _LONGEST and not breaks_character(text, place):
                yield place
                start = place


def _distances(metric: Metric, vectors: Array, query: Array) -> NDArray[np.float64]:
    """As pgvector's operators have them, in double precision."""
    left, right = vectors.astype(np.float64), query.astype(np.float64)
    if metric.name == "l2":
        return np.asarray(np.linalg.norm(left - right, axis=1))
    if metric.name == "l1":
        return np.asarray(np.abs(left - right).sum(axis=1))
    products = left @ right
    if metric.name == "inner_product":
        return -products
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right)
    # A vector of zeros has no direction: it is like none.
    return np.asarray(1 - np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))
