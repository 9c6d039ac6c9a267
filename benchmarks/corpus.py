"""Real text that every machine has: the documentation inside Python's own standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def docstrings(limit: int) -> list[str]:
    """The first ``limit`` different docstrings of modules, classes and functions, in a fixed order."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or "tests" in path.parts:
            continue
        for text in _in_file(path):
            found.setdefault(text)
        if len(found) >= limit:
            break
    return list(found)[:limit]


def _in_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates that are no modules
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def short(count: int) -> list[str]:
    """First lines of docstrings, about ten words each."""
    return list(dict.fromkeys(text.splitlines()[0] for text in docstrings(4 * count)))[:count]


def long(count: int, *, words: int = 400) -> list[str]:
    """Passages beyond the limit of 256 tokens, of ``words`` words each."""
    stream = " ".join(docstrings(30 * count)).split()
    return [" ".join(stream[start : start + words]) for start in range(0, count * words, words)]


def mixed(count: int) -> list[str]:
    """Whole docstrings as they come, with one 256-token passage among every ten."""
    passages = long(count // 10)
    return [*docstrings(count - len(passages)), *passages]


def many(count: int) -> list[str]:
    """Any number of different texts of mixed length: those of :func:`mixed` again and again, numbered."""
    texts = mixed(min(count, 4000))
    return [f"{index}. {texts[index % len(texts)]}" for index in range(count)]
