"""``rerank``: the rows of a search in the order of a cross-encoder, which reads query and text together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from sqlalchemy import Connection, Result, Row, Select, String
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.types import NullType

from pgembed.encoders.text.texts import Pair, Vectors, checked
from pgembed.encoders.threads import in_thread
from pgembed.exc import QueryError
from pgembed.queries.arguments import expression, whole
from pgembed.queries.statement import free_name

if TYPE_CHECKING:  # at run time it needs the package greenlet
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

_SYNC = (Session, scoped_session, Connection)
_ASYNC = {"AsyncSession", "async_scoped_session", "AsyncConnection"}
_SCORE = "rerank_score"


class PairScorer(Protocol):
    """What scores pairs of texts, such as a :class:`~pgembed.Reranker`."""

    def predict(self, pairs: Sequence[Pair], /) -> Vectors:
        """A score for each pair, higher for those that belong together."""
        ...


def rerank(
    session: Session | scoped_session[Any] | Connection,
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
    if not isinstance(session, _SYNC):
        instead = ": use `await arerank(...)`" if _is_async(session) else ""
        raise QueryError(f"expected a Session or a Connection, got {session!r}{instead}")
    call = _Call(statement, query, reranker, text, limit, label)
    candidates = call.candidates(session.execute(call.statement, params or {}))
    return call.ordered(candidates, call.scores(candidates))


async def arerank(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
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
    if not _is_async(session):
        instead = ": use rerank(...)" if isinstance(session, _SYNC) else ""
        raise QueryError(f"expected an AsyncSession or an AsyncConnection, got {session!r}{instead}")
    call = _Call(statement, query, reranker, text, limit, label)
    candidates = call.candidates(await session.execute(call.statement, params or {}))
    return call.ordered(candidates, await in_thread(call.scores, candidates))


def _is_async(session: object) -> bool:
    return bool(_ASYNC & {kind.__name__ for kind in type(session).__mro__})


class _Candidates:
    """The rows of a statement as tuples, their columns' names, and their texts."""

    def __init__(self, keys: Sequence[str], rows: list[tuple[Any, ...]], texts: list[Any]) -> None:
        for number, text in enumerate(texts):
            if not isinstance(text, str | None):
                found = f"a {type(text).__name__} for row {number}"
                raise QueryError(f"text= gives {found}; expected a str, or None")
        self.keys = keys
        self.rows = rows
        self.texts = texts
        self.scored = [number for number, text in enumerate(texts) if text is not None]


class _Call:
    """The arguments, checked; the statement with the text as its last column, if that is SQL."""

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
        self._made: Callable[[Row[Any]], Any] | None = None
        self.statement = statement
        if callable(text) and not hasattr(text, "is_not"):
            self._made = text
        else:
            self.statement = _with_text(statement, expression("text", text, "Article.body"))

    def candidates(self, result: Result[Any]) -> _Candidates:
        """What the database has answered."""
        keys, rows = list(result.keys()), result.all()
        if self._made is not None:
            return _Candidates(keys, [tuple(row) for row in rows], [self._made(row) for row in rows])
        return _Candidates(keys[:-1], [tuple(row)[:-1] for row in rows], [row[-1] for row in rows])

    def scores(self, candidates: _Candidates) -> list[float]:
        """The scores of the rows that have a text.

        :raises QueryError: the reranker gives something other than a number for each.
        """
        if not candidates.scored:
            return []
        pairs = [(self._query, candidates.texts[number]) for number in candidates.scored]
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

    def ordered(self, candidates: _Candidates, scores: list[float]) -> list[Row[Any]]:
        """The rows, best first."""
        by_row = dict(zip(candidates.scored, scores, strict=True))
        order = sorted(range(len(candidates.rows)), key=lambda n: -by_row.get(n, -np.inf))[: self._limit]
        keys = [*candidates.keys, free_name(_SCORE, candidates.keys)]
        rows = ((*candidates.rows[number], by_row.get(number)) for number in order)
        result: Result[Any] = IteratorResult(SimpleResultMetaData(keys), rows)
        return list(result.all())


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


def _with_text(statement: Any, text: Any) -> Any:
    """
    :raises QueryError: the statement cannot have one more column, or it does not select what the text is of.
    """
    instead = "pass text= a function of a row, as in text=lambda row: row.Article.title"
    if not isinstance(statement, Select):
        raise QueryError(f"statement={statement!r} takes no column more, since it is not a select: {instead}")
    if statement._distinct or statement._group_by_clauses:
        raise QueryError(f"a statement with DISTINCT or GROUP BY takes no column for text=: {instead}")
    if text.type._type_affinity not in (String, NullType):
        raise QueryError(
            f"text={text} is of the type {text.type!r}; expected text (another one becomes text by "
            "sqlalchemy.cast(..., Text))"
        )
    extended = statement.add_columns(text.label("pgembed_text"))
    if len(extended.get_final_froms()) > len(statement.get_final_froms()):
        raise QueryError(
            f"text={text} is of a table that the statement does not select from: pass a column of one that "
            "it does, join the table, or use a correlated scalar subquery"
        )
    return extended
