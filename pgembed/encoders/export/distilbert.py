"""DistilBERT: multi-qa-distilbert, msmarco-distilbert, distiluse.

Source: Sanh et al., DistilBERT (2019), as in ``transformers.models.distilbert``.
"""

from __future__ import annotations

from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph

PREFIXES: tuple[str, ...] = ("distilbert.",)
ANCHORS: tuple[str, ...] = ("embeddings.word_embeddings.weight",)
_EPSILON = 1e-12  # fixed in the model's code


def token_limit(config: ModelConfig) -> int:
    """The longest text in tokens."""
    return config.size("max_position_embeddings")


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    activation = config.activation("activation")
    width, inner_width = config.size("dim"), config.size("hidden_dim")
    heads, rows = config.heads("n_heads", width), config.size("max_position_embeddings")
    positions = graph.weights.take("embeddings.position_embeddings.weight", rows, width)
    words = graph.embed(graph.weights.take(ANCHORS[0], None, width), positions)
    hidden = graph.layer_norm(words, "embeddings.LayerNorm", width, epsilon=_EPSILON)
    for index in range(config.layers("n_layers")):
        layer = f"transformer.layer.{index}"
        attended = graph.attention(
            *(
                graph.linear(hidden, f"{layer}.attention.{part}_lin", width, width)
                for part in ("q", "k", "v")
            ),
            heads=heads,
            width=width,
        )
        attended = graph.linear(attended, f"{layer}.attention.out_lin", width, width)
        hidden = graph.layer_norm(
            graph.add(attended, hidden), f"{layer}.sa_layer_norm", width, epsilon=_EPSILON
        )
        inner = graph.linear(hidden, f"{layer}.ffn.lin1", width, inner_width)
        inner = graph.linear(graph.activation(inner, activation), f"{layer}.ffn.lin2", inner_width, width)
        hidden = graph.layer_norm(
            graph.add(inner, hidden), f"{layer}.output_layer_norm", width, epsilon=_EPSILON
        )
    return hidden
