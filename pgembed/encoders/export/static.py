"""Averages of word vectors, without a transformer: model2vec and other static models, GloVe, DAN.

Sources: ``StaticEmbedding`` and ``WordEmbeddings`` of sentence-transformers; Iyyer et al., Deep Unordered
Composition (2015) for averages with dense layers on top.
"""

from __future__ import annotations

import numpy as np

from pgembed.encoders.export.weights import Array, Weights

ANCHORS: tuple[str, ...] = ("embedding.weight", "embeddings", "emb_layer.weight")
TOKEN_LIMIT = 1_000_000  # none; texts of any length are averaged


def table(weights: Weights) -> Array:
    """One vector a token id.

    model2vec may store fewer vectors than tokens (``mapping``) and a weight for each token (``weights``).
    """
    rows = weights[weights.anchor]
    if weights.anchor == "embeddings":
        mapping, scale = weights.get("mapping"), weights.get("weights")
        rows = rows if mapping is None else rows[mapping.astype(np.int64)]
        rows = rows if scale is None else rows * scale[:, None]
    return np.ascontiguousarray(rows, dtype=np.float32)
