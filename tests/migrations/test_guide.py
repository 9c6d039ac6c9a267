"""docs/migrations.md names operations and arguments that exist."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from pgembed import embedding_column
from pgembed.migrations.setup import OPERATIONS

GUIDE = (Path(__file__).parents[2] / "docs" / "migrations.md").read_text()


def calls(function: str) -> list[ast.Call]:
    """The calls in the guide's code, such as ``op.lock_table(...)``."""
    return [
        node
        for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(function)
    ]


CALLED = {name: getattr(operation, name) for operation in OPERATIONS for name in operation.names}


def test_operations_take_the_arguments_that_the_guide_gives_them() -> None:
    found = calls("op.")
    assert {ast.unparse(call.func).removeprefix("op.") for call in found} == CALLED.keys()
    for call in found:
        if not ast.unparse(call).endswith("(...)"):
            operation = CALLED[ast.unparse(call.func).removeprefix("op.")]
            given = {str(keyword.arg): keyword.value for keyword in call.keywords}
            inspect.signature(operation).bind(None, *call.args, **given)


def test_the_declaration_of_a_change() -> None:
    (call,) = calls("embedding_column")
    assert {keyword.arg for keyword in call.keywords} <= inspect.signature(embedding_column).parameters.keys()
