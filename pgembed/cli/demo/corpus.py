"""The demo's texts: the documentation of the Python that runs it, which every machine has."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

#: No documentation, or that of programs rather than of a library.
_LEFT_OUT = frozenset(
    [
        "__pycache__",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "lib-dynload",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    ]
)


@dataclass(frozen=True)
class Documented:
    """A module, class or function and its docstring.

    :ivar path: the qualified name, unique: ``gzip.compress``.
    :ivar area: the module at the top: ``gzip``, ``xml``.
    """

    path: str
    name: str
    kind: str
    area: str
    doc: str


def standard_library(limit: int) -> list[Documented]:
    """At most ``limit`` entries of the standard library's documentation, the same ones each time.

    Modules, classes and functions come before methods; if there is no room for all methods, an even sample is
    taken. Sources are parsed, not imported; only modules written in C are imported.
    """
    found = {entry.path: entry for entry in (*_from_sources(), *_from_extensions())}
    entries = sorted(found.values(), key=lambda entry: entry.path)
    first = [entry for entry in entries if entry.kind != "method"][:limit]
    methods = [entry for entry in entries if entry.kind == "method"]
    room = min(limit - len(first), len(methods))
    return first + [methods[i * len(methods) // room] for i in range(room)]


def _from_sources() -> Iterator[Documented]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if _LEFT_OUT.intersection(parts) or any(part.startswith("_") for part in parts) or not parts:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old sources hold invalid escapes
                module = ast.parse(file.read_bytes())
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        path = ".".join(parts)
        if doc := ast.get_docstring(module):
            yield Documented(path, parts[-1], "module", parts[0], doc)
        yield from _from_body(module, path, parts[0], in_class=False)


def _from_body(parent: ast.AST, path: str, area: str, *, in_class: bool) -> Iterator[Documented]:
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        is_class = isinstance(node, ast.ClassDef)
        inner = f"{path}.{node.name}"
        if doc := ast.get_docstring(node):
            kind = "class" if is_class else "method" if in_class else "function"
            yield Documented(inner, node.name, kind, area, doc)
        if is_class:
            yield from _from_body(node, inner, area, in_class=True)


def _from_extensions() -> Iterator[Documented]:
    for name in _extension_names():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        if doc := inspect.getdoc(module):
            yield Documented(name, name, "module", name, doc)
        yield from _members(module)


def _members(module: ModuleType) -> Iterator[Documented]:
    area = module.__name__
    for name, member in inspect.getmembers(module):
        kind = "class" if inspect.isclass(member) else "function" if inspect.isbuiltin(member) else None
        if kind is None or name.startswith("_") or getattr(member, "__module__", None) != area:
            continue
        if doc := inspect.getdoc(member):
            yield Documented(f"{area}.{name}", name, kind, area, doc)


def _extension_names() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith(("_", "xx")):
            continue
        spec = importlib.util.find_spec(name)
        origin = (spec and spec.origin) or ""
        if origin == "built-in" or origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
            yield name
