"""What a plan tells of the search that was executed by it: EXPLAIN's answer, read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgembed.indexes.query_plan import EXACT, OPERATOR

_SET = re.compile(r"set_config\('([\w.]+)'")
_TEXTS = ("Output", "Sort Key", "Order By", "Filter")
_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond")
_WORDS = " @@ "

#: A node of a plan, with the names of the CTEs that it is in.
PlanNode = tuple[dict[str, Any], tuple[str, ...]]


def rows_of(node: Mapping[str, Any]) -> int:
    """The rows of a node: those of all times that it was executed, and of all workers."""
    rows: float = node.get("Actual Rows", 0) * node.get("Actual Loops", 0)
    return round(rows)


class ExecutedPlan:
    """The plan of a search.

    :ivar nodes: all nodes, each with the names of the CTEs that it is in.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.nodes = list(_nodes(root, ()))

    def settings(self) -> list[str]:
        """The names of the settings that were made."""
        return [
            name
            for node, ctes in self.nodes
            if ctes and ctes[-1].startswith("pgembed_settings") and rows_of(node)
            for output in node.get("Output", ())
            for name in dict.fromkeys(_SET.findall(output))
        ]

    def scans(self, column: str) -> Iterator[PlanNode]:
        """The scans of tables whose vectors in this column are compared, those that were never executed not
        included."""
        distances = [
            text for node, _ in self.nodes for text in _texts(node) if OPERATOR.search(text) is not None
        ]
        for node, ctes in self.nodes:
            if "Relation Name" in node and node["Actual Loops"]:
                named = re.compile(rf"(?<![\w\"$]){_name(node['Alias'])}\.{_name(column)}(?![\w$])")
                if any(named.search(text) for text in distances):
                    yield node, ctes

    def matches(self) -> Iterator[dict[str, Any]]:
        """The scans of tables and indexes for words, without those for the statistics of a question."""
        for node, ctes in self.nodes:
            matched = any(_WORDS in node.get(key, "") for key in _CONDITIONS)
            if matched and node["Actual Loops"] and not is_of(ctes, "question"):
                yield node

    def queries(self) -> int:
        """How many vectors were searched for."""
        asked = (node for node, ctes in self.nodes if ctes and ctes[-1].startswith("pgembed_asked_"))
        return next(map(rows_of, asked), 1)

    def exact_sorts(self, column: str) -> int:
        """How often the exact form was executed."""
        key = re.compile(rf"\.{_name(column)}(?![\w$]).*{EXACT.pattern}")
        return sum(
            int(node["Actual Loops"])
            for node, ctes in self.nodes
            if not is_of(ctes, "ann") and any(key.search(text) for text in node.get("Sort Key", ()))
        )


def _nodes(node: dict[str, Any], ctes: tuple[str, ...]) -> Iterator[PlanNode]:
    name = node.get("Subplan Name", "")
    ctes = (*ctes, name[4:]) if name.startswith("CTE ") else ctes
    yield node, ctes
    for child in node.get("Plans", ()):
        yield from _nodes(child, ctes)


def _texts(node: Mapping[str, Any]) -> Iterator[str]:
    for key in _TEXTS:
        found = node.get(key, ())
        yield from [found] if isinstance(found, str) else found


def _name(name: str) -> str:
    """A pattern for a name as Postgres writes it, with quotes where it needs them."""
    return '"?' + re.escape(name.replace('"', '""')) + '"?'


def is_of(ctes: Sequence[str], name: str) -> bool:
    """Whether a node is in a CTE of a name that :func:`pgembed.queries.core.statement.materialized` gives."""
    return any(cte.startswith(f"pgembed_{name}_") for cte in ctes)
