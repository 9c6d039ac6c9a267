"""ModernBERT: gte-modernbert, modernbert-embed and other encoders of 2025.

Rotary positions, gated linear units, norms before the blocks, and attention to a window of neighbours in most
layers. Source: Warner et al., ModernBERT (2024), as in ``transformers.models.modernbert``.
"""

from __future__ import annotations

import numpy as np

from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import MASKED, Graph

_THETAS = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLDER_KEYS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


class ModernBert:
    """As ``modernbert`` in ``config.json``."""

    prefixes: tuple[str, ...] = ("model.",)
    anchors: tuple[str, ...] = ("embeddings.tok_embeddings.weight",)
    has_segments = False

    def token_limit(self, config: ModelConfig) -> int:
        """The longest text in tokens."""
        return config.size("max_position_embeddings")

    def build(self, graph: Graph, config: ModelConfig) -> str:
        """The last hidden state, (tokens, width)."""
        width, inner_width = config.size("hidden_size"), config.size("intermediate_size")
        epsilon, activation = config.number("norm_eps"), config.activation("hidden_activation")
        heads = config.heads("num_attention_heads", width)
        if width // heads % 2:
            raise config.wrong("num_attention_heads", needed=f"heads of an even width, which share {width}")
        words = graph.embed(graph.weights.take(self.anchors[0], None, width))
        hidden = graph.layer_norm(words, "embeddings.norm", width, epsilon=epsilon)
        for index, kind in enumerate(_layer_types(config)):
            layer = f"layers.{index}"
            # The first layer follows the norm of the embeddings and needs no other.
            name = f"{layer}.attn_norm"
            normed = graph.layer_norm(hidden, name, width, epsilon=epsilon) if index else hidden
            query, key, value = _projections(graph, normed, f"{layer}.attn.Wqkv", width)
            cosines, sines = _rotation(graph, config, kind, width // heads)
            attended = graph.attention(
                graph.rotary(query, cosines, sines, width=width),
                graph.rotary(key, cosines, sines, width=width),
                value,
                heads=heads,
                width=width,
                bias=_window(graph, config) if kind == "sliding_attention" else "",
            )
            hidden = graph.add(hidden, graph.linear(attended, f"{layer}.attn.Wo", width, width))
            normed = graph.layer_norm(hidden, f"{layer}.mlp_norm", width, epsilon=epsilon)
            both = graph.linear(normed, f"{layer}.mlp.Wi", width, 2 * inner_width)
            inner, gate = graph.ops("Split", both, outputs=2, axis=-1)
            gated = graph.op("Mul", graph.activation(inner, activation), gate)
            hidden = graph.add(hidden, graph.linear(gated, f"{layer}.mlp.Wo", inner_width, width))
        return graph.layer_norm(hidden, "final_norm", width, epsilon=epsilon)


def _layer_types(config: ModelConfig) -> list[str]:
    count = config.layers("num_hidden_layers")
    stated = config.texts("layer_types", [])
    if stated:
        if len(stated) != count or not set(stated) <= set(_THETAS):
            raise config.wrong("layer_types", needed=f"{count} of {' and '.join(_THETAS)}")
        return stated
    every = config.integer("global_attn_every_n_layers", least=1)
    return ["sliding_attention" if index % every else "full_attention" for index in range(count)]


def _projections(graph: Graph, hidden: str, name: str, hidden_width: int) -> list[str]:
    """Queries, keys and values from the one matrix that holds the weights of all three."""
    weight = graph.weights.take(f"{name}.weight", 3 * hidden_width, hidden_width)
    bias = graph.weights.get(f"{name}.bias", 3 * hidden_width)
    parts = [slice(start, start + hidden_width) for start in range(0, 3 * hidden_width, hidden_width)]
    return [
        graph.product(hidden, f"{name}.{i}", weight[part].T, None if bias is None else bias[part])
        for i, part in enumerate(parts)
    ]


def _rotation(graph: Graph, config: ModelConfig, kind: str, head_width: int) -> tuple[str, str]:
    """Tables of cosines and sines, (positions, head width / 2)."""
    stated = config.table("rope_parameters").table(kind)
    stated.expect("rope_type", "default")
    theta = stated.number("rope_theta", config.number(_OLDER_KEYS[kind], _THETAS[kind]))
    frequencies = 1.0 / theta ** (np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width))
    angles = np.outer(
        np.arange(config.size("max_position_embeddings"), dtype=np.float32), frequencies.astype(np.float32)
    )
    return (
        graph.initializer(f"rotation.{kind}.cosines", np.cos(angles).astype(np.float32)),
        graph.initializer(f"rotation.{kind}.sines", np.sin(angles).astype(np.float32)),
    )


def _window(graph: Graph, config: ModelConfig) -> str:
    """Local attention: tokens further away than half the window are masked."""
    limit = config.size("max_position_embeddings")
    reach = config.integer("local_attention") // 2
    table = np.where(np.abs(np.arange(1 - limit, limit)) <= reach, 0.0, MASKED).astype(np.float32)
    return graph.bias_by_distance("window", table[None])
