"""Encoders of the small models, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pgembed.encoders import export_onnx
from tests.unit.encoders.models import MODELS, RERANKERS


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model's encoder, which is called ``tiny`` and must not be changed."""
    return cache(lambda name: export_onnx(MODELS / name, tmp_path_factory.mktemp(name) / "tiny"))


@pytest.fixture(scope="session")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an exported cross-encoder, which must not be changed."""
    return cache(lambda name: export_onnx(RERANKERS / name, tmp_path_factory.mktemp("rerankers") / name))
