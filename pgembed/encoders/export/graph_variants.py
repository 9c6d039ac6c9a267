"""The graphs for less than 32 bits: 8 bit integers on the CPU, packed texts in 16 bit floats on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from pgembed.encoders.export.graph import MICROSOFT, OPSET, Graph
from pgembed.encoders.export.weight_file import WeightFile
from pgembed.encoders.export.weights import Weights

_HIGHEST = 63  # of 7 bits with a sign
_MASKED = -6e4  # the lowest round number of 16 bits


class Int8Graph(Graph):
    """As :class:`Graph`, with the linear layers of the transformer in 8 bit, for the CPU.

    Weights are quantised per column, activations while the graph runs. Weights use 7 of their 8 bits:
    processors without VNNI add pairs of products in 16 bits, which saturate with the full range; with 7 bits
    all processors compute the same vectors, so that one fingerprint means one vector.
    """

    def product(
        self, hidden: str, name: str, matrix: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
    ) -> str:
        """``hidden @ matrix + bias``."""
        if self.pooled:  # dense layers behind the pooling are small and stay exact
            return super().product(hidden, name, matrix, bias)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12).astype(np.float32) / np.float32(_HIGHEST)
        quantised = np.rint(matrix / scale).astype(np.int8)
        inputs = [
            hidden,
            self.initializer(f"{name}.weight.int8", quantised),
            self.initializer(f"{name}.scale", scale),
            self.initializer(f"{name}.zero", np.zeros(len(scale), dtype=np.int8)),
        ]
        if bias is not None:
            inputs.append(self.initializer(f"{name}.bias", bias))
        return self.op("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)


class PackedGraph(Graph):
    """As :class:`Graph`, for CUDA: 16 bit floats, and no padding at all.

    The tokens of all texts lie end to end, so no arithmetic is spent on padding, and attention runs as flash
    attention with the texts' boundaries (``PackedMultiHeadAttention`` of ONNX Runtime). Pooling and
    normalisation are in 32 bit. The weights are those of the CPU's graph, cast when the graph is opened.

    Inputs: ``input_ids`` and ``position_ids``, int64 of shape (tokens of all texts); ``token_offset``, int32
    of shape (texts, longest): the places of the tokens in a padded batch, those of the padding behind them;
    ``cumulative_sequence_length``, int32 of shape (texts + 1); ``attention_mask`` (and ``pooling_mask``),
    int64 of shape (texts, longest), for the pooling.
    """

    def __init__(
        self,
        weights: Weights | None,
        file: WeightFile,
        *,
        include_prompt: bool = True,
        segments: bool = False,
        opset: int = OPSET,
    ) -> None:
        super().__init__(weights, file, include_prompt=include_prompt, segments=segments, opset=opset)
        padded = self._inputs["attention_mask"]
        for name in ("input_ids", "position_ids", *(["token_type_ids"] if segments else [])):
            self._inputs[name] = (TensorProto.INT64, ("all_tokens",))
        self._inputs["token_offset"] = (TensorProto.INT32, padded[1])
        self._inputs["cumulative_sequence_length"] = (TensorProto.INT32, ("texts_and_one",))

    def initializer(self, name: str, array: npt.NDArray[Any]) -> str:
        """A weight, in 16 bit inside the transformer."""
        stored = super().initializer(name, array)
        if self.pooled or array.dtype != np.float32:
            return stored
        return self.once(f"half {name}", self._as_half(stored))

    def _as_half(self, tensor: str) -> Callable[[], str]:
        return lambda: self.op("Cast", tensor, to=TensorProto.FLOAT16)

    def length(self) -> str:
        """The number of tokens of the longest text, an int64 vector of one."""
        return self.once("length", lambda: self.shape("token_offset", 1, 2))

    def embed(
        self,
        table: npt.NDArray[Any],
        positions: npt.NDArray[Any] | None = None,
        segments: npt.NDArray[Any] | None = None,
    ) -> str:
        """Sum of the rows of ``table``, of ``positions`` and of ``segments``: (tokens, width)."""
        words = self._words(table, segments)
        if positions is None:
            return words
        return self.op(
            "Add", words, self.op("Gather", self.initializer("positions", positions), "position_ids")
        )

    def rotary(self, projection: str, cosines: str, sines: str, *, width: int) -> str:  # noqa: ARG002
        """Rotary position embedding of a (tokens, width) projection."""
        axis = self.once("first axis", lambda: self.constant([0]))
        positions = self.once("positions in a row", lambda: self.op("Unsqueeze", "position_ids", axis))
        inputs = [self.op("Unsqueeze", projection, axis), positions, cosines, sines]
        return self.op("Squeeze", self.op("RotaryEmbedding", *inputs, domain=MICROSOFT), axis)

    def bias_by_distance(self, name: str, table: npt.NDArray[Any]) -> str:
        """What attention adds for the distance of two tokens: (1, heads, longest, longest)."""
        return super().bias_by_distance(name, np.maximum(table, np.float32(_MASKED)))

    def attention(self, query: str, key: str, value: str, *, heads: int, width: int, bias: str = "") -> str:  # noqa: ARG002
        """Multi-head self-attention of each text for itself."""
        inputs = [query, key, value, "", "token_offset", "cumulative_sequence_length"]
        if bias:
            inputs.append(bias)
        return self.op("PackedMultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads)

    def to_pool(self, hidden: str, width: int) -> str:  # noqa: ARG002
        """The last hidden state with padding restored, float32 of shape (texts, longest, width)."""
        self.pooled = True
        padded = self.op("RestorePadding", hidden, "token_offset", domain=MICROSOFT)
        return self.op("Cast", padded, to=TensorProto.FLOAT)
