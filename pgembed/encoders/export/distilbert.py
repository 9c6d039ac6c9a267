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
    return config.integer("max_position_embeddings")


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    activation = config.activation("activation")
    positions = graph.weights["embeddings.position_embeddings.weight"]
    hidden = graph.layer_norm(
        graph.embed(graph.weights[ANCHORS[0]], positions), "embeddings.LayerNorm", epsilon=_EPSILON
    )
    for index in range(config.integer("n_layers")):
        layer = f"transformer.layer.{index}"
        attended = graph.attention(
            *(graph.linear(hidden, f"{layer}.attention.{part}_lin") for part in ("q", "k", "v")),
            heads=config.integer("n_heads"),
            width=config.integer("dim"),
        )
        attended = graph.linear(attended, f"{layer}.attention.out_lin")
        hidden = graph.layer_norm(graph.add(attended, hidden), f"{layer}.sa_layer_norm", epsilon=_EPSILON)
        inner = graph.activation(graph.linear(hidden, f"{layer}.ffn.lin1"), activation)
        inner = graph.linear(inner, f"{layer}.ffn.lin2")
        hidden = graph.layer_norm(graph.add(inner, hidden), f"{layer}.output_layer_norm", epsilon=_EPSILON)
    return hidden
