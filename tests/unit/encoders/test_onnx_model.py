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
from tests.unit.encoders.models import GOLDEN, MODELS, TEXTS, copied

READY = GOLDEN / "ready_bert.onnx"  # the transformer of models/bert, exported by torch
OLD = GOLDEN / "ready_bert_opset11.onnx"  # the same, as older exporters wrote it
VECTORS = np.load(MODELS / "bert" / "golden.npz")["documents"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights."""
    return copied("bert", tmp_path, "*.safetensors")


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
        EncoderFilesError, match=r"'input_ids' of a fixed size \(128\), expected an export for any"
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


def both_outputs(model: onnx.ModelProto) -> None:
    """Vectors of tokens, and the first token's as the text's, as in files for sentence-transformers."""
    pooled_sentence(model)
    shape = ["texts", "tokens", 24]
    model.graph.output.insert(0, helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape))


def test_whose_pooling(folder: Path, tmp_path: Path) -> None:
    """The folder's, where it states one; else the graph's own vector of a text is what was meant."""
    edited(folder / "model.onnx", both_outputs)
    stated = Encoder(export_onnx(folder, tmp_path / "stated"))
    assert np.abs(stated.encode_documents(TEXTS) - VECTORS).max() < 1e-5
    (folder / "modules.json").unlink()
    unstated = Encoder(export_onnx(folder, tmp_path / "unstated"))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            ]
        )
    )
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    first_token = Encoder(export_onnx(folder, tmp_path / "first")).encode_documents(TEXTS)
    assert np.abs(unstated.encode_documents(TEXTS) - first_token).max() < 1e-6
    assert (unstated.spec.pooling, unstated.spec.steps) == ((), ())


def renamed(*outputs: tuple[str, int, int]) -> Callable[[onnx.ModelProto], None]:
    """Outputs of these names, types and numbers of axes."""

    def change(model: onnx.ModelProto) -> None:
        pooled_sentence(model)
        del model.graph.output[:]
        for name, kind, axes in outputs:
            source = "sentence_embedding" if axes == 2 else "last_hidden_state"
            if name != source:
                model.graph.node.append(helper.make_node("Cast", [source], [name], to=kind))
            shape = ["texts", "tokens", 24][-axes:] if axes == 3 else ["texts", 24]
            model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    return change


FLOAT, HALF, INT8, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8


@pytest.mark.parametrize(
    ("outputs", "pooled"),
    [
        ([("last_hidden_state", FLOAT, 3), ("pooler_output", FLOAT, 2)], False),
        ([("token_embeddings", FLOAT, 3), ("text_embeds", FLOAT, 2)], True),
        ([("sentence_embedding_quantized", INT8, 2), ("sentence_embedding", FLOAT, 2)], True),
        ([("sentence_embedding", UINT8, 2), ("last_hidden_state", FLOAT, 3)], False),
        ([("last_hidden_state", HALF, 3)], False),
        ([("1234", FLOAT, 2)], True),
        ([("1234", FLOAT, 3)], False),
    ],
)
def test_outputs_where_no_pooling_is_stated(
    folder: Path, tmp_path: Path, outputs: list[tuple[str, int, int]], pooled: bool
) -> None:
    """Vectors of tokens are averaged, as sentence-transformers does with a bare transformer."""
    (folder / "modules.json").unlink()
    edited(folder / "model.onnx", renamed(*outputs))
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    vectors = encoder.encode_documents(TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (np.abs(vectors - VECTORS).max() < 1e-2) is not pooled
    assert encoder.spec.pooling == (() if pooled else ("mean",))


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ([("pooler_output", FLOAT, 2)], r"'pooler_output' \(FLOAT, 2 axes\)"),
        ([("logits", FLOAT, 2)], "'logits'"),
        ([("sentence_embedding", INT8, 2)], r"'sentence_embedding' \(INT8"),
        (
            [("sentence_embedding", UINT8, 2), ("a", INT8, 3)],
            r"'sentence_embedding' \(UINT8, 2 axes\), 'a' \(INT8",
        ),
        ([("a", FLOAT, 2), ("b", FLOAT, 2)], r"'a' \(FLOAT, 2 axes\), 'b'"),
        ([("a", FLOAT, 3), ("b", FLOAT, 3)], r"'a' \(FLOAT, 3 axes\), 'b'"),
    ],
)
def test_outputs_that_are_no_vectors_of_texts(
    folder: Path, tmp_path: Path, outputs: list[tuple[str, int, int]], found: str
) -> None:
    (folder / "modules.json").unlink()
    edited(folder / "model.onnx", renamed(*outputs))
    with pytest.raises(EncoderFilesError, match=f"found the outputs {found}.*expected floats called"):
        export_onnx(folder, tmp_path / "encoder")


def test_prompts_that_have_been_pooled(folder: Path, tmp_path: Path) -> None:
    edited(folder / "model.onnx", pooled_sentence)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    with pytest.raises(EncoderFilesError, match="in which the prompts are pooled"):
        export_onnx(folder, tmp_path / "encoder")


# --- damaged files, and such that lead elsewhere ------------------------------------------------------


def with_external(folder: Path, **changes: str) -> None:
    """The ready file with its data outside, of which one tensor's entry is changed."""
    onnx.save(
        onnx.load(READY),
        folder / "model.onnx",
        save_as_external_data=True,
        location="data",
        size_threshold=64,
    )
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"location": "../secret"}, r"model\.onnx: found the name '../secret'"),
        ({"location": "/etc/passwd"}, "found the name '/etc/passwd'"),
        ({"location": "a\\b"}, "found the name"),
        ({"location": "C:data"}, "found the name"),
        ({"location": "linked"}, "found a link to .*secret"),
        ({"location": "lost"}, "lost: found No such file"),
        ({"location": ""}, "found"),
        ({"location": "pointer"}, "pointer: found a pointer of Git LFS"),
        ({"offset": "-8"}, "from byte -8"),
        ({"offset": "x"}, "expected a type, an offset and a length"),
        ({"length": "999999999999"}, "at most the"),
        ({"length": "4"}, "a damaged graph"),
    ],
)
def test_external_data_elsewhere(folder: Path, tmp_path: Path, changes: dict[str, str], found: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(100_000))
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with_external(folder, **changes)
    with pytest.raises(EncoderFilesError, match=found):
        export_onnx(folder, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*`git lfs pull`"),
        (b"", "an empty file"),
        (b"<html>", "a web page"),
        (b"\x08\x08", "no input 'input_ids'"),
    ],
)
def test_what_lies_in_its_place(folder: Path, tmp_path: Path, content: bytes, found: str) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(EncoderFilesError, match=found):
        export_onnx(folder, tmp_path / "encoder")


def no_operators(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Nonsense"


def wrong_operator(model: onnx.ModelProto) -> None:
    """One that is looked for only when the graph is opened."""
    model.graph.node[0].domain = "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))


def other_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 23


def negative_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = -24


def texts_as_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (no_operators, "no version of its operators"),
        (unknown_operator, "that cannot be converted"),
        (wrong_operator, "a model that cannot be run"),
        (other_width, "a model that cannot be run|of shape"),
        (negative_width, "vectors of -24 dimensions"),
        (texts_as_input, "an input 'input_ids' of type STRING"),
    ],
)
def test_graphs_that_cannot_be_run(
    folder: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], found: str
) -> None:
    """An export is tried out before it appears."""
    edited(folder / "model.onnx", change)
    with pytest.raises(EncoderFilesError, match=found):
        export_onnx(folder, tmp_path / "encoder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_weights_are_preferred(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path)
    shutil.copyfile(READY, folder / "model.onnx")
    assert Encoder(export_onnx(folder, tmp_path / "encoder")).spec.architecture == "bert"
    (folder / "model.safetensors").write_bytes(b"damaged")  # which is said, not passed over
    with pytest.raises(EncoderFilesError, match="not a safetensors file"):
        export_onnx(folder, tmp_path / "encoder")


def test_architecture_that_is_not_built(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path)
    shutil.copyfile(READY, folder / "model.onnx")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nomic_bert"}))
    encoder = Encoder(export_onnx(folder, tmp_path / "encoder"))
    assert encoder.spec.architecture == "onnx"
    assert np.abs(encoder.encode_documents(TEXTS) - VECTORS).max() < 1e-5


def test_what_is_no_text_encoder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").write_bytes(b"half a file")
    with pytest.raises(EncoderFilesError, match="not an ONNX model"):
        export_onnx(folder, tmp_path / "encoder")

    def pixels(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "pixel_values"

    edited(folder / "model.onnx", pixels)
    with pytest.raises(EncoderFilesError, match="'pixel_values'"):
        export_onnx(folder, tmp_path / "encoder")
