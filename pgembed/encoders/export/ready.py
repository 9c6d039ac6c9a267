"""Ready ONNX files, as found on the Hugging Face hub: pooling and what follows are added to the graph.

What such a file calls its inputs and outputs differs; the encoder's graph has those of one that was built
here. Fusing is left to ONNX Runtime, which does it when the graph is opened, with exact patterns only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from pgembed.encoders.export import pooling
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import OPSET, Graph, WeightFile
from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.export.weights import Weights, weight_files
from pgembed.encoders.graphs import MODEL_FILE, WEIGHTS_FILE
from pgembed.exc import EncoderFilesError

PLACES = ("model.onnx", "onnx/model.onnx")
_PREFIX = "ready/"
_LEAST_OPSET = 15  # of what is added
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_TEXT_OUTPUTS = ("sentence_embedding", "sentence_embeddings", "text_embeds", "embedding")
_LIMIT_UNSTATED = 512


def find(folder: Path) -> Path | None:
    """The ONNX file of a model folder, if there is one."""
    return next((folder / place for place in PLACES if (folder / place).is_file()), None)


class Ready:
    """A graph that somebody else exported; the attributes are those of :class:`Direct`."""

    architecture = "onnx"

    def __init__(self, pipeline: Pipeline, path: Path) -> None:
        self._pipeline = pipeline
        self._path = path
        self._first_position = 0
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's errors share no base with onnx's
            raise EncoderFilesError(path, f"no ONNX model ({error})", needed="a whole ONNX file") from error
        weights = {tensor.name for tensor in model.graph.initializer}  # older files list them as inputs too
        inputs = [value for value in model.graph.input if value.name not in weights]
        self._inputs = {value.name: value.type.tensor_type.elem_type for value in inputs}
        for value in inputs:
            if value.name not in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
                found = f"an input {value.name!r}"
                raise EncoderFilesError(path, found, needed="the inputs of a text encoder")
            fixed = [
                axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.HasField("dim_value")
            ]
            if fixed:
                found = f"an input {value.name!r} of a fixed size ({', '.join(map(str, fixed))})"
                raise EncoderFilesError(path, found, needed="an export for any number of texts and tokens")
        self._output, self._pooled = self._choose(model)
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < _LEAST_OPSET:
            model, opset = self._converted(model, opset), OPSET
        self._opset = opset
        self._model = compose.add_prefix(model, _PREFIX)
        stored = onnx.load(path, load_external_data=False).graph.initializer
        places = {
            entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"
        }
        self._steps = [
            (step, None if step.kind == "Normalize" else Weights(weight_files(step.folder)))
            for step in pipeline.steps
            if not self._pooled or step.kind == "Normalize"
        ]
        later = [file for step, weights in self._steps if weights for file in weight_files(step.folder)]
        self.files = [path, *(path.parent / name for name in sorted(places)), *later]
        self.token_limit, self.vocabulary = self._limits()

    def _converted(self, model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        """The same graph with operators of a version that what is added can stand beside."""
        try:
            return version_converter.convert_version(model, OPSET)
        except Exception as error:  # of many kinds, whose messages name the converter's source
            reason = str(error).rpartition(":")[2].strip()
            raise EncoderFilesError(
                self._path,
                f"operators of opset {opset} that cannot be converted ({reason})",
                needed=f"an export with opset {_LEAST_OPSET} or newer",
            ) from error

    def _choose(self, model: onnx.ModelProto) -> tuple[str, bool]:
        """The output to take, and whether it is one vector a text already."""
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}
        for names, rank in ((_TOKEN_OUTPUTS, 3), (_TEXT_OUTPUTS, 2), (tuple(ranks), 3), (tuple(ranks), 2)):
            for name in names:
                if ranks.get(name) == rank:
                    return name, rank == 2
        needed = f"one of {', '.join((*_TOKEN_OUTPUTS, *_TEXT_OUTPUTS))}"
        raise EncoderFilesError(self._path, f"the outputs {', '.join(ranks)}", needed=needed)

    def _limits(self) -> tuple[int, int]:
        path = self._pipeline.folder / "config.json"
        values = ModelConfig(path).values if path.is_file() else {}
        positions = values.get("max_position_embeddings") or self._pipeline.max_tokens or _LIMIT_UNSTATED
        if values.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            # their positions begin behind the padding index
            self._first_position = int(values.get("pad_token_id", 1)) + 1
        return int(positions) - self._first_position, int(values.get("vocab_size") or 0)

    def write(self, folder: Path) -> int:
        """Write graph and weights into ``folder``; returns the width of the vectors."""
        with (folder / WEIGHTS_FILE).open("wb") as file:
            graph = Graph(
                None,
                WeightFile(file, WEIGHTS_FILE),
                include_prompt=self._pipeline.include_prompt,
                opset=self._opset,
            )
            self._connect(graph)
            graph.splice(self._model.graph)
            output = _PREFIX + self._output
            width = self._width(output)
            vectors = graph.op("Cast", output, to=TensorProto.FLOAT)
            if not self._pooled:
                vectors = pooling.pool(graph, vectors, self._pipeline.pooling)
                width *= len(self._pipeline.pooling)
            vectors, width = pooling.follow(graph, vectors, self._steps, width)
            model = graph.model(vectors, width=width)
            domains = {
                entry.domain: entry.version for entry in (*self._model.opset_import, *model.opset_import)
            }
            del model.opset_import[:]
            model.opset_import.extend(helper.make_opsetid(*entry) for entry in domains.items())
            model.functions.extend(self._model.functions)
            model.ir_version = max(self._model.ir_version, model.ir_version)
        (folder / MODEL_FILE).write_bytes(model.SerializeToString())
        return width

    def _connect(self, graph: Graph) -> None:
        """Feed the graph's own inputs from those that every encoder has."""
        for name, kind in self._inputs.items():
            if name in ("input_ids", "attention_mask"):
                value = name
            else:
                shape = graph.op("Shape", "input_ids")
                zeros = graph.op(
                    "ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, dtype=np.int64))
                )
                value = zeros
                if name == "position_ids":
                    first = graph.constant(np.int64(self._first_position))
                    value = graph.op("Add", zeros, graph.op("Add", graph.steps(), first))
            graph.op("Cast", value, to=kind, output=_PREFIX + name)

    def _width(self, output: str) -> int:
        """Width of the output, from its declared shape or the configuration."""
        declared = next(value for value in self._model.graph.output if value.name == output)
        last = declared.type.tensor_type.shape.dim[-1]
        if last.HasField("dim_value"):
            return int(last.dim_value)
        return ModelConfig(self._pipeline.folder / "config.json").integer("hidden_size")
