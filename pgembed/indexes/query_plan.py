"""``explain``: whether a statement uses a vector index, and why not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.sql.elements import ClauseElement

from pgembed.columns.conditions import check_sql
from pgembed.exc import need_connection
from pgembed.indexes.ddl import Explain
from pgembed.indexes.server_settings import undone
from pgembed.indexes.standing import StandingIndex, standing

#: A distance in a plan.
OPERATOR = re.compile(r" (?:OPERATOR\([^)]*?)?(<=>|<->|<#>|<\+>|<~>|<%>)\)? ")
_FUNCTION = re.compile(
    r"\b(cosine_distance|l[12]_distance|(?:vector_)?(?:negative_)?inner_product|hamming_distance|jaccard_distance)\("
)
_DESCENDING = re.compile(r" DESC(?: NULLS (?:FIRST|LAST))?$")
_CAST = re.compile(r"\([\w.\"$]+\)::(\w+(?:\(\d+\))?) ")
#: The end of the key of an exact search, which adds 0 to keep indexes out.
EXACT = re.compile(r"\+ '?0(?:\.0)?'?(?:::double precision)?\)*$")
_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond")
_NO_OTHER_WAY = ("enable_seqscan", "enable_sort", "enable_bitmapscan")


@dataclass(frozen=True)
class Explanation:
    """What the planner does with the vector indexes of the tables in a statement.

    :ivar used: names of those that it uses.
    :ivar unused: for each of the others, why not.
    :ivar plan: the plan as Postgres gives it in JSON.
    """

    used: tuple[str, ...]
    unused: dict[str, tuple[str, ...]]
    plan: dict[str, Any] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The explanation as plain values, for JSON."""
        return asdict(self)


def explain(
    connection: Connection, statement: ClauseElement | str, parameters: Mapping[str, Any] | None = None
) -> Explanation:
    """Say which vector indexes a statement uses, and why it doesn't use the others of its tables.

    ::

        EXPLAIN (VERBOSE, FORMAT json) <statement>

    The statement is planned and not executed. Reasons are read from the plan; where it shows none, the
    statement is planned once more with sequential scans and sorts forbidden, which tells a matter of cost
    from an expression that the index does not serve.

    :param statement: a SELECT, made with SQLAlchemy or as text.
    :raises DeclarationError: the text is more than one statement.
    """
    need_connection(connection)
    if isinstance(statement, str):
        check_sql(statement.rstrip().removesuffix(";"), what="statement")  # a second one would be executed
    clause = text(statement) if isinstance(statement, str) else statement
    root = plan_of(connection, clause, parameters)
    scanned = {(node.get("Schema"), node["Relation Name"]) for node in nodes(root) if "Relation Name" in node}
    used = tuple(dict.fromkeys(node["Index Name"] for node in nodes(root) if "Index Name" in node))
    there = [index for index in standing(connection) if (index.schema, index.table) in scanned]
    return Explanation(
        used=tuple(index.name for index in there if index.name in used),
        unused={
            index.name: reasons(connection, index, root, clause, parameters)
            for index in there
            if index.name not in used
        },
        plan=root,
    )


def reasons(
    connection: Connection,
    index: StandingIndex,
    root: dict[str, Any],
    statement: ClauseElement,
    parameters: Mapping[str, Any] | None,
) -> tuple[str, ...]:
    """Why ``index`` is not in the plan ``root``; at least one reason."""
    found = [*_of_index(connection, index), *_of_plan(index, root, _version(connection))]
    if not found:
        found = [_of_cost(connection, index, root, statement, parameters)]
    return tuple(found)


def plan_of(
    connection: Connection, statement: ClauseElement, parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The plan of a statement, as Postgres gives it in JSON."""
    root: dict[str, Any] = explained(connection, Explain(statement), parameters)["Plan"]
    return root


def explained(
    connection: Connection, statement: Explain, parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What Postgres answers to EXPLAIN: the plan, and with ANALYZE the times."""
    answer = connection.execute(statement, dict(parameters or {})).scalar_one()
    plans = json.loads(answer) if isinstance(answer, str) else answer
    found: dict[str, Any] = plans[0]
    return found


def nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan, from the top."""
    yield root
    for child in root.get("Plans", ()):
        yield from nodes(child)


def uses(root: dict[str, Any], index: StandingIndex) -> bool:
    """Whether a plan scans the index, or that of any partition."""
    names = {index.name, *index.leaves}
    return any(node.get("Index Name") in names for node in nodes(root))


def _of_index(connection: Connection, index: StandingIndex) -> Iterator[str]:
    if index.building:
        yield "it is being built at this moment"
    elif not index.valid:
        yield "it is invalid: build it again with `pgembed index create` or pgembed.indexes.create()"
    if connection.scalar(select(func.current_setting("enable_indexscan"))) == "off":
        yield "enable_indexscan is off in this session"


def _of_plan(index: StandingIndex, root: dict[str, Any], version: int) -> Iterator[str]:
    found = list(nodes(root))
    keys = [key for node in found for key in node.get("Sort Key", ())]
    keys += [node["Order By"] for node in found if "Order By" in node]  # what another index gives
    ordered = [key for key in keys if OPERATOR.search(key) or _FUNCTION.search(key)]
    if not ordered:
        yield "nothing is ordered by a distance: it serves ORDER BY distance LIMIT n"
    approximate = [key for key in ordered if not EXACT.search(key)]
    if ordered and not approximate:
        yield (
            'the search is exact: it adds 0 to the distance, as pgembed does with mode="exact" and where no '
            "index that is declared and built serves its column, its metric and its conditions"
        )
    for key in approximate:
        yield from _of_key(index, key)
    if version < 170000 and any(
        len(node.get("Sort Key", ())) > 1 and node["Sort Key"][0] in approximate for node in found
    ):
        yield "more than the distance orders the rows, which an index serves since Postgres 17"
    if not any(node["Node Type"] == "Limit" for node in found):
        yield "there is no LIMIT, and sorting is cheaper when all rows are read in order"
    if any(node["Node Type"] == "WindowAgg" and "Limit" not in map(_type, nodes(node)) for node in found):
        yield "a window function, such as count(*) OVER (), needs all rows before the first is returned"
    conditions = " ".join(str(node.get(name, "")) for node in found for name in _CONDITIONS)
    if index.predicate is not None and index.predicate.strip("()") not in conditions:
        yield f"it is partial, and the conditions do not imply its own: {index.predicate}"


def _type(node: dict[str, Any]) -> str:
    return str(node["Node Type"])


def _version(connection: Connection) -> int:
    return int(connection.scalar(select(func.current_setting("server_version_num"))) or 0)


def _of_key(index: StandingIndex, key: str) -> Iterator[str]:
    """Why the index cannot give this order."""
    if _DESCENDING.search(key):
        yield "the order is descending: it gives the nearest first"
    expression = _bare(_DESCENDING.sub("", key))
    operator = OPERATOR.search(expression)
    if operator is None:
        function = _FUNCTION.search(expression)
        assert function is not None
        yield f"ordered by the function {function[1]}(): only an operator ({index.operator}) uses an index"
        return
    if index.operator is not None and operator[1] != index.operator:
        yield f"ordered by {operator[1]}, and it serves {index.operator} ({index.opclass})"
    sides = expression[: operator.start()], expression[operator.end() :]
    own = index.expression or index.column or ""
    within = sides[0].count("(") != sides[0].count(")")  # the distance is part of an expression
    if not within and _plain(own) in map(_plain, sides):
        return
    cast = _CAST.match(expression)
    if index.expression is not None and not within:
        yield f"ordered by {_bare(sides[0])}, and it is on the expression {_bare(index.expression)}"
    elif cast is not None:
        yield f"ordered by the column cast to {cast[1]}, and it is on the column itself"
    elif within or not re.match(r"[\w\"]", expression):
        yield "ordered by an expression over the distance, such as 1 - distance: order by the distance alone"


def _plain(expression: str) -> str:
    """Without what Postgres writes differently in a plan and in the definition of an index."""
    return re.sub(r"(?:\"[^\"]+\"|\b\w+)\.|[()\" ]", "", expression)


def _bare(expression: str) -> str:
    """The expression without parentheses that enclose all of it."""
    while expression.startswith("(") and _closing(expression) == len(expression) - 1:
        expression = expression[1:-1]
    return expression


def _closing(expression: str) -> int | None:
    """Where the parenthesis closes that the expression begins with."""
    depth = 0
    for place, character in enumerate(expression):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return None


def _of_cost(
    connection: Connection,
    index: StandingIndex,
    root: dict[str, Any],
    statement: ClauseElement,
    parameters: Mapping[str, Any] | None,
) -> str:
    with undone(connection):
        connection.execute(select(*(func.set_config(name, "off", True) for name in _NO_OTHER_WAY)))
        possible = uses(plan_of(connection, statement, parameters), index)
    kinds = " ".join(node["Node Type"] for node in nodes(root))
    if possible:
        return (
            "it could be used; the planner expects another plan to be cheaper (few rows, conditions that few "
            "rows meet, or a large LIMIT)"
        )
    others = [name for node in nodes(root) if "Order By" in node and (name := node.get("Index Name"))]
    if others:
        return f"{', '.join(others)} gives the same order"
    if "Aggregate" in kinds or "Unique" in kinds:
        return "rows are grouped before they are ordered: take the nearest in a subquery, and group those"
    if "Join" in kinds or "Nested Loop" in kinds:
        return "rows are joined before the LIMIT: take the nearest in a subquery, and join those"
    return "it cannot give this order: the query vector is volatile, computed anew for each row"
