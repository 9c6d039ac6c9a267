"""Ready ONNX files, in the shapes in which they are found, become the same encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pgembed.encoders import Encoder, export_onnx
from pgembed.exc import EncoderFilesError

GOLDEN = Path(__file__).parents[2] / "golden"
READY = GOLDEN / "ready_bert.onnx"  # the transformer of models/bert, exported by torch
OLD = GOLDEN / "ready_bert_opset11.onnx"  # the same, as older exporters wrote it
TEXTS: list[str] = json.loads((GOLDEN / "models" / "texts.json").read_text())["texts"]
VECTORS = np.load(GOLDEN / "models" / "bert" / "golden.npz")["documents"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights."""
    ignore = shutil.ignore_patterns("*.safetensors", "*.npz")
    return shutil.copytree(GOLDEN / "models" / "bert", tmp_path / "model", ignore=ignore)


def edited(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(READY)
    change(model)
    onnx.save(model, path)


def as_token_embeddings(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "token_embeddings"
    for node in model.graph.node:
        node.output[:] = ["token_embeddings" if name == "last_hidden_state" else name for name in node.output]


def without_token_types(model: onnx.ModelProto) -> None:
    """As exporters write it that leave out the segments."""
    kept = [value for value in model.graph.input if value.name != "token_type_ids"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    zeros = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    model.graph.node.insert(
        0, helper.make_node("ConstantOfShape", ["size_of_ids"], ["token_type_ids"], value=zeros)
    )
    model.graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["size_of_ids"]))


def with_32_bit_ids(model: onnx.ModelProto) -> None:
    """As exporters write it for runtimes without 64 bit integers."""
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
        wide = f"{value.name}_wide"
        for node in model.graph.node:
            node.input[:] = [wide if name == value.name else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Cast", [value.name], [wide], to=TensorProto.INT64))


def with_position_ids(model: onnx.ModelProto) -> None:
    """An input for positions, which this graph adds to the ids (so it must hold 0, 1, 2, ... minus that)."""
    model.graph.input.append(
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["texts", "tokens"])
    )
    for node in model.graph.node:
        node.input[:] = ["shifted" if name == "input_ids" else name for name in node.input]
    model.graph.initializer.append(helper.make_tensor("none", TensorProto.INT64, [], [0]))
    model.graph.node.insert(0, helper.make_node("Add", ["input_ids", "nothing"], ["shifted"]))
    model.graph.node.insert(0, helper.make_node("Mul", ["position_ids", "none"], ["nothing"]))


def pooled_sentence(model: onnx.ModelProto) -> None:
    """One vector a text: the first token's, as an output of its own."""
    model.graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [], [0]))
    model.graph.node.append(
        helper.make_node("Gather", ["last_hidden_state", "first"], ["sentence_embedding"], axis=1)
    )
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["texts", "width"])
    )


def with_weights_among_inputs(model: onnx.ModelProto) -> None:
    """As files of the first versions of the format have it."""
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: None,
        as_token_embeddings,
        without_token_types,
        with_32_bit_ids,
        with_position_ids,
        with_weights_among_inputs,
    ],
)
@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_token_outputs_are_pooled_in_the_graph(
    folder: Path, tmp_path: Path, place: str, change: Callable[[onnx.ModelProto], None]
) -> None:
    (folder / place).parent.mkdir(exist_ok=True)
    edited(folder / place, change)
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    assert encoder.spec.architecture == "onnx"
    assert (encoder.spec.pooling, encoder.spec.normalize) == (("mean",), True)
    assert np.abs(encoder.encode_documents(TEXTS) - VECTORS).max() < 1e-5


def test_positions_of_roberta_begin_behind_the_padding_index(folder: Path, tmp_path: Path) -> None:
    """The vectors of this graph are the positions."""

    def positions_as_result(model: onnx.ModelProto) -> None:
        model.graph.input.append(
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["texts", "tokens"])
        )
        nodes = [
            helper.make_node("Cast", ["position_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "last"], ["last_hidden_state"]),
        ]
        del model.graph.node[:], model.graph.output[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(helper.make_tensor("last", TensorProto.INT64, [1], [2]))
        shape = ["texts", "tokens", 1]
        model.graph.output.append(
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape)
        )

    edited(folder / "model.onnx", positions_as_result)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta", "pad_token_id": 1}))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["cls", "max"]}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    ((first, last),), (tokens,) = encoder.encode_counted(["a few words"], "document")
    assert (first, last) == (2, tokens + 1)


def test_fixed_sizes(folder: Path, tmp_path: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128

    edited(folder / "model.onnx", fix)
    with pytest.raises(
        EncoderFilesError, match=r"'input_ids' of a fixed size \(128\), needed an export for any"
    ):
        export_onnx(folder, tmp_path / "encoder")


@pytest.mark.parametrize("opset", [14, 18])
def test_other_operator_versions(folder: Path, tmp_path: Path, opset: int) -> None:
    onnx.save(onnx.version_converter.convert_version(onnx.load(READY), opset), folder / "model.onnx")
    pooling = {"embedding_dimension": 24, "pooling_mode": ["max", "mean"]}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    halves = encoder.encode_documents(TEXTS)[:, 24:]
    assert np.abs(halves / np.linalg.norm(halves, axis=1, keepdims=True) - VECTORS).max() < 1e-5


def test_old_operators_are_converted(folder: Path, tmp_path: Path) -> None:
    """As files of 2020 and 2021 have them: reductions and squeezes with attributes, other softmaxes."""
    old = onnx.load(OLD)
    assert [entry.version for entry in old.opset_import] == [11]
    shutil.copyfile(OLD, folder / "model.onnx")
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    assert np.abs(encoder.encode_documents(TEXTS) - VECTORS).max() < 1e-5


@pytest.mark.parametrize("opset", [1, 5, 7])
def test_operators_too_old_to_be_converted(folder: Path, tmp_path: Path, opset: int) -> None:
    model = onnx.load(OLD)
    model.opset_import[0].version = opset
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(EncoderFilesError, match=rf"operators of opset {opset} .* with opset 15 or newer"):
        export_onnx(folder, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_external_data(folder: Path, tmp_path: Path) -> None:
    onnx.save(
        onnx.load(READY),
        folder / "model.onnx",
        save_as_external_data=True,
        location="elsewhere.data",
        size_threshold=64,
    )
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    assert np.abs(encoder.encode_documents(TEXTS) - VECTORS).max() < 1e-5
    (folder / "elsewhere.data").write_bytes(bytes(100_000))
    changed = Encoder(export_onnx(folder, tmp_path / "changed"))
    assert changed.fingerprint != encoder.fingerprint  # the data are part of the weights


def test_output_that_is_pooled_already(folder: Path, tmp_path: Path) -> None:
    edited(folder / "model.onnx", pooled_sentence)
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    vectors = encoder.encode_documents(TEXTS)
    assert vectors.shape == VECTORS.shape
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors - VECTORS).max() > 0.01  # the first token is not the mean


def test_weights_are_preferred(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "models" / "bert", tmp_path / "model")
    shutil.copyfile(READY, folder / "model.onnx")
    assert Encoder(export_onnx(folder, tmp_path / "encoder")).spec.architecture == "bert"
    (folder / "model.safetensors").write_bytes(b"damaged")  # which is said, not passed over
    with pytest.raises(EncoderFilesError, match="no safetensors file"):
        export_onnx(folder, tmp_path / "encoder")


def test_architecture_that_is_not_built(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "models" / "bert", tmp_path / "model")
    shutil.copyfile(READY, folder / "model.onnx")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nomic_bert"}))
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    assert encoder.spec.architecture == "onnx"
    assert np.abs(encoder.encode_documents(TEXTS) - VECTORS).max() < 1e-5


def test_what_is_no_text_encoder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").write_bytes(b"half a file")
    with pytest.raises(EncoderFilesError, match="no ONNX model"):
        export_onnx(folder, tmp_path / "encoder")

    def pixels(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "pixel_values"

    edited(folder / "model.onnx", pixels)
    with pytest.raises(EncoderFilesError, match="'pixel_values'"):
        export_onnx(folder, tmp_path / "encoder")
