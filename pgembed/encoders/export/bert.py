"""BERT: MiniLM, BGE, E5, GTE, SimCSE, arctic-embed and most other English encoders.

Source: Devlin et al., BERT (2018), as in ``transformers.models.bert.modeling_bert``.
"""

from __future__ import annotations

from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph

PREFIXES: tuple[str, ...] = ("bert.",)
ANCHORS: tuple[str, ...] = ("embeddings.word_embeddings.weight",)


def token_limit(config: ModelConfig) -> int:
    """The longest text in tokens."""
    return config.integer("max_position_embeddings")


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    return transformer(graph, config, first_position=0)


def transformer(graph: Graph, config: ModelConfig, *, first_position: int) -> str:
    """Embeddings and layers; the first token takes the row ``first_position`` of the positions."""
    config.expect("position_embedding_type", "absolute", default="absolute")
    config.expect("is_decoder", False, default=False)
    hidden_width, epsilon = config.integer("hidden_size"), config.number("layer_norm_eps")
    heads, activation = config.integer("num_attention_heads"), config.activation("hidden_act")
    # A single text is all of segment 0, so that row goes into the positions.
    positions = graph.weights["embeddings.position_embeddings.weight"][first_position:]
    positions = positions + graph.weights["embeddings.token_type_embeddings.weight"][0]
    hidden = graph.layer_norm(
        graph.embed(graph.weights[ANCHORS[0]], positions), "embeddings.LayerNorm", epsilon=epsilon
    )
    for index in range(config.integer("num_hidden_layers")):
        layer = f"encoder.layer.{index}"
        attended = graph.attention(
            *(graph.linear(hidden, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")),
            heads=heads,
            width=hidden_width,
        )
        attended = graph.linear(attended, f"{layer}.attention.output.dense")
        hidden = graph.layer_norm(
            graph.add(attended, hidden), f"{layer}.attention.output.LayerNorm", epsilon=epsilon
        )
        inner = graph.activation(graph.linear(hidden, f"{layer}.intermediate.dense"), activation)
        inner = graph.linear(inner, f"{layer}.output.dense")
        hidden = graph.layer_norm(graph.add(inner, hidden), f"{layer}.output.LayerNorm", epsilon=epsilon)
    return hidden
