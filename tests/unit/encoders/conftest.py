"""The real encoder of the tests: exported once, into a folder that git ignores, and shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgembed.encoders import Encoder, packaged

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return packaged("all-MiniLM-L6-v2", into=ROOT / ".encoders")


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Iterator[Encoder]:
    """all-MiniLM-L6-v2, opened once for all tests."""
    with Encoder(minilm_folder) as encoder:
        yield encoder
