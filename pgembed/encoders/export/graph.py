"""An ONNX graph under construction.

Families (``bert.py``, ...) say what a model computes with the verbs of this class: linear layers, layer
norms, attention. What operators that becomes is decided here, once for all families.

Weights of some size are written to one file beside the graph, from where ONNX Runtime maps them into memory;
graphs for other devices share that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pgembed.encoders.export.weights import Weights

OPSET = 17
IR_VERSION = 8  # read by every onnxruntime that the project supports
MICROSOFT = "com.microsoft"
_INLINE_BYTES = 1024
_ALIGNMENT = 4096  # a page, so that a tensor can be mapped
_MASKED = float(np.finfo(np.float32).min)


class WeightFile:
    """The file that holds the weights of all graphs of an encoder; each name is written once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._written: dict[str, TensorProto] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> TensorProto:
        """An initializer called ``name``, kept in the file unless it is small."""
        if array.nbytes <= _INLINE_BYTES:
            return numpy_helper.from_array(np.ascontiguousarray(array), name)
        if name not in self._written:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            tensor = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                dims=array.shape,
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": self._name, "offset": self._file.tell(), "length": array.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._file.write(np.ascontiguousarray(array).data)
            self._written[name] = tensor
        return self._written[name]


class Graph:
    """Nodes and initializers, with the layers that encoders are made of.

    Hidden states are kept as ``(tokens, width)`` with all texts of the batch one after the other, so that
    linear layers are single matrix products with their bias; attention alone sees ``(texts, tokens, width)``.

    Inputs: ``input_ids`` and ``attention_mask``, both int64 of shape (texts, tokens); texts are padded on the
    right. Output: ``embedding``, float32 of shape (texts, width).

    :param weights: the model's weights.
    :param file: where large initializers go.
    """

    def __init__(self, weights: Weights, file: WeightFile) -> None:
        self.weights = weights
        self._file = file
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._count = 0
        self.pooling_mask = "attention_mask"
        self.padded = self.op(
            "Less", self.op("ReduceMin", "attention_mask", keepdims=0), self.constant(np.int64(1))
        )
        self._key_mask = self.op("Cast", "attention_mask", to=TensorProto.INT32)

    # --- building blocks --------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        self._count += 1
        output = f"{kind.lower()}_{self._count}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, value: Any) -> str:
        """A small constant."""
        self._count += 1
        name = f"constant_{self._count}"
        self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def initializer(self, name: str, array: npt.NDArray[Any]) -> str:
        """A weight; ``name`` identifies it among all graphs of the encoder."""
        self._initializers[name] = self._file.add(name, array)
        return name

    def shape(self, tensor: str, first: int, last: int) -> str:
        """The sizes ``first`` up to ``last`` (excluded) of ``tensor``, an int64 vector."""
        return self.op("Shape", tensor, start=first, end=last)

    # --- layers -----------------------------------------------------------------------------------

    def embed(self, table: str, array: npt.NDArray[Any]) -> str:
        """Rows of an embedding table for the input ids: (texts, tokens, width)."""
        return self.op("Gather", self.initializer(table, array), "input_ids")

    def embed_positions(self, table: str, array: npt.NDArray[Any]) -> str:
        """The first rows of a table of positions, one a token: (tokens, width)."""
        tokens = self.shape("input_ids", 1, 2)
        return self.op(
            "Slice", self.initializer(table, array), self.constant([0]), tokens, self.constant([0])
        )

    def flatten(self, hidden: str, width: int) -> str:
        """(texts, tokens, width) to (texts * tokens, width)."""
        return self.op("Reshape", hidden, self.constant([-1, width]))

    def unflatten(self, hidden: str, width: int) -> str:
        """(texts * tokens, width) to (texts, tokens, width)."""
        sizes = self.op("Concat", self.shape("input_ids", 0, 2), self.constant([width]), axis=0)
        return self.op("Reshape", hidden, sizes)

    def linear(self, hidden: str, name: str) -> str:
        """``hidden @ weight.T + bias``; the bias is left out where the model has none."""
        weight = self.initializer(f"{name}.weight", self.weights[f"{name}.weight"].T)
        if f"{name}.bias" in self.weights:
            return self.op(
                "Gemm", hidden, weight, self.initializer(f"{name}.bias", self.weights[f"{name}.bias"])
            )
        return self.op("MatMul", hidden, weight)

    def layer_norm(self, hidden: str, name: str, *, epsilon: float) -> str:
        """Layer normalisation over the last axis."""
        scale = self.initializer(f"{name}.weight", self.weights[f"{name}.weight"])
        inputs = [hidden, scale]
        if f"{name}.bias" in self.weights:
            inputs.append(self.initializer(f"{name}.bias", self.weights[f"{name}.bias"]))
        return self.op("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)

    def add(self, left: str, right: str) -> str:
        """Sum of two tensors."""
        return self.op("Add", left, right)

    def activation(self, hidden: str, name: str) -> str:
        """One of the activations that ``config.json`` may name."""
        return ACTIVATIONS[name](self, hidden)

    def attention(self, query: str, key: str, value: str, *, heads: int, width: int) -> str:
        """Multi-head self-attention of (tokens, width) projections.

        A batch of equal lengths takes the branch without a mask, which runs as flash attention.
        """
        inputs = [self.unflatten(projection, width) for projection in (query, key, value)]

        def branch(name: str, *masks: str) -> onnx.GraphProto:
            output = f"{name}_{self._count}"
            node = helper.make_node(
                "MultiHeadAttention",
                [*inputs, *masks],
                [output],
                domain=MICROSOFT,
                num_heads=heads,
                mask_filter_value=_MASKED,
            )
            info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            return helper.make_graph([node], name, [], [info])

        attended = self.op(
            "If", self.padded, then_branch=branch("masked", "", self._key_mask), else_branch=branch("full")
        )
        return self.flatten(attended, width)

    # --- result -----------------------------------------------------------------------------------

    def model(
        self, output: str, *, inputs: Sequence[str] = ("input_ids", "attention_mask"), width: int
    ) -> onnx.ModelProto:
        """The finished graph, whose ``embedding`` is ``output``."""
        self._nodes.append(helper.make_node("Identity", [output], ["embedding"]))
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in inputs],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", width])],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pgembed")


def _gelu(graph: Graph, hidden: str) -> str:
    return graph.op("Gelu", hidden, domain=MICROSOFT)


def _gelu_tanh(graph: Graph, hidden: str) -> str:
    return graph.op("FastGelu", hidden, domain=MICROSOFT)


def _silu(graph: Graph, hidden: str) -> str:
    return graph.op("Mul", hidden, graph.op("Sigmoid", hidden))


# "gelu" is the exact one, with erf; the approximation under the name of "gelu" would shift vectors by 1e-4.
ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": lambda graph, hidden: graph.op("Relu", hidden),
    "tanh": lambda graph, hidden: graph.op("Tanh", hidden),
    "silu": _silu,
    "swish": _silu,
}


def write(model: onnx.ModelProto, path: Path) -> None:
    """Check the graph and write it."""
    path.write_bytes(model.SerializeToString())
