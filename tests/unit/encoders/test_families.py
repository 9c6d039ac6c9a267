"""Every family and every part of the pipeline gives the vectors of the reference implementation.

The models are small and random; ``tests/golden/record_models.py`` made them and recorded the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder
from tests.unit.encoders.models import MODELS, TEXTS

NAMES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> tuple[str, Encoder]:
    return request.param, Encoder(tiny(request.param))


def test_there_is_a_model_of_every_family() -> None:
    assert set(NAMES) >= {
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "mpnet",
        "modernbert",
        "static",
        "words",
    }


def test_vectors_are_those_of_the_reference(model: tuple[str, Encoder]) -> None:
    name, encoder = model
    golden = np.load(MODELS / name / "golden.npz")
    for kind, encode in (("documents", encoder.encode_documents), ("queries", encoder.encode_queries)):
        wanted = golden[kind]
        if encoder.spec.dimensions < encoder.spec.width:  # we scale what is left to length 1 again
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        scale = np.abs(wanted).max()
        assert np.abs(encode(TEXTS) - wanted).max() < 1e-5 * max(scale, 1), kind
        for text, vector in zip(TEXTS, wanted, strict=True):
            assert np.abs(encode([text])[0] - vector).max() < 1e-5 * max(scale, 1), (kind, text)


def test_models_are_no_trivial_ones(model: tuple[str, Encoder]) -> None:
    """Vectors of different texts differ by far more than the tolerance of the comparison."""
    name, _ = model
    golden = np.load(MODELS / name / "golden.npz")["documents"]
    longer = golden[[len(text) > 8 for text in TEXTS]]
    distances = np.abs(longer[:, None] - longer[None]).max(axis=-1)
    assert distances[~np.eye(len(longer), dtype=bool)].min() > 1e-2
