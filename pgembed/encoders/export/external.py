"""The tensors of a ready ONNX file, with those that lie in files beside it read from there.

``onnx`` can do this too, but refuses the symbolic links that the cache of the Hugging Face hub consists of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from pgembed.encoders.files import Folder, check_file, shown
from pgembed.exc import EncoderFilesError


def read_external(model: ModelProto, path: Path, folder: Folder) -> list[Path]:
    """Put the data of external tensors into the model; returns the files that they were in.

    :param path: the model's file.
    :param folder: the folder of that file.
    :raises EncoderFilesError: a tensor names no file of the folder, or has other data than it should.
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
        raise EncoderFilesError(path, found, needed=f"no more than the {size} bytes that are there")
    with source.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors, wherever they stand."""
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
