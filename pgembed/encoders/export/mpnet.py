"""MPNet: all-mpnet-base-v2, multi-qa-mpnet, paraphrase-mpnet.

BERT with a learnt bias for the distance of two tokens, shared by all layers. Source: Song et al., MPNet
(2020), as in ``transformers.models.mpnet``; the buckets are those of T5 (Raffel et al., 2020).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph

PREFIXES: tuple[str, ...] = ("mpnet.",)
ANCHORS: tuple[str, ...] = ("embeddings.word_embeddings.weight",)
_FIRST_POSITION = 2  # the padding index 1 is fixed in the model's code
_MAX_DISTANCE = 128


def token_limit(config: ModelConfig) -> int:
    """The longest text in tokens."""
    return config.integer("max_position_embeddings", least=_FIRST_POSITION + 1) - _FIRST_POSITION


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    epsilon, activation = config.number("layer_norm_eps"), config.activation("hidden_act")
    width, inner_width = config.size("hidden_size"), config.size("intermediate_size")
    heads, rows = config.heads("num_attention_heads", width), config.size("max_position_embeddings")
    positions = graph.weights.take("embeddings.position_embeddings.weight", rows, width)[_FIRST_POSITION:]
    words = graph.embed(graph.weights.take(ANCHORS[0], None, width), positions)
    hidden = graph.layer_norm(words, "embeddings.LayerNorm", width, epsilon=epsilon)
    count = config.integer("relative_attention_num_buckets", 32, least=4)
    buckets = graph.weights.take("encoder.relative_attention_bias.weight", count, heads)
    limit = token_limit(config)
    bias = graph.bias_by_distance("distances", buckets[_buckets(np.arange(1 - limit, limit), len(buckets))].T)
    for index in range(config.layers("num_hidden_layers")):
        layer = f"encoder.layer.{index}"
        attended = graph.attention(
            *(
                graph.linear(hidden, f"{layer}.attention.attn.{part}", width, width)
                for part in ("q", "k", "v")
            ),
            heads=heads,
            width=width,
            bias=bias,
        )
        attended = graph.linear(attended, f"{layer}.attention.attn.o", width, width)
        hidden = graph.layer_norm(
            graph.add(attended, hidden), f"{layer}.attention.LayerNorm", width, epsilon=epsilon
        )
        inner = graph.linear(hidden, f"{layer}.intermediate.dense", width, inner_width)
        inner = graph.linear(graph.activation(inner, activation), f"{layer}.output.dense", inner_width, width)
        hidden = graph.layer_norm(
            graph.add(inner, hidden), f"{layer}.output.LayerNorm", width, epsilon=epsilon
        )
    return hidden


def _buckets(distances: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Bucket of each distance (key - query): exact ones near by, logarithmic ones further away."""
    half = count // 2
    exact = half // 2
    size = np.abs(distances)
    with np.errstate(divide="ignore"):
        # float32, as in the reference, so that boundaries fall alike
        scale = np.log(size.astype(np.float32) / np.float32(exact)) / np.float32(
            np.log(_MAX_DISTANCE / exact)
        )
    far = np.minimum(exact + np.where(size < exact, 0, scale * (half - exact)).astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(size < exact, size, far)
