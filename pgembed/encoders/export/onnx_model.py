"""Ready ONNX files, as found on the Hugging Face hub: pooling and what follows are added to the graph.

Such files name their inputs and outputs differently; the encoder's graph has those of one that was built
here. Fusing is left to ONNX Runtime, which does it when the graph is opened, with exact patterns only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    compose,
    helper,
    numpy_helper,
    version_converter,
)

from pgembed.encoders.export import pooling
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import OPSET, Graph
from pgembed.encoders.export.pipeline import LIMIT_UNSTATED, Pipeline
from pgembed.encoders.export.weight_file import WeightFile
from pgembed.encoders.files import Folder, check_file, shown
from pgembed.encoders.onnx.graph_files import MODEL_FILE, WEIGHTS_FILE
from pgembed.exc import EncoderFilesError

PLACES = ("model.onnx", "onnx/model.onnx")
_PREFIX = "ready/"
_LEAST_OPSET = 15  # of what is added
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INPUT_TYPES = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, *_FLOATS)
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_TEXT_OUTPUTS = ("sentence_embedding", "sentence_embeddings", "text_embeds", "embedding")
_LOGITS = ("logits", "scores")
_OTHER_OUTPUTS = ("pooler_output", "logits")  # made for other purposes than comparing texts


def find(folder: Folder) -> str | None:
    """The name of the ONNX file of a model folder, if there is one."""
    return next((place for place in PLACES if folder.has(place)), None)


class OnnxModel:
    """A ready graph; the attributes are those of :class:`BuiltModel`."""

    architecture = "onnx"

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self._pipeline = pipeline
        self._path = pipeline.folder.file(name)
        self._first_position = 0
        check_file(self._path, needed="a whole ONNX file")
        try:
            model = onnx.load(self._path, load_external_data=False)
        except Exception as error:  # protobuf's errors share no base with onnx's
            raise self._wrong(
                f"something that is not an ONNX model ({error})", needed="a whole ONNX file"
            ) from error
        folder = pipeline.folder.subfolder(
            PurePosixPath(name).parent.as_posix().strip("."), stated_in=self._path
        )
        external = _read_external(model, self._path, folder)
        self._inputs = self._checked_inputs(model)
        told = pipeline.classifier is not None and pipeline.classifier.segments
        self.segments = told and "token_type_ids" in self._inputs
        self._output, self._pooled = self._choose(model)
        versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        if not versions:
            raise self._wrong("no version of its operators", needed="a whole ONNX file")
        self._opset = versions[0]
        if self._opset < _LEAST_OPSET:
            model, self._opset = self._converted(model, self._opset), OPSET
        try:
            self._model = compose.add_prefix(model, _PREFIX)
        except Exception as error:  # of many kinds
            raise self._wrong(f"a damaged graph ({error})", needed="a whole ONNX file") from error
        self.pooling = pipeline.pooling or (() if self._pooled else ("mean",))
        self.token_vectors = not self._pooled
        steps = [step for step in pipeline.steps if not self._pooled or step.kind == "Normalize"]
        self._steps, later = pooling.opened(steps)
        self.files = [self._path, *external, *later]
        self.token_limit, self.vocabulary = self._limits()

    def _wrong(self, found: str, *, needed: str) -> EncoderFilesError:
        return EncoderFilesError(self._path, found, needed=needed)

    def _checked_inputs(self, model: ModelProto) -> dict[str, int]:
        """The types of the inputs by their names.

        :raises EncoderFilesError: they are not those of a text encoder for any number of texts and tokens.
        """
        weights = {tensor.name for tensor in model.graph.initializer}  # older files list them as inputs too
        inputs = [value for value in model.graph.input if value.name not in weights]
        for value in inputs:
            tensor = value.type.tensor_type
            if value.name not in _INPUTS or tensor.elem_type not in _INPUT_TYPES:
                found = f"an input {shown(value.name)} of type {_type_name(tensor.elem_type)}"
                raise self._wrong(found, needed="the inputs of a text encoder")
            fixed = [axis.dim_value for axis in tensor.shape.dim if axis.HasField("dim_value")]
            if fixed:
                found = f"an input {value.name!r} of a fixed size ({', '.join(map(str, fixed))})"
                raise self._wrong(found, needed="an export for any number of texts and tokens")
        if "input_ids" not in {value.name for value in inputs}:
            raise self._wrong("no input 'input_ids'", needed="the inputs of a text encoder")
        return {value.name: value.type.tensor_type.elem_type for value in inputs}

    def _converted(self, model: ModelProto, opset: int) -> ModelProto:
        """The same graph, with operators of the version of what is added."""
        try:
            return version_converter.convert_version(model, OPSET)
        except Exception as error:  # of many kinds, whose messages name the converter's source
            reason = str(error).rpartition(":")[2].strip()
            raise self._wrong(
                f"operators of opset {opset} that cannot be converted ({reason})",
                needed=f"an export with opset {_LEAST_OPSET} or newer",
            ) from error

    def _choose(self, model: ModelProto) -> tuple[str, bool]:
        """The output to take, and whether it already is one vector per text.

        If the folder states how to pool, the vectors of the tokens are pooled so; if not, the graph's own
        vector of a text is taken.
        """
        tensors = {value.name: value.type.tensor_type for value in model.graph.output}
        floats = {
            name: len(tensor.shape.dim) for name, tensor in tensors.items() if tensor.elem_type in _FLOATS
        }
        others = _OTHER_OUTPUTS if self._pipeline.classifier is None else ("pooler_output",)
        by_rank = {
            rank: [name for name, found in floats.items() if found == rank and name not in others]
            for rank in (2, 3)
        }
        choices: list[tuple[tuple[str, ...], int]] = [(_TOKEN_OUTPUTS, 3), (_TEXT_OUTPUTS, 2)]
        if not self._pipeline.pooling:
            choices.reverse()
        if self._pipeline.classifier is not None:
            choices = [(_LOGITS, 2)]
        for names, rank in choices:
            for name in names:
                if name in by_rank[rank]:
                    return self._taken(name, rank)
        for rank in (3, 2) if self._pipeline.classifier is None else (2,):
            if len(by_rank[rank]) == 1:  # of whatever name
                return self._taken(by_rank[rank][0], rank)
        listed = ", ".join(
            f"{shown(name)} ({_type_name(tensor.elem_type)}, {len(tensor.shape.dim)} axes)"
            for name, tensor in tensors.items()
        )
        named = (*_TOKEN_OUTPUTS, *_TEXT_OUTPUTS) if self._pipeline.classifier is None else _LOGITS
        needed = f"floats called {' or '.join(named)}"
        raise self._wrong(f"the outputs {listed or 'none'}", needed=needed)

    def _taken(self, name: str, rank: int) -> tuple[str, bool]:
        pipeline = self._pipeline
        if rank == 2 and not pipeline.include_prompt and (pipeline.query_prompt or pipeline.document_prompt):
            found = f"{name!r}, in which the prompts are pooled"
            raise self._wrong(found, needed="vectors of tokens, since include_prompt is false")
        return name, rank == 2

    def _limits(self) -> tuple[int, int]:
        config = ModelConfig.optional(self._pipeline.folder.file("config.json"))
        stated = config.integer("max_position_embeddings", 0)
        positions = stated or self._pipeline.max_tokens or LIMIT_UNSTATED
        if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            # their positions begin after the padding index
            self._first_position = config.integer("pad_token_id", 1) + 1
        if positions <= self._first_position:
            raise config.wrong("max_position_embeddings", needed=f"more than {self._first_position}")
        return positions - self._first_position, config.integer("vocab_size", 0)

    def write(self, folder: Path) -> int:
        """Write graph and weights into ``folder``; returns the width of the vectors."""
        try:
            return self._write(folder)
        except (ValueError, TypeError, KeyError, StopIteration) as error:  # invalid tensors
            raise self._wrong(f"a damaged graph ({error})", needed="a whole ONNX file") from error

    def _write(self, folder: Path) -> int:
        with (folder / WEIGHTS_FILE).open("wb") as file:
            graph = Graph(
                None,
                WeightFile(file, WEIGHTS_FILE),
                include_prompt=self._pipeline.include_prompt,
                segments=self.segments,
                opset=self._opset,
            )
            self._connect(graph)
            graph.splice(self._model.graph)
            output = _PREFIX + self._output
            width = self._width(output)
            vectors = graph.op("Cast", output, to=TensorProto.FLOAT)
            tokens = None
            if not self._pooled:
                tokens = vectors, width
                vectors = pooling.pool(graph, vectors, self.pooling)
                width *= len(self.pooling)
            vectors, width = pooling.follow(graph, vectors, self._steps, width)
            model = graph.model(vectors, width=width, tokens=tokens)
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
        """Compute the graph's own inputs from those that every encoder has."""
        for name, kind in self._inputs.items():
            if name in ("input_ids", "attention_mask") or (name == "token_type_ids" and self.segments):
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
        classifier = self._pipeline.classifier
        if classifier is not None and last.dim_value in (0, len(classifier.labels)):
            return len(classifier.labels)
        if classifier is not None:
            needed = f"{len(classifier.labels)}, one for each label in config.json"
            raise self._wrong(f"{last.dim_value} logits", needed=needed)
        if last.HasField("dim_value"):
            if last.dim_value < 1:
                raise self._wrong(f"vectors of {last.dim_value} dimensions", needed="1 or more")
            return int(last.dim_value)
        return ModelConfig.read(self._pipeline.folder.file("config.json")).size("hidden_size")


def _type_name(kind: int) -> str:
    """The name of a tensor's type."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)


def _read_external(model: ModelProto, path: Path, folder: Folder) -> list[Path]:
    """Put the data of external tensors into the model; returns the files that they were in.

    ``onnx`` can do this too, but refuses symbolic links, of which the cache of the Hugging Face hub consists.

    :param path: the model's file.
    :param folder: the folder of that file.
    :raises EncoderFilesError: a tensor names no file of the folder, or has other data than expected.
    """
    files: dict[str, Path] = {}
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            stated = {entry.key: entry.value for entry in tensor.external_data}
            location = stated.get("location", "")
            files[location] = folder.file(location, stated_in=path)
            _fill(tensor, stated, files[location], path)
    return [files[location] for location in sorted(files)]


def _fill(tensor: TensorProto, stated: dict[str, str], source: Path, path: Path) -> None:
    """Read a tensor's data."""
    size = check_file(source, needed=f"the weights of {path.name}")
    if any(axis < 0 for axis in tensor.dims):
        raise EncoderFilesError(
            path, f"tensor {shown(tensor.name)} of shape {shown(list(tensor.dims))}", needed="sizes"
        )
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        length = int(stated.get("length", math.prod(tensor.dims) * width))
        offset = int(stated.get("offset", 0))
    except (ValueError, KeyError, TypeError) as error:
        found = f"tensor {shown(tensor.name)} with the data {shown(stated)}"
        raise EncoderFilesError(path, found, needed="a type, an offset and a length") from error
    if offset < 0 or length < 0 or offset + length > size:
        found = f"tensor {shown(tensor.name)} with {length} bytes from byte {offset} of {source.name}"
        raise EncoderFilesError(path, found, needed=f"at most the {size} bytes of that file")
    with source.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors, wherever they are."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _of_sparse(sparse)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)


def _of_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from _of_sparse(sparse)
    for graph in (attribute.g, *attribute.graphs):
        yield from _of_graph(graph)


def _of_sparse(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices
