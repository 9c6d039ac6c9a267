"""Vectors of tokens to one vector per text, inside the graph.

The modes and their formulas are those of sentence-transformers
(``sentence_transformers.models.Pooling``), including their order when several are concatenated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto

from pgembed.encoders.export.graph import ACTIVATIONS, Graph
from pgembed.encoders.export.pipeline import Step
from pgembed.encoders.export.weights import Weights, weight_files
from pgembed.encoders.files import shown
from pgembed.exc import EncoderFilesError, EncoderOptionError

Steps = Sequence[tuple[Step, Weights | None]]

_LEAST = np.float32(1e-9)  # keeps a text without tokens from dividing by zero


def pool(graph: Graph, hidden: str, modes: Sequence[str]) -> str:
    """Pool ``hidden`` of shape (texts, tokens, width) to (texts, width * number of modes).

    :raises EncoderOptionError: an unknown mode.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise EncoderOptionError("pooling mode", unknown[0] if unknown else None, needed=" or ".join(MODES))
    pooled = [MODES[mode](graph, hidden) for mode in modes]
    return pooled[0] if len(pooled) == 1 else graph.op("Concat", *pooled, axis=-1)


def normalize(graph: Graph, vectors: str) -> str:
    """Scale vectors to length 1; a vector of zeros stays as it is."""
    norm = graph.reduce("ReduceL2", vectors, -1, keep=True)
    return graph.op("Div", vectors, graph.op("Max", norm, graph.constant(np.float32(1e-12))))


def opened(steps: Iterable[Step]) -> tuple[Steps, list[Path]]:
    """The modules after the pooling with their weights, and the files of these.

    :raises EncoderFilesError: weights are missing or damaged.
    """
    found = [
        (step, None if step.kind == "Normalize" else Weights(weight_files(step.folder))) for step in steps
    ]
    return found, [path for _, weights in found if weights is not None for path in weights.files]


def follow(graph: Graph, vectors: str, steps: Steps, width: int) -> tuple[str, int]:
    """Add the modules after the pooling; returns the vectors and their width."""
    for index, (step, weights) in enumerate(steps):
        label = f"step.{index}."
        if weights is None:
            vectors = normalize(graph, vectors)
        elif step.kind == "LayerNorm":
            vectors = graph.layer_norm(vectors, "norm", width, epsilon=1e-5, weights=weights, label=label)
        else:
            vectors, width = _dense(graph, vectors, step, weights, width, label)
    return vectors, width


def _dense(
    graph: Graph, vectors: str, step: Step, weights: Weights, width: int, label: str
) -> tuple[str, int]:
    """A dense layer after the pooling."""
    config = step.config
    if config.flag("use_residual", False):
        raise EncoderFilesError(step.folder.path, "a dense layer with use_residual", needed="one without")
    stated = config.get("activation_function", "torch.nn.Tanh")
    if not str(stated).startswith("torch.nn.") or step.activation not in ("identity", *ACTIVATIONS):
        needed = f"identity or {' or '.join(ACTIVATIONS)}, of torch.nn"
        raise EncoderFilesError(step.folder.path, f"the activation {shown(stated)}", needed=needed)
    if config.integer("in_features", width) != width:
        raise config.wrong("in_features", needed=f"{width}, the width of the vectors so far")
    if config.flag("bias", "linear.bias" in weights) != ("linear.bias" in weights):
        raise config.wrong("bias", needed="what the weights have")
    outputs = config.integer("out_features", len(weights.take("linear.weight", None, width)), least=1)
    vectors = graph.linear(vectors, "linear", width, outputs, weights=weights, label=label)
    if step.activation != "identity":
        vectors = graph.activation(vectors, step.activation)
    return vectors, outputs


def _weighted_sum(graph: Graph, hidden: str, weights: str) -> str:
    """Sum over tokens of ``hidden * weights``, with weights of shape (texts, tokens)."""
    row = graph.op("Unsqueeze", weights, graph.constant([1]))
    return graph.op("Squeeze", graph.op("MatMul", row, hidden), graph.constant([1]))


def _total(graph: Graph, weights: str) -> str:
    total = graph.reduce("ReduceSum", weights, 1, keep=True)
    return graph.op("Max", total, graph.constant(_LEAST))


def _mask(graph: Graph) -> str:
    return graph.op("Cast", graph.pooling_mask, to=TensorProto.FLOAT)


def _mean(graph: Graph, hidden: str) -> str:
    mask = _mask(graph)
    return graph.op("Div", _weighted_sum(graph, hidden, mask), _total(graph, mask))


def _mean_sqrt_len(graph: Graph, hidden: str) -> str:
    mask = _mask(graph)
    return graph.op("Div", _weighted_sum(graph, hidden, mask), graph.op("Sqrt", _total(graph, mask)))


def _weighted_mean(graph: Graph, hidden: str) -> str:
    """Later tokens weigh more: token ``i`` has the weight ``i + 1`` (SGPT)."""
    mask = _mask(graph)
    positions = graph.op("Add", graph.steps(), graph.constant(np.int64(1)))
    weights = graph.op("Mul", mask, graph.op("Cast", positions, to=TensorProto.FLOAT))
    return graph.op("Div", _weighted_sum(graph, hidden, weights), _total(graph, weights))


def _max(graph: Graph, hidden: str) -> str:
    out = graph.op("Sub", _mask(graph), graph.constant(np.float32(1)))  # 0 for tokens, -1 for padding
    penalty = graph.op("Mul", out, graph.constant(np.float32(1e30)))
    masked = graph.op("Add", hidden, graph.op("Unsqueeze", penalty, graph.constant([-1])))
    return graph.reduce("ReduceMax", masked, 1, keep=False)


def _at(graph: Graph, hidden: str, indices: str) -> str:
    """The token vector at each text's index, of shape (texts, 1)."""
    return graph.op("GatherND", hidden, indices, batch_dims=1)


def _cls(graph: Graph, hidden: str) -> str:
    first = graph.op("ArgMax", _mask(graph), axis=1, keepdims=1)
    return _at(graph, hidden, first)


def _last(graph: Graph, hidden: str) -> str:
    """The last token; zeros for a text of which nothing is pooled, whatever the padding holds."""
    mask = _mask(graph)
    last = graph.op("ArgMax", mask, axis=1, keepdims=1, select_last_index=1)
    return graph.op("Mul", _at(graph, hidden, last), graph.reduce("ReduceMax", mask, 1, keep=True))


MODES = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
