"""``explain_search``: how a search was executed, told by the plan of its own statement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event, func, select
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import ORMExecuteState, scoped_session

from pgembed.columns.names import written
from pgembed.exc import QueryError, sqlstate
from pgembed.indexes.ddl import Explain
from pgembed.indexes.measurement import Measurement
from pgembed.indexes.query_plan import explained, reasons
from pgembed.indexes.server_settings import nested, undone
from pgembed.indexes.standing import StandingIndex, standing
from pgembed.indexes.tables import name_of
from pgembed.queries.core.nearest import Nearest
from pgembed.queries.core.reading import AnySession, check_async_session, check_session
from pgembed.queries.core.statement import SearchSelect
from pgembed.queries.core.subject import Subject
from pgembed.queries.search.executed_plan import ExecutedPlan, is_of, rows_of

if TYPE_CHECKING:  # at run time it needs the package greenlet
    from pgembed.queries.core.reading import AnyAsyncSession

_EXPLAINED = "pgembed_explained"
_INSUFFICIENT_PRIVILEGE = "42501"


@dataclass(frozen=True)
class SearchLeg:
    """One of the searches that a statement is made of: of a column by its vectors, or of a table by words.

    :ivar column: the table, as SQL writes it, and the vector column: ``"article.embedding"``.
    :ivar by: ``"vector"`` or ``"words"``.
    :ivar index: the index that was scanned; ``None`` where the table was read instead.
    :ivar method: its access method, such as ``"hnsw"``.
    :ivar candidates: how many rows the index has given, or how many were compared where the table was read.
    :ivar queries: how many vectors were searched for.
    :ivar taken_over: for how many of them the exact form took over, since the index had given too few rows,
        or too many that are alike.
    :ivar compared: how many rows were compared then.
    :ivar why: why no index was scanned.
    :ivar pending: how many rows have a vector that is not of their text, or parts that are not; ``None``
        where that cannot be told.
    :ivar measured: the recall of the index when it was last measured; ``None`` if it never was.
    """

    column: str
    by: str
    index: str | None
    method: str | None
    candidates: int
    queries: int = 1
    taken_over: int = 0
    compared: int = 0
    why: tuple[str, ...] = ()
    pending: int | None = None
    measured: Measurement | None = None

    def __str__(self) -> str:
        through = f"through {self.index} ({self.method}), {_count(self.candidates, 'candidate')}"
        if self.by == "words":
            return f"{self.column} by words: " + (
                through if self.index else f"without an index, {_count(self.candidates, 'row')} matched"
            )
        many = f" for {_count(self.queries, 'query', 'queries')}" if self.queries > 1 else ""
        table, _, column = self.column.rpartition(".")
        lines = [f"{self.column}: {through}{many}"]
        if self.index is None:
            exact = f"{self.column}: exact, {_count(self.candidates, 'row')} compared{many}"
            lines = [exact, *(f"  no index: {reason}" for reason in self.why)]
        if self.taken_over:
            whose = f" for {_count(self.taken_over, 'query', 'queries')}" if self.queries > 1 else ""
            what = (
                "not enough: the exact form took over"
                if self.index
                else "the exact form read the table again"
            )
            lines.append(f"  {what}{whose}, {_count(self.compared, 'row')} compared")
        if self.pending is not None:
            lines.append(f"  {_count(self.pending, 'row')} pending")
        if self.measured is not None:
            lines.append(f"  {self.measured}")
        elif self.index is not None:
            lines.append(f"  recall not measured: run `pgembed index recall {table} {column}`")
        return "\n".join(lines)


@dataclass(frozen=True)
class SearchExplanation:
    """How a search was executed; as a text, a few lines.

    :ivar helper: the function that made the statement.
    :ivar rows: how many rows it has given, in ``milliseconds``, those of the planner included.
    :ivar legs: the searches that it is made of.
    :ivar settings: pgvector's settings that it has made, for this statement and no longer.
    :ivar plan: the plan as Postgres gives it in JSON.
    """

    helper: str
    rows: int
    milliseconds: float
    legs: tuple[SearchLeg, ...]
    settings: dict[str, str]
    plan: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{self.helper}: {_count(self.rows, 'row')} in {self.milliseconds:.1f} ms"]
        lines += map(str, self.legs)
        if self.settings:
            lines.append(
                "settings: " + ", ".join(f"{name} = {value}" for name, value in self.settings.items())
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The explanation without the plan as plain values, for JSON."""
        found = asdict(self)
        del found["plan"]
        for leg in found["legs"]:
            if leg["measured"] is not None:
                leg["measured"]["measured_at"] = leg["measured"]["measured_at"].isoformat()
        return found


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def explain_search(
    session: AnySession, statement: SearchSelect[*tuple[Any, ...]], params: Mapping[str, Any] | None = None
) -> SearchExplanation:
    """Execute a search and say how that went: exactly or through which index, and how well that finds.

    ::

        print(explain_search(session, semantic_search(Article.embedding, "reset my password")))
        # semantic_search: 10 rows in 1.2 ms
        # article.embedding: through ix_article_embedding_hnsw (hnsw), 10 candidates
        #   0 rows pending
        #   recall@10 0.9830 (0.9752 to 0.9884), ef_search 40, 200 queries, 2026-11-29 06:55:00 UTC
        # settings: hnsw.ef_search = 40, hnsw.iterative_scan = strict_order

    The SQL is the statement itself, in a savepoint that is taken back, so that neither settings nor locks of
    rows are left behind::

        EXPLAIN (ANALYZE, TIMING OFF, VERBOSE, FORMAT json) <statement>

    Where no index was scanned, the reasons are those of :func:`pgembed.indexes.explain`. The recall is what
    :func:`pgembed.measuring.recall` has left as the index's comment.

    :param session: a session, whose criteria act as ever, or a connection.
    :param statement: of ``semantic_search``, ``search_many``, ``hybrid_search``, ``keyword_search``,
        ``recommend`` or ``diversify``.
    :param params: values of the statement's own parameters.
    :raises QueryError: another statement.
    """
    check_session(session, "explain_search")
    legs = getattr(statement, "_legs", ()) if isinstance(statement, SearchSelect) else ()
    if not legs:
        found = f"one of {statement.helper}()" if isinstance(statement, SearchSelect) else repr(statement)
        raise QueryError(
            "explain_search() takes a statement of semantic_search(), search_many(), hybrid_search(), "
            f"keyword_search(), recommend() or diversify(), as that helper returns it; found {found:.200}. "
            "pgembed.indexes.explain() says of any statement which vector indexes it uses"
        )
    connection, executed = _executed(session, statement, params)
    with undone(connection):
        answer = explained(connection, Explain(executed, analyze=True), params)
        plan = ExecutedPlan(answer["Plan"])
        settings = {
            name: str(connection.scalar(select(func.current_setting(name, True)))) for name in plan.settings()
        }

    def why(index: StandingIndex) -> tuple[str, ...]:
        return reasons(connection, index, plan.root, executed, params)

    return SearchExplanation(
        helper=statement.helper,
        rows=rows_of(plan.root),
        milliseconds=answer["Planning Time"] + answer["Execution Time"],
        legs=tuple(
            _by_words(connection, leg, plan)
            if isinstance(leg, Subject)
            else _by_vectors(connection, leg, plan, why)
            for leg in legs
        ),
        settings=settings,
        plan=plan.root,
    )


async def aexplain_search(
    session: AnyAsyncSession,
    statement: SearchSelect[*tuple[Any, ...]],
    params: Mapping[str, Any] | None = None,
) -> SearchExplanation:
    """As :func:`explain_search`, with an ``AsyncSession``."""
    check_async_session(session, "explain_search")
    found: Any = getattr(session, "registry", lambda: session)()  # of an async_scoped_session
    explanation: SearchExplanation = await found.run_sync(explain_search, statement, params)
    return explanation


def _executed(session: Any, statement: Any, params: Mapping[str, Any] | None) -> tuple[Connection, Any]:
    """The connection and the statement that the session would execute, with criteria that its events add."""
    if isinstance(session, Connection):
        return session, statement
    session = session() if isinstance(session, scoped_session) else session
    if session.autoflush:
        session.flush()
    taken: list[tuple[Connection, Any]] = []

    def take(state: ORMExecuteState) -> Any:
        if not state.execution_options.get(_EXPLAINED):  # executed by another event
            return None
        connection = session.connection(bind_arguments=dict(state.bind_arguments))
        taken.append((connection, state.statement))
        return IteratorResult(SimpleResultMetaData([]), iter(()))

    event.listen(session, "do_orm_execute", take)
    try:
        session.execute(statement, params, execution_options={_EXPLAINED: True})
    finally:
        event.remove(session, "do_orm_execute", take)
    return taken[0] if taken else (session.connection(), statement)


def _by_vectors(
    connection: Connection, leg: Nearest, plan: ExecutedPlan, why: Callable[[StandingIndex], tuple[str, ...]]
) -> SearchLeg:
    subject = leg.subject
    there = {index.name: index for index in standing(connection, written(subject.column.table))}
    by_name = {name: index for index in there.values() for name in (index.name, *index.leaves)}
    scans = list(plan.scans(subject.column.name))
    first = [node for node, ctes in scans if is_of(ctes, "ann")]
    exact = [node for node, ctes in scans if not is_of(ctes, "ann") and not is_of(ctes, "looked_up")]
    through = [node for node in first if node.get("Index Name") in by_name]
    used = by_name[through[0]["Index Name"]] if through else None
    read = through or first or exact
    queries = plan.queries()
    taken_over = 0
    if first and exact:
        taken_over = 1 if queries == 1 else min(plan.exact_sorts(subject.column.name), queries)
    return SearchLeg(
        column=_column(subject),
        by="vector",
        index=used.name if used else None,
        method=used.access_method if used else None,
        candidates=sum(map(rows_of, read)),
        queries=queries,
        taken_over=taken_over,
        compared=sum(map(rows_of, exact)) if taken_over else 0,
        why=() if used else tuple(_unused(leg, list(there.values()), why)),
        pending=_pending(connection, subject),
        measured=Measurement.read(used.comment) if used else None,
    )


def _unused(
    leg: Nearest, there: Sequence[StandingIndex], why: Callable[[StandingIndex], tuple[str, ...]]
) -> Iterator[str]:
    """Why a search has scanned no index."""
    column, metric = leg.subject.column.name, leg.subject.metric.name
    if leg.mode == "exact":
        yield 'mode="exact"'
        return
    on_column = [index for index in there if column in (index.column, *_words_of(index.expression))]
    if leg.index is None and leg.mode == "auto":
        under = " under these conditions" if leg.conditions else ""
        yield f"none is declared that serves {metric}{under}"
        for index in on_column:
            if index.valid and index.metric == metric:
                yield f'{index.name} is in the database: declare it, or pass mode="approximate"'
        return
    wanted = None if leg.index is None else name_of(leg.index.index)
    named = [index for index in on_column if index.name == wanted] or on_column
    if not named:
        yield f"{wanted or 'one on ' + str(leg.subject)} is not built: run `pgembed index create`"
    for index in named:
        yield from (f"{index.name}: {reason}" for reason in why(index))


def _words_of(expression: str | None) -> list[str]:
    return re.findall(r"\w+", expression or "")


def _by_words(connection: Connection, subject: Subject, plan: ExecutedPlan) -> SearchLeg:
    nodes = list(plan.matches())
    there = {each.name: each for each in standing(connection, written(subject.column.table), methods=None)}
    by_name = {name: index for index in there.values() for name in (index.name, *index.leaves)}
    used = next((by_name[name] for node in nodes if (name := node.get("Index Name")) in by_name), None)
    return SearchLeg(
        column=_column(subject),
        by="words",
        index=used.name if used else None,
        method=used.access_method if used else None,
        candidates=sum(rows_of(node) for node in nodes if "Relation Name" in node),
    )


def _column(subject: Subject) -> str:
    return f"{written(subject.column.table)}.{subject.column.name}"


def _pending(connection: Connection, subject: Subject) -> int | None:
    """``None`` where nothing says what the vectors are made of, or the role may not read that."""
    made = subject.embedding or subject.parts
    if made is None:
        return None
    try:
        with nested(connection):
            return connection.scalar(select(func.count()).where(made.pending()))
    except DBAPIError as error:
        if sqlstate(error) != _INSUFFICIENT_PRIVILEGE:
            raise
        return None
