"""Small random models, which the scripts in ``tests/golden`` have made together with what they compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = GOLDEN / "models"
TEXTS: list[str] = json.loads((MODELS / "texts.json").read_text())["texts"]
RERANKERS = GOLDEN / "rerankers"
PAIRS: list[tuple[str, str]] = [tuple(pair) for pair in json.loads((RERANKERS / "pairs.json").read_text())]


def copied(name: str, folder: Path, *left_out: str, models: Path = MODELS) -> Path:
    """A copy of a model in ``folder``, which may be edited; without the files ``left_out``."""
    ignored = shutil.ignore_patterns("*.npz", *left_out)
    return shutil.copytree(models / name, folder / "model", ignore=ignored)


def edit(path: Path, **values: Any) -> None:
    """Change members of a JSON object in a file, which need not exist."""
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))
