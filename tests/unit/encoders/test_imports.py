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
        name: {  # `from pgembed.encoders import forks` names a module, not what stands around it
            other for other in imported(path) & files.keys() if not f"{name}.".startswith(f"{other}.")
        }
        for name, path in files.items()
    }
    assert "pgembed.encoders.sources.remote" in graph["pgembed.encoders.encoder"]
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(files)


#: From the bottom up; the files beside the rooms, but for the models and their base, are shared by all.
ROOMS = ("text", "onnx", "export", "sources", "spans", "shared", "encoder", "reranker", "serving")


def test_rooms_have_an_order() -> None:
    seen = set()
    for path in (ROOT / "pgembed" / "encoders").rglob("*.py"):
        room = path.relative_to(ROOT / "pgembed" / "encoders").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported(path):
            needed = other.removeprefix("pgembed.encoders.").split(".")[0]
            if other.startswith("pgembed.encoders.") and needed in ROOMS and needed != room:
                seen.add((room, needed))
                assert room in ROOMS, f"{path} is shared, and needs {needed}"
                assert ROOMS.index(needed) < ROOMS.index(room), f"{path} needs {needed}"
    assert {("shared", "sources"), ("encoder", "shared"), ("reranker", "shared")} <= seen
