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
    return config.size("max_position_embeddings")


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    return transformer(graph, config, first_position=0)


def transformer(graph: Graph, config: ModelConfig, *, first_position: int) -> str:
    """Embeddings and layers; the first token takes the row ``first_position`` of the positions."""
    config.expect("position_embedding_type", "absolute", default="absolute")
    config.expect("is_decoder", False, default=False)
    width, inner_width = config.size("hidden_size"), config.size("intermediate_size")
    epsilon, activation = config.number("layer_norm_eps"), config.activation("hidden_act")
    heads = config.heads("num_attention_heads", width)
    rows, weights = config.size("max_position_embeddings"), graph.weights
    # A single text is all of segment 0, so that row goes into the positions.
    positions = weights.take("embeddings.position_embeddings.weight", rows, width)[first_position:]
    positions = positions + weights.take("embeddings.token_type_embeddings.weight", None, width)[0]
    words = graph.embed(weights.take(ANCHORS[0], None, width), positions)
    hidden = graph.layer_norm(words, "embeddings.LayerNorm", width, epsilon=epsilon)
    for index in range(config.layers("num_hidden_layers")):
        layer = f"encoder.layer.{index}"
        attended = graph.attention(
            *(
                graph.linear(hidden, f"{layer}.attention.self.{part}", width, width)
                for part in ("query", "key", "value")
            ),
            heads=heads,
            width=width,
        )
        attended = graph.linear(attended, f"{layer}.attention.output.dense", width, width)
        hidden = graph.layer_norm(
            graph.add(attended, hidden), f"{layer}.attention.output.LayerNorm", width, epsilon=epsilon
        )
        inner = graph.linear(hidden, f"{layer}.intermediate.dense", width, inner_width)
        inner = graph.linear(graph.activation(inner, activation), f"{layer}.output.dense", inner_width, width)
        hidden = graph.layer_norm(
            graph.add(inner, hidden), f"{layer}.output.LayerNorm", width, epsilon=epsilon
        )
    return hidden
