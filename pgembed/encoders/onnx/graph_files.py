"""The files of an encoder's folder: what each graph is for, and whether they are unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgembed.encoders.files import check_file, file_digest, shown
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, WORDS_FILE
from pgembed.exc import EncoderFilesError

MODEL_FILE = "model.onnx"  # float32, padded batches: the CPU's, and any device's
INT8_FILE = "model.int8.onnx"  # linear layers in 8 bit, for the CPU
CUDA_FILE = "model.cuda.onnx"  # float16, packed texts
QUERY_FOLDER = "query"  # the separate encoder for queries of a model with two towers
WEIGHTS_FILE = "weights.bin"

# The parts of an ONNX file on the way to the names of files, by the numbers of their fields in onnx.proto.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {1: "key", 2: "value"},
}
_MOST_NESTED = 100  # as in protobuf


def check_files(folder: Path, spec: EncoderSpec, graph: str) -> None:
    """Compare the files that will be used with their checksums, and make sure that there are no others.

    :param graph: the name of the graph's file.
    :raises EncoderFilesError: a file is missing or damaged, or the graph would open others.
    """
    tokenizer = WORDS_FILE if WORDS_FILE in spec.files else TOKENIZER_FILE
    needed = "the file that was exported: export the encoder again, or copy it whole"
    for name in (graph, WEIGHTS_FILE, tokenizer):
        path = folder / name
        if name not in spec.files:
            raise EncoderFilesError(
                folder / SPEC_FILE, f"no checksum of {name}", needed="one: export it again"
            )
        try:
            found = file_digest(path)
        except OSError as error:
            raise EncoderFilesError(path, error.strerror or str(error), needed=needed) from error
        if found != spec.files[name]:
            size = check_file(path, needed=needed)
            raise EncoderFilesError(path, f"{size} bytes with SHA-256 {found}", needed=needed)
    path = folder / graph
    try:
        others = external_files(path.read_bytes()) - {WEIGHTS_FILE}
    except ValueError as error:
        raise EncoderFilesError(
            path, f"something that is not an ONNX file ({error})", needed=needed
        ) from error
    if others:
        found = f"weights in {shown(min(others))}"
        raise EncoderFilesError(path, found, needed=f"all weights in {WEIGHTS_FILE}")


def external_files(model: bytes) -> set[str]:
    """The files beside an ONNX file that ONNX Runtime opens with it, read without the package ``onnx``.

    Older versions of ONNX Runtime follow these names out of the folder.

    :raises ValueError: these bytes are not an ONNX file.
    """
    return {value.decode() for key, value in _external(memoryview(model), "model", 0) if key == b"location"}


def _external(data: memoryview, part: str, depth: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each piece of external data in a part of the file."""
    if depth > _MOST_NESTED:
        raise ValueError("it is nested too deeply")
    members = _PARTS[part]
    entry = {"key": b"", "value": b""}
    for number, content in _fields(data):
        inner = members.get(number)
        if inner in entry:
            entry[inner] = bytes(content)
        elif inner is not None:
            yield from _external(content, inner, depth + 1)
    if part == "external":
        yield entry["key"], entry["value"]


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of those fields of a protobuf message that have a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it is cut short")
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of the kind {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is cut short")
