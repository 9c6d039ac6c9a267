"""No module of the encoders needs, however late, one that needs it."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def imported(file: Path) -> set[str]:
    """The modules of this project that ``file`` imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_circles() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "pgembed" / "encoders").rglob("*.py")
    }
    graph = {
        name: {  # `from pgembed.encoders import lookup` names a module, not what stands around it
            other for other in imported(path) & files.keys() if not f"{name}.".startswith(f"{other}.")
        }
        for name, path in files.items()
    }
    assert "pgembed.encoders.sources.remote" in graph["pgembed.encoders.encoder"]
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(files)
