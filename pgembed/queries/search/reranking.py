"""``rerank``: the rows of a search in the order of a cross-encoder, which reads query and text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from sqlalchemy import Row

from pgembed.encoders.text.texts import Pair, Vectors, checked
from pgembed.encoders.threads import in_thread
from pgembed.exc import QueryError
from pgembed.queries.core.arguments import whole
from pgembed.queries.core.reading import AnySession, Read, Reading, check_async_session, check_session

if TYPE_CHECKING:  # at run time it needs the package greenlet
    from pgembed.queries.core.reading import AnyAsyncSession

_SCORE = "rerank_score"


class PairScorer(Protocol):
    """What scores pairs of texts, such as a :class:`~pgembed.Reranker`."""

    def predict(self, pairs: Sequence[Pair], /) -> Vectors:
        """A score for each pair, higher for those that belong together."""
        ...


def rerank(
    session: AnySession,
    statement: Any,
    query: str,
    reranker: PairScorer,
    *,
    text: Any,
    limit: int | None = 10,
    label: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> list[Row[Any]]:
    """The rows of a statement, the best by a reranker first, each with its ``rerank_score``.

    The statement is executed with one more column, the text; all rows that it gives are scored, so its LIMIT
    says how many candidates there are. Rows of equal scores stay in the order of the statement. Rows whose
    text is NULL are not scored: they come last, in that order too, with ``rerank_score`` ``None``.

    :param session: a session or a connection; its transaction stays open while texts are scored.
    :param statement: any select, such as ``semantic_search(Article.embedding, query, limit=50)``.
    :param query: what the rows are compared with.
    :param reranker: a :class:`~pgembed.Reranker`, or any object whose ``predict`` takes pairs of texts.
    :param text: what is compared: a column or an expression over the tables that the statement selects from,
        or a function that makes a text, or ``None``, of a row.
    :param limit: how many rows to return; ``None`` for all.
    :param label: the label whose score counts, where the reranker has several.
    :param params: values of the statement's own parameters.
    :returns: the statement's rows, with the entities in them, and ``rerank_score``, a float.
    :raises QueryError: an argument is not what is expected, or the reranker's answer is not.
    """
    check_session(session, "rerank")
    call = _Call(statement, query, reranker, text, limit, label)
    candidates = call.read(session.execute(call.statement, params or {}))
    return call.ordered(candidates, call.scores(candidates))


async def arerank(
    session: AnyAsyncSession,
    statement: Any,
    query: str,
    reranker: PairScorer,
    *,
    text: Any,
    limit: int | None = 10,
    label: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> list[Row[Any]]:
    """As :func:`rerank`, with an ``AsyncSession``; texts are scored off the event loop."""
    check_async_session(session, "rerank")
    # A remote reranker asks its server for the labels.
    call = await in_thread(_Call, statement, query, reranker, text, limit, label)
    candidates = call.read(await session.execute(call.statement, params or {}))
    return call.ordered(candidates, await in_thread(call.scores, candidates))


class _Call(Reading):
    """The arguments, checked."""

    def __init__(
        self, statement: Any, query: Any, reranker: Any, text: Any, limit: Any, label: str | None
    ) -> None:
        if not isinstance(query, str) or not query.strip():
            raise QueryError(f"query={query!r}; expected a text to compare the rows with")
        checked([query])
        if not callable(getattr(reranker, "predict", None)):
            raise QueryError(
                f"reranker={reranker!r}; expected a Reranker, or an object whose predict() takes pairs"
            )
        self._query = query
        self._reranker = reranker
        self._limit = None if limit is None else whole("limit", limit, 1)
        self._column = _column_of(reranker, label)
        super().__init__(statement, text)

    def scores(self, candidates: Read) -> list[float]:
        """The scores of the rows that have a text.

        :raises QueryError: the reranker gives something other than a number for each.
        """
        pairs = [(self._query, text) for text in candidates.texts if text is not None]
        if not pairs:
            return []
        found = np.asarray(self._reranker.predict(pairs))
        if self._column is not None and found.ndim == 2 and found.shape[1] > self._column:
            found = found[:, self._column]
        if found.shape != (len(pairs),) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise QueryError(
                f"reranker {self._reranker!r} returned an array of {found.dtype} of the shape {found.shape} "
                f"for {len(pairs)} pairs; expected finite numbers in the shape ({len(pairs)},)"
            )
        scores: list[float] = found.astype(np.float64).tolist()
        return scores

    def ordered(self, candidates: Read, scores: list[float]) -> list[Row[Any]]:
        """The rows, best first."""
        scored = (number for number, text in enumerate(candidates.texts) if text is not None)
        by_row = dict(zip(scored, scores, strict=True))
        order = sorted(range(len(candidates.rows)), key=lambda n: -by_row.get(n, -np.inf))[: self._limit]
        return candidates.extended(_SCORE, ((number, by_row.get(number)) for number in order))


def _column_of(reranker: Any, label: str | None) -> int | None:
    """Which of the reranker's labels counts; ``None`` where there is one.

    :raises QueryError: it is not said, or there is no such label.
    """
    labels = list(getattr(reranker, "labels", ()))
    if label is None and len(labels) <= 1:
        return None
    if label not in labels:
        named = ", ".join(map(repr, labels)) or "no names of labels"
        raise QueryError(f"label={label!r}; the reranker has {named}: pass the one whose score counts")
    return labels.index(label) if len(labels) > 1 else None
