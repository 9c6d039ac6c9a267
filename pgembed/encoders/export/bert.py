"""BERT and its variants, which differ in names, positions and what attention adds for distances.

Sources: Devlin et al., BERT (2018); Liu et al., RoBERTa (2019); Sanh et al., DistilBERT (2019); Song et al.,
MPNet (2020), whose buckets are those of T5 (Raffel et al., 2020); all as in ``transformers.models``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph
from pgembed.encoders.export.weights import Array

_MAX_DISTANCE = 128
_SEGMENTS = "embeddings.token_type_embeddings.weight"


class Bert:
    """MiniLM, BGE, E5, GTE, SimCSE, arctic-embed and most other English encoders."""

    prefixes: tuple[str, ...] = ("bert.",)
    anchors: tuple[str, ...] = ("embeddings.word_embeddings.weight",)
    #: Keys of ``config.json``, and values that are fixed.
    width, inner_width, activation = "hidden_size", "intermediate_size", "hidden_act"
    heads, layers = "num_attention_heads", "num_hidden_layers"
    fixed: tuple[tuple[str, Any], ...] = (("position_embedding_type", "absolute"), ("is_decoder", False))
    #: Names of weights: of a layer, and inside it of query, key, value, the output of attention and its norm,
    #: the wide layer, the narrow one and its norm.
    layer = "encoder.layer"
    parts: tuple[str, ...] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    has_segments = True

    def token_limit(self, config: ModelConfig) -> int:
        """The longest text in tokens."""
        return config.size("max_position_embeddings") - self.first_position(config)

    def first_position(self, config: ModelConfig) -> int:  # noqa: ARG002
        """The row of the positions that the first token takes."""
        return 0

    def epsilon(self, config: ModelConfig) -> float:
        """What keeps norms from dividing by zero."""
        return config.number("layer_norm_eps")

    def bias(self, graph: Graph, config: ModelConfig, heads: int) -> str:  # noqa: ARG002
        """What attention adds for distances; none."""
        return ""

    def build(self, graph: Graph, config: ModelConfig) -> str:
        """The last hidden state, (tokens, width)."""
        for key, value in self.fixed:
            config.expect(key, value)
        width, inner_width = config.size(self.width), config.size(self.inner_width)
        epsilon, activation = self.epsilon(config), config.activation(self.activation)
        heads = config.heads(self.heads, width)
        positions = self._positions(graph, config, width)
        table = graph.weights.take(self.anchors[0], None, width)
        segments = graph.weights.take(_SEGMENTS, None, width) if graph.segments else None
        words = graph.embed(table, positions, segments)
        hidden = graph.layer_norm(words, "embeddings.LayerNorm", width, epsilon=epsilon)
        bias = self.bias(graph, config, heads)
        for index in range(config.layers(self.layers)):
            query, key, value, output, output_norm, wide, narrow, norm = (
                f"{self.layer}.{index}.{part}" for part in self.parts
            )
            projections = (graph.linear(hidden, name, width, width) for name in (query, key, value))
            attended = graph.attention(*projections, heads=heads, width=width, bias=bias)
            attended = graph.linear(attended, output, width, width)
            hidden = graph.layer_norm(graph.add(attended, hidden), output_norm, width, epsilon=epsilon)
            inner = graph.activation(graph.linear(hidden, wide, width, inner_width), activation)
            inner = graph.linear(inner, narrow, inner_width, width)
            hidden = graph.layer_norm(graph.add(inner, hidden), norm, width, epsilon=epsilon)
        return hidden

    def _positions(self, graph: Graph, config: ModelConfig, width: int) -> Array:
        rows, weights = config.size("max_position_embeddings"), graph.weights
        positions = weights.take("embeddings.position_embeddings.weight", rows, width)
        positions = positions[self.first_position(config) :]
        if self.has_segments and not graph.segments:
            # All tokens are of segment 0, so that row goes into the positions.
            positions = positions + weights.take(_SEGMENTS, None, width)[0]
        return positions


class Roberta(Bert):
    """RoBERTa and XLM-R: multilingual-e5, BGE-M3 (dense), paraphrase-multilingual, all-distilroberta."""

    prefixes = ("roberta.",)

    def first_position(self, config: ModelConfig) -> int:
        """After the padding index."""
        return config.integer("pad_token_id", most=config.size("max_position_embeddings") - 2) + 1


class DistilBert(Bert):
    """multi-qa-distilbert, msmarco-distilbert, distiluse."""

    prefixes = ("distilbert.",)
    width, inner_width, activation, heads, layers = "dim", "hidden_dim", "activation", "n_heads", "n_layers"
    fixed = ()
    layer = "transformer.layer"
    parts = (
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    )
    has_segments = False

    def epsilon(self, config: ModelConfig) -> float:  # noqa: ARG002
        """Fixed in the model's code."""
        return 1e-12


class Mpnet(Bert):
    """all-mpnet-base-v2, multi-qa-mpnet, paraphrase-mpnet: all layers share a learnt bias for distances."""

    prefixes = ("mpnet.",)
    fixed = ()
    parts = (
        "attention.attn.q",
        "attention.attn.k",
        "attention.attn.v",
        "attention.attn.o",
        "attention.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    has_segments = False

    def token_limit(self, config: ModelConfig) -> int:
        """The longest text in tokens."""
        first = self.first_position(config)
        return config.integer("max_position_embeddings", least=first + 1) - first

    def first_position(self, config: ModelConfig) -> int:  # noqa: ARG002
        """After the padding index, which is fixed in the model's code."""
        return 2

    def bias(self, graph: Graph, config: ModelConfig, heads: int) -> str:
        """A number for each head and bucket of distances."""
        count = config.integer("relative_attention_num_buckets", 32, least=4)
        table = graph.weights.take("encoder.relative_attention_bias.weight", count, heads)
        limit = self.token_limit(config)
        return graph.bias_by_distance("distances", table[_buckets(np.arange(1 - limit, limit), count)].T)


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
