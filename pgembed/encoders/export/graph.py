"""An ONNX graph under construction.

Families (``bert.py``, ...) describe what a model computes with the methods of this class: linear layers,
layer norms, attention. The operators are chosen here, once for all families.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pgembed.encoders.export.weight_file import WeightFile
from pgembed.encoders.export.weights import Weights

OPSET = 17
IR_VERSION = 8  # read by every onnxruntime that the project supports
MICROSOFT = "com.microsoft"
MASKED = float(np.finfo(np.float32).min)


class Graph:
    """Nodes and initializers, with the layers that encoders are made of; this one is for float32 on the CPU.

    Hidden states are kept as ``(tokens, width)`` with all texts of the batch one after the other, so that
    linear layers are single matrix products with their bias; attention alone sees ``(texts, tokens, width)``.

    Inputs: ``input_ids`` and ``attention_mask``, both int64 of shape (texts, tokens); texts are padded on the
    right. If prompts are not pooled, there is ``pooling_mask`` as well. Outputs, float32: ``embedding`` of
    shape (texts, width); of transformers of texts also ``token_embeddings``, (texts, tokens, width).

    :param weights: the model's weights; none for a graph around a ready one.
    :param file: where large initializers go.
    :param include_prompt: whether the tokens of the prompt are pooled.
    :param segments: whether there is ``token_type_ids`` as well, the text of a pair that each token is of.
    :param opset: the version of the operators, 15 or newer.
    :ivar pooled: whether the transformer is complete and what follows is added.
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
        self._weights = weights
        self._opset = opset
        self._file = file
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._count = 0
        self._shared: dict[str, str] = {}
        padded = (TensorProto.INT64, ("texts", "tokens"))
        self._inputs: dict[str, tuple[int, tuple[str, ...]]] = {"input_ids": padded, "attention_mask": padded}
        self.pooled = False
        self.segments = segments
        if segments:
            self._inputs["token_type_ids"] = padded
        self.pooling_mask = "attention_mask"
        if not include_prompt:
            self.pooling_mask = "pooling_mask"
            self._inputs["pooling_mask"] = padded

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        if self._weights is None:
            raise LookupError("this graph was made without weights")
        return self._weights

    # --- building blocks --------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        if output:
            self._nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
            return output
        return self.ops(kind, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs; returns their names."""
        self._count += 1
        names = [f"{kind.lower()}_{self._count}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

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

    def reduce(self, kind: str, tensor: str, axis: int, *, keep: bool) -> str:
        """Reduce over one axis; how the axis is passed depends on the version of the operators."""
        if kind == "ReduceSum" or self._opset >= 18:
            return self.op(kind, tensor, self.constant([axis]), keepdims=int(keep))
        return self.op(kind, tensor, axes=[axis], keepdims=int(keep))

    def once(self, key: str, make: Callable[[], str]) -> str:
        """What ``make`` adds to the graph, added only at the first call with ``key``."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def shape(self, tensor: str, first: int, last: int) -> str:
        """The sizes ``first`` up to ``last`` (excluded) of ``tensor``, an int64 vector."""
        return self.op("Shape", tensor, start=first, end=last)

    def length(self) -> str:
        """The number of tokens of the longest text, an int64 vector of one."""
        return self.once("length", lambda: self.shape("input_ids", 1, 2))

    def steps(self) -> str:
        """The numbers of the tokens from 0, an int64 vector."""
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        return self.once("steps", lambda: self.op("Range", zero, self.op("Squeeze", self.length()), one))

    # --- layers -----------------------------------------------------------------------------------

    def embed(
        self,
        table: npt.NDArray[Any],
        positions: npt.NDArray[Any] | None = None,
        segments: npt.NDArray[Any] | None = None,
    ) -> str:
        """Rows of ``table`` for the input ids, plus the first rows of ``positions``: (tokens, width).

        :param segments: a row for each text of a pair, which is added too.
        """
        words = self._words(table, segments)
        if positions is not None:
            rows = self.initializer("positions", positions)
            first = self.op("Slice", rows, self.constant([0]), self.length(), self.constant([0]))
            words = self.op("Add", words, first)
        return self.op("Reshape", words, self.constant([-1, table.shape[1]]))

    def _words(self, table: npt.NDArray[Any], segments: npt.NDArray[Any] | None) -> str:
        words = self.op("Gather", self.initializer("words", table), "input_ids")
        if segments is None:
            return words
        return self.op(
            "Add", words, self.op("Gather", self.initializer("segments", segments), "token_type_ids")
        )

    def linear(
        self,
        hidden: str,
        name: str,
        inputs: int,
        outputs: int,
        *,
        weights: Weights | None = None,
        label: str = "",
    ) -> str:
        """``hidden @ weight.T + bias``; without the bias where the model has none.

        :param inputs: the width of ``hidden``.
        :param outputs: the width of the result.
        :param weights: where they are, if not among the model's; ``label`` then distinguishes them.
        """
        source = self.weights if weights is None else weights
        matrix = source.take(f"{name}.weight", outputs, inputs)
        return self.product(hidden, label + name, matrix.T, source.get(f"{name}.bias", outputs))

    def product(
        self, hidden: str, name: str, matrix: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
    ) -> str:
        """``hidden @ matrix + bias``."""
        weight = self.initializer(f"{name}.weight", matrix)
        if bias is None:
            return self.op("MatMul", hidden, weight)
        return self.op("Gemm", hidden, weight, self.initializer(f"{name}.bias", bias))

    def layer_norm(
        self,
        hidden: str,
        name: str,
        width: int,
        *,
        epsilon: float,
        weights: Weights | None = None,
        label: str = "",
    ) -> str:
        """Layer normalisation over the last axis, which has ``width`` elements."""
        source = self.weights if weights is None else weights
        inputs = [self.initializer(f"{label}{name}.weight", source.take(f"{name}.weight", width))]
        if f"{name}.bias" in source:
            inputs.append(self.initializer(f"{label}{name}.bias", source.take(f"{name}.bias", width)))
        return self.op("LayerNormalization", hidden, *inputs, axis=-1, epsilon=epsilon)

    def add(self, left: str, right: str) -> str:
        """Sum of two tensors."""
        return self.op("Add", left, right)

    def activation(self, hidden: str, name: str) -> str:
        """One of :data:`ACTIVATIONS`."""
        return ACTIVATIONS[name](self, hidden)

    def rotary(self, projection: str, cosines: str, sines: str, *, width: int) -> str:
        """Rotary position embedding of a (tokens, width) projection.

        :param cosines: table of shape (positions, head width / 2), the name of an initializer.
        """
        start = self.once("first position", lambda: self.constant([0]))
        turned = self.op(
            "RotaryEmbedding", self.unflatten(projection, width), start, cosines, sines, domain=MICROSOFT
        )
        return self.op("Reshape", turned, self.constant([-1, width]))

    def bias_by_distance(self, name: str, table: npt.NDArray[Any]) -> str:
        """What attention adds for the distance of two tokens: (1, heads, tokens, tokens).

        :param table: (heads or 1, 2 * limit - 1); column ``limit - 1 + key - query`` is for that distance.
        """
        return self.once(name, lambda: self._distances(self.initializer(name, table), table.shape[1] // 2))

    def _distances(self, table: str, zero: int) -> str:
        steps = self.steps()
        keys = self.op("Unsqueeze", steps, self.constant([0]))
        queries = self.op("Unsqueeze", steps, self.constant([1]))
        columns = self.op("Add", self.op("Sub", keys, queries), self.constant(np.int64(zero)))
        return self.op("Unsqueeze", self.op("Gather", table, columns, axis=1), self.constant([0]))

    def attention(self, query: str, key: str, value: str, *, heads: int, width: int, bias: str = "") -> str:
        """Multi-head self-attention of (tokens, width) projections.

        A batch of equal lengths takes the branch without a mask, which runs as flash attention.

        :param bias: what is added before the softmax, from :meth:`bias_by_distance`.
        """
        inputs = [self.unflatten(projection, width) for projection in (query, key, value)]
        mask = self.once("key mask", lambda: self.op("Cast", "attention_mask", to=TensorProto.INT32))

        def branch(name: str, *masks: str) -> onnx.GraphProto:
            output = f"{name}_{self._count}"
            node = helper.make_node(
                "MultiHeadAttention",
                [*inputs, *masks],
                [output],
                domain=MICROSOFT,
                num_heads=heads,
                mask_filter_value=MASKED,
            )
            info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            return helper.make_graph([node], name, [], [info])

        masked = branch("masked", "", mask, *([bias] if bias else []))
        full = branch("full", *(["", "", bias] if bias else []))
        attended = self.op("If", self.once("padded", self._padded), then_branch=masked, else_branch=full)
        return self.op("Reshape", attended, self.constant([-1, width]))

    def _padded(self) -> str:
        return self.op("Less", self.op("ReduceMin", "attention_mask", keepdims=0), self.constant(np.int64(1)))

    def unflatten(self, hidden: str, width: int) -> str:
        """(texts * tokens, width) to (texts, tokens, width)."""
        sizes = self.once("batch", lambda: self.shape("input_ids", 0, 2))
        return self.op("Reshape", hidden, self.op("Concat", sizes, self.constant([width]), axis=0))

    # --- result -----------------------------------------------------------------------------------

    def to_pool(self, hidden: str, width: int) -> str:
        """The last hidden state as the pooling expects it: float32 of shape (texts, tokens, width)."""
        self.pooled = True
        return self.unflatten(hidden, width)

    def splice(self, ready: onnx.GraphProto) -> None:
        """Add the nodes and initializers of another graph, whose inputs have been made before."""
        self._nodes.extend(ready.node)
        for tensor in ready.initializer:
            self.initializer(tensor.name, numpy_helper.to_array(tensor))

    def model(self, output: str, *, width: int, tokens: tuple[str, int] | None = None) -> onnx.ModelProto:
        """The finished graph, whose ``embedding`` is ``output``.

        :param tokens: what is given as ``token_embeddings``, and its width.
        """
        outputs: list[tuple[str, str, list[str | int]]] = [("embedding", output, ["texts", width])]
        if tokens is not None:
            outputs.append(("token_embeddings", tokens[0], ["texts", "tokens", tokens[1]]))
        for name, value, _ in outputs:
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [
                helper.make_tensor_value_info(name, kind, shape)
                for name, (kind, shape) in self._inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, _, shape in outputs],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)]
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
