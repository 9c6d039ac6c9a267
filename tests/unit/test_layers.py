"""The house rules that no type checker knows: imports run one way, and importing pgembed loads little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgembed

PACKAGE = Path(__file__).parents[2] / "pgembed"

#: Layers from the bottom up; what stands on one line does not import each other, but for what is named below.
LAYERS = (
    ("exc", "metrics"),
    ("encoders", "columns"),
    ("indexes", "queries", "database"),
    ("filling",),
    ("reembedding",),
    ("migrations", "testing", "cli"),
)
#: Neighbours on one layer that may be used: an error has no dependencies, a search asks for the index, and a
#: column's encoder has the threads of all encoders.
NEIGHBOURS = {("metrics", "exc"), ("queries", "indexes"), ("columns", "encoders")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports() -> Iterator[tuple[str, str, Path]]:
    """(importing part, imported part, file) for every import inside the package."""
    for file in PACKAGE.rglob("*.py"):
        relative = file.relative_to(PACKAGE)
        if relative == Path("__init__.py"):
            continue
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                if module.startswith("pgembed."):
                    yield part, module.split(".")[1], file


def test_imports_run_one_way() -> None:
    found = list(imports())
    assert len(found) > 50
    wrong = [
        f"{file.relative_to(PACKAGE)}: {part} -> {imported}"
        for part, imported, file in found
        if part != imported and (part, imported) not in NEIGHBOURS and LEVEL[imported] >= LEVEL[part]
    ]
    assert wrong == []


def test_every_part_has_its_layer() -> None:
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} <= LEVEL.keys()


def loaded(code: str, *modules: str) -> list[str]:
    """Which of the modules a new process has loaded when it has run the code."""
    code += f"\nimport sys; print(*(name for name in {modules} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code", ["import pgembed", "from pgembed import Encoder, PgembedError", "import pgembed.encoders"]
)
def test_encoders_alone_load_nothing_of_databases(code: str) -> None:
    assert loaded(code, "pgembed.encoders", "sqlalchemy.orm", "pgembed.columns") == ["pgembed.encoders"]


@pytest.mark.parametrize(
    "code",
    [
        "from pgembed import embedding_column",
        "from pgembed import *",
        "import pgembed; pgembed.Vector",
        "from pgembed import database",
        # From the part itself, the first column does.
        "from pgembed.columns import embedding_column; from pgembed.encoders import Encoder\n"
        "embedding_column('words', encoder=Encoder('any', fingerprint='0' * 32, dimensions=3))",
    ],
)
def test_hooks_listen_before_there_is_a_column(code: str) -> None:
    parts = ("pgembed.columns.hooks.flush", "pgembed.columns.registration")
    assert loaded(code, *parts) == list(parts)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'pgembed' has no attribute 'nothing'"):
        pgembed.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert {name for name in pgembed.__all__ if not hasattr(pgembed, name)} == set()


@pytest.mark.parametrize(
    "module", ["pgembed.filling", "pgembed.testing", "pgembed.queries", "pgembed.indexes"]
)
def test_importing_loads_no_runtime_no_migrations_no_command_line(module: str) -> None:
    heavy = (
        "psycopg",
        "onnxruntime",
        "onnx",
        "safetensors",
        "tokenizers",
        "alembic",
        "typer",
        "rich",
        "matplotlib",
    )
    assert loaded(f"import {module}", *heavy) == []


@pytest.mark.parametrize("package", ["encoders", "filling", "indexes", "queries"])
def test_the_table_of_a_package_names_its_files(package: str) -> None:
    """Each once, and none that is gone."""
    folder = PACKAGE / package
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    bars = [line for line in docstring.splitlines() if line.startswith("===")]
    width = bars[0].index(" ")
    rows = docstring.split(bars[0])[2].splitlines()
    named = [name for row in rows for name in row[:width].replace(",", " ").split()]
    files = [file.stem for file in folder.glob("*.py") if file.stem != "__init__"]
    folders = [file.parent.name for file in folder.glob("*/__init__.py")]
    assert sorted(named) == sorted([*files, *folders])
