"""Encoder folders that are damaged, or made to lead elsewhere: a named error, before anything is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pgembed.encoders import Encoder, EncoderSpec
from pgembed.encoders.onnx.graph_files import external_files
from pgembed.exc import (
    EncoderError,
    EncoderFilesError,
    EncoderNotFoundError,
    FingerprintMismatchError,
    PgembedError,
)


@pytest.fixture(scope="module")
def intact(tiny: Callable[[str], Path]) -> Path:
    """An encoder's folder, with a tower for queries."""
    return tiny("router")


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """A copy that may be edited."""
    return shutil.copytree(intact, tmp_path / "router")


def restated(folder: Path, **changes: Any) -> None:
    """Change the spec as somebody does who knows how a fingerprint is made."""
    document = json.loads((folder / "encoder.json").read_text()) | changes
    try:
        fields = {field.name for field in dataclasses.fields(EncoderSpec)}
        values = {name: value for name, value in document.items() if name in fields}
        values |= {name: tuple(values[name]) for name in ("pooling", "steps")}
        document["fingerprint"] = EncoderSpec(**values).fingerprint
    except (TypeError, ValueError):  # then the fingerprint does not matter
        pass
    (folder / "encoder.json").write_text(json.dumps(document))


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Change a file, and state its new checksum."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "encoder.json").read_text())["files"]
    restated(folder, files=files | {name: hashlib.sha256(content).hexdigest()})


def refused(folder: Path, match: str) -> None:
    with pytest.raises(EncoderFilesError, match=match):
        Encoder(folder).encode_documents(["text"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("name", "a\0b"),
        ("name", "a\nb"),
        ("name", "\ud800"),
        ("width", -24),
        ("width", "24"),
        ("width", 24.0),
        ("width", True),
        ("width", 10**30),
        ("dimensions", 0),
        ("dimensions", -1),
        ("dimensions", 25),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("token_limit", 2**70),
        ("vocabulary", -1),
        ("pooling", "mean"),
        ("pooling", [1]),
        ("steps", None),
        ("normalize", "yes"),
        ("special_tokens", 1),
        ("query_prompt", ["query: "]),
        ("files", ["model.onnx"]),
        ("files", {"model.onnx": 1}),
        ("precision", "int4"),
        ("format", [1]),
    ],
)
def test_values_of_a_spec(folder: Path, field: str, value: object) -> None:
    restated(folder, **{field: value})
    with pytest.raises(EncoderFilesError, match=rf"{field}"):
        Encoder(folder)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1, "name": ' + b"[" * 100_000, "nested too deeply"),
        (b"\xff", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*`git lfs pull`"),
        (b'{"format": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_file_that_is_not_a_spec(folder: Path, content: bytes, found: str) -> None:
    (folder / "encoder.json").write_bytes(content)
    with pytest.raises(EncoderFilesError, match=found):
        Encoder(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_spec(folder: Path, intact: Path, data: st.DataObject) -> None:
    document = json.loads((intact / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(document))
    values = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(max_size=3))
    )
    for field in data.draw(st.sets(st.sampled_from(sorted(document)), min_size=1, max_size=3)):
        restated(folder, **{field: data.draw(values)})
    try:
        vectors = Encoder(folder).encode_documents(["text"])
    except PgembedError:
        return
    assert vectors.shape[0] == 1


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 300, "x/" * 3000, "~nobody-of-that-name/x", "\ud800/x", "./" + "x" * 5000]
)
def test_paths_that_cannot_be(path: str) -> None:
    for given_ in (path, f"./{path}"):
        with pytest.raises(EncoderNotFoundError):
            Encoder(given_)


@pytest.mark.parametrize("name", ["..", ".", "", "a\\b", "C:x", "a\0b", "x" * 300, "\ud800", "a\n"])
def test_names_are_no_paths(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / "inner").mkdir()
    monkeypatch.setenv("PGEMBED_ENCODERS", str(folder / "inner"))
    with pytest.raises(EncoderNotFoundError, match="not the name of an encoder"):
        Encoder(name)
    restated(folder, name="../" + folder.name)
    for graph in folder.glob("*.onnx"):
        graph.unlink()
    (folder / "weights.bin").unlink()
    with pytest.raises(EncoderNotFoundError, match="looked up by its name"):
        Encoder(folder).encode_documents(["text"])


# --- graphs -------------------------------------------------------------------------------------------


def with_external(folder: Path, location: str, *, nested: bool) -> bytes:
    """The encoder's graph with one more tensor, whose data are elsewhere, deep inside or not."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = TensorProto(name="more", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="length", value="16")
    tensor.external_data.add(key="location", value=location)
    if nested:
        inner = helper.make_node("Constant", [], ["inner"], value=tensor)
        result = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
        graph = helper.make_graph([inner], "branch", [], [result])
        model.graph.initializer.append(helper.make_tensor("so", TensorProto.BOOL, [], [True]))
        node = helper.make_node("If", ["so"], ["unused"], then_branch=graph, else_branch=graph)
        model.graph.node.insert(0, node)
    else:
        model.graph.initializer.append(tensor)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "linked", "weights.bin/../../secret", "config.json"]
)
def test_weights_elsewhere(folder: Path, location: str, nested: bool) -> None:
    """Whatever the version of ONNX Runtime does with them."""
    (folder.parent / "secret").write_bytes(bytes(16))
    (folder / "linked").symlink_to(folder.parent / "secret")
    content = with_external(folder, location, nested=nested)
    assert external_files(content) == {"weights.bin", location}
    rewritten(folder, "model.onnx", content)
    refused(folder, r"model\.onnx: found weights in .*, expected all weights in weights\.bin")


def test_files_that_a_graph_opens(intact: Path) -> None:
    graphs = [path.read_bytes() for path in intact.rglob("*.onnx")]
    assert [external_files(graph) for graph in graphs] == [{"weights.bin"}] * len(graphs)


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_graph_cut_short(folder: Path, cut: int) -> None:
    rewritten(folder, "model.onnx", (folder / "model.onnx").read_bytes()[:cut])
    refused(folder, r"model\.onnx")


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_graph(content: bytes) -> None:
    with suppress(ValueError):
        assert external_files(content) == set()


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_files_without_a_checksum(folder: Path, name: str) -> None:
    """What is not listed could be anything."""
    files = json.loads((folder / "encoder.json").read_text())["files"]
    restated(folder, files={key: value for key, value in files.items() if key != name})
    refused(folder, f"no checksum of {name}")


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_pointers_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(
        folder, f"{name}: found a pointer of Git LFS, expected the file that it points to: `git lfs pull`"
    )


@pytest.mark.parametrize(
    ("output", "shape", "found"),
    [
        ("other", ["texts", 24], "no output 'embedding'"),
        ("embedding", ["texts", 23], "vectors of 23 dimensions"),
        ("embedding", ["texts"], "vectors of no known number of dimensions"),
    ],
)
def test_graphs_that_compute_something_else(folder: Path, output: str, shape: list[Any], found: str) -> None:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [len(shape)], [1, *shape[1:]])
    node = helper.make_node("ConstantOfShape", ["sizes"], [output])
    graph = helper.make_graph([node], "g", inputs, [result], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rewritten(folder, "model.onnx", model.SerializeToString())
    refused(folder, found)


@pytest.mark.parametrize(
    ("shape", "found"),
    [([1, 24], "cannot run this graph"), ([400, 24], r"vectors of shape \(\d+, 24\), expected \(1, 24\)")],
)
def test_graphs_that_fail_in_use(folder: Path, shape: list[int], found: str) -> None:
    """A table with fewer rows than there are tokens; vectors of tokens instead of those of texts."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    result = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", 24])
    table = helper.make_tensor("table", TensorProto.FLOAT, shape, bytes(4 * shape[0] * shape[1]), raw=True)
    rank = helper.make_tensor("rank", TensorProto.INT64, [2], [-1, 24])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Reshape", ["rows", "rank"], ["embedding"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [result], [table, rank])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rewritten(folder, "model.onnx", model.SerializeToString())
    with pytest.raises(EncoderError, match=found):
        Encoder(folder).encode_documents(["some text of several words"])


# --- towers -------------------------------------------------------------------------------------------


def test_a_tower_of_another_encoder(folder: Path) -> None:
    restated(folder, query_tower="0" * 32)
    with pytest.raises(FingerprintMismatchError, match="the encoder for queries"):
        Encoder(folder).encode_queries(["text"])


def test_a_tower_that_is_the_encoder_itself(folder: Path) -> None:
    """It would have a tower too, and so on."""
    shutil.rmtree(folder / "query")
    (folder / "query").symlink_to(".")
    with pytest.raises(EncoderFilesError, match="an encoder for queries that has one of its own"):
        Encoder(folder).encode_queries(["text"])


def test_intact(intact: Path) -> None:
    encoder = Encoder(intact)
    assert np.isfinite(encoder.encode_queries(["text"])).all()
    assert np.isfinite(encoder.encode_documents(["text"])).all()
