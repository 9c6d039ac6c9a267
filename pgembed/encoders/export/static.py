"""Averages of word vectors, without a transformer: model2vec and other static models, GloVe, DAN.

Sources: ``StaticEmbedding`` and ``WordEmbeddings`` of sentence-transformers; Iyyer et al., Deep Unordered
Composition (2015) for averages with dense layers on top.
"""

from __future__ import annotations

import numpy as np

from pgembed.encoders.export.weights import Array, Weights
from pgembed.exc import EncoderFilesError

ANCHORS: tuple[str, ...] = ("embedding.weight", "embeddings", "emb_layer.weight")
TOKEN_LIMIT = 1_000_000  # none; texts of any length are averaged


def table(weights: Weights) -> Array:
    """One vector a token id.

    model2vec may store fewer vectors than tokens (``mapping``) and a weight for each token (``weights``).
    """
    rows = weights.take(weights.anchor, None, None, kinds="fi")  # model2vec has some in 8 bit
    if weights.anchor == "embeddings":
        if "mapping" in weights:
            mapping = weights.numbers("mapping", None)
            if not 0 <= mapping.min() <= mapping.max() < len(rows):
                found = f"a mapping to the rows {mapping.min()} to {mapping.max()}"
                raise EncoderFilesError(weights.files[0], found, needed=f"rows 0 to {len(rows) - 1}")
            rows = rows[mapping]
        if "weights" in weights:
            rows = rows * weights.take("weights", len(rows))[:, None]
    return np.ascontiguousarray(rows, dtype=np.float32)
