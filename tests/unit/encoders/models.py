"""Small random models, which ``tests/golden/record_models.py`` has made together with their vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = GOLDEN / "models"
TEXTS: list[str] = json.loads((MODELS / "texts.json").read_text())["texts"]


def copied(name: str, folder: Path, *left_out: str) -> Path:
    """A copy of a model in ``folder``, which may be edited; without the files ``left_out``."""
    ignored = shutil.ignore_patterns("*.npz", *left_out)
    return shutil.copytree(MODELS / name, folder / "model", ignore=ignored)


def edit(path: Path, **values: Any) -> None:
    """Change members of a JSON object in a file, which need not exist."""
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))
