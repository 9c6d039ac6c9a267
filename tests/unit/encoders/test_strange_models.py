"""Model folders that are damaged, or made to lead elsewhere: a named error, and nothing is written."""

from __future__ import annotations

import copy
import json
import os
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
from safetensors.numpy import load_file, save_file

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.export.weights import SafetensorsFile
from pgembed.exc import EncoderFilesError, PgembedError
from tests.unit.encoders.models import GOLDEN, MODELS, copied, edit

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that may be edited, beside a file and a folder that are none of its business."""
    shutil.copytree(MODELS / "bert", tmp_path / "secret", ignore=shutil.ignore_patterns("*.npz"))
    return copied("bert", tmp_path)


def refused(folder: Path, match: str) -> None:
    """Exporting fails with a named error, and nothing is left."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(EncoderFilesError, match=match) as error:
        export_onnx(folder, folder.parent / "encoder")
    assert sorted(folder.parent.iterdir()) == before
    assert len(str(error.value)) < 1000


# --- names that lead out of the folder ----------------------------------------------------------------

OUTSIDE = [
    "../secret",
    "1_Pooling/../../secret",
    "/etc",
    "//etc",
    "..\\secret",
    "C:\\secret",
    "C:secret",
    "\\\\server\\share",
    "secret\0",
    "x" * 300,
    "\ud800",
    "a\nb",
    7,
    None,
    ["1_Pooling"],
]


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_modules_elsewhere(folder: Path, place: object, number: int) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[number]["path"] = place
    (folder / "modules.json").write_text(json.dumps(listed))
    refused(folder, r"modules\.json: found (the name|no list of modules)")


@pytest.mark.parametrize("name", [name for name in OUTSIDE if isinstance(name, str)])
def test_shards_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embeddings.word_embeddings.weight": name}}))
    refused(folder, r"index\.json: found (the name|weight_map)")


@pytest.mark.parametrize("content", [[], {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": "x"}])
def test_a_file_that_is_not_an_index(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(folder, r"index\.json: found (JSON of type|weight_map)")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b"])
def test_routes_elsewhere(tmp_path: Path, name: str) -> None:
    folder = copied("router", tmp_path)
    router = json.loads((folder / "router_config.json").read_text())
    router["structure"]["document"].append(name)
    router["types"][name] = router["types"][router["structure"]["document"][0]]
    (folder / "router_config.json").write_text(json.dumps(router))
    refused(folder, r"router_config\.json: found the name")


LINKED = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "1_Pooling",
]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_lead_out(folder: Path, name: str, absolute: bool) -> None:
    path, target = folder / name, folder.parent / "secret" / name
    if not target.exists():
        target.write_text("{}")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target if absolute else os.path.relpath(target, path.parent))
    refused(folder, "found a link to .*secret")


def test_links_inside(folder: Path) -> None:
    (folder / "files").mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(folder / "files" / name)
        (folder / name).symlink_to(f"files/{name}")
    (folder.parent / "linked").symlink_to(folder)  # the folder itself may be a link
    assert Encoder(export_onnx(folder.parent / "linked", folder.parent / "encoder")).dimensions == 24


@pytest.mark.parametrize(
    "name", ["modules.json", "config.json", "model.safetensors", "1_Pooling/config.json"]
)
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_file(folder: Path, name: str, kind: str) -> None:
    """A link to what was never fetched is no file that the model lacks."""
    shutil.copyfile(GOLDEN / "ready_bert.onnx", folder / "model.onnx")
    (folder / name).unlink()
    if kind == "link":
        (folder / name).symlink_to("not-there")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    refused(
        folder, f"{name}: found (no list of modules .)?(No such file|a folder|something that is not a file)"
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [("bert", "1_Pooling/config.json"), ("distilbert", "2_Dense/config.json"), ("bert", "config.json")],
)
def test_settings_that_were_not_copied(tmp_path: Path, model: str, name: str) -> None:
    """Default values would be others than the model's."""
    folder = copied(model, tmp_path)
    (folder / name).unlink()
    refused(folder, f"{name}: found No such file")


def test_links_in_a_circle(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, "config.json")


@pytest.mark.parametrize("ready", [True, False])
def test_the_cache_of_the_hub(tmp_path: Path, ready: bool) -> None:
    """Its snapshots are links to blobs, and those of external data are no exception."""
    folder = copied("bert", tmp_path)
    if ready:
        (folder / "model.safetensors").unlink()
        model = onnx.load(GOLDEN / "ready_bert.onnx")
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    cache = tmp_path / "models--org--bert"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = cache / "snapshots" / "0123" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, cache / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    direct = Encoder(export_onnx(folder, tmp_path / "direct"))
    linked = Encoder(export_onnx(cache / "snapshots" / "0123", tmp_path / "linked"))
    assert linked.fingerprint == direct.fingerprint
    (cache / "snapshots" / "0123" / "config.json").unlink()
    (cache / "snapshots" / "0123" / "config.json").symlink_to(tmp_path / "model" / "config.json")
    with pytest.raises(EncoderFilesError, match="a link to"):
        export_onnx(cache / "snapshots" / "0123", tmp_path / "outside")


# --- lists of modules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["Transformer", "Pooling", "Pooling"], "Pooling and Pooling after"),
        (["Transformer", "Pooling", "Transformer"], "the module Transformer"),
        (["Transformer", "Pooling", "CNN"], "the module CNN"),
        (["Transformer", "WeightedLayerPooling", "Pooling"], "the module WeightedLayerPooling"),
        (["Transformer", "LSTM", "Pooling"], "the module LSTM"),
        (["BoW"], "BoW as the first module"),
        (["CLIPModel"], "CLIPModel as the first module"),
        (["Router"], "no router|router_config.json"),
        (["StaticEmbedding", "Pooling"], "Pooling after the StaticEmbedding"),
    ],
)
def test_other_modules(folder: Path, kinds: list[str], found: str) -> None:
    listed = [
        {"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling" if kind == "Pooling" else ""}
        for kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    refused(folder, found)


@pytest.mark.parametrize(
    "name", ["custom_st.Transformer", "Transformer", "evil.sentence_transformers.Normalize"]
)
def test_modules_with_code_of_their_own(folder: Path, name: str) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[0 if "Transformer" in name else 2]["type"] = name
    (folder / "modules.json").write_text(json.dumps(listed))
    refused(folder, "modules of sentence_transformers, without code of their own")


def test_a_router_in_a_router(tmp_path: Path) -> None:
    folder = copied("router", tmp_path)
    router = json.loads((folder / "router_config.json").read_text())
    router["types"] = dict.fromkeys(router["types"], "sentence_transformers.models.Router")
    (folder / "router_config.json").write_text(json.dumps(router))
    refused(folder, "Router as the first module")


# --- values of another kind, and beyond all bounds ----------------------------------------------------


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "num_hidden_layers", -1),
        ("config.json", "num_hidden_layers", 0),
        ("config.json", "num_hidden_layers", 10**9),
        ("config.json", "num_hidden_layers", "2"),
        ("config.json", "num_hidden_layers", True),
        ("config.json", "num_attention_heads", 0),
        ("config.json", "num_attention_heads", -4),
        ("config.json", "num_attention_heads", 5),
        ("config.json", "hidden_size", 23),
        ("config.json", "hidden_size", 10**30),
        ("config.json", "hidden_size", 1e400),
        ("config.json", "intermediate_size", 35),
        ("config.json", "max_position_embeddings", 10**12),
        ("config.json", "max_position_embeddings", 64),
        ("config.json", "layer_norm_eps", "small"),
        ("config.json", "layer_norm_eps", float("nan")),
        ("config.json", "layer_norm_eps", -1e-12),
        ("config.json", "model_type", ["bert"]),
        ("sentence_bert_config.json", "max_seq_length", "12"),
        ("sentence_bert_config.json", "max_seq_length", -3),
        ("sentence_bert_config.json", "do_lower_case", "no"),
        ("sentence_bert_config.json", "module_output_name", "sentence_embedding"),
        ("sentence_bert_config.json", "transformer_task", "fill-mask"),
        ("sentence_bert_config.json", "config_args", {"hidden_act": "relu"}),
        ("sentence_bert_config.json", "tokenizer_args", {"do_lower_case": False}),
        ("sentence_bert_config.json", "document_length", 12),
        ("sentence_bert_config.json", "modality_config", {"image": {}}),
        ("1_Pooling/config.json", "include_prompt", "false"),
        ("1_Pooling/config.json", "pooling_mode", [1]),
        ("config_sentence_transformers.json", "truncate_dim", 0),
        ("config_sentence_transformers.json", "truncate_dim", "12"),
        ("config_sentence_transformers.json", "default_prompt_name", "none of them"),
        ("config_sentence_transformers.json", "prompts", {"query": 3}),
        ("config_sentence_transformers.json", "prompts", {"query": "\ud800"}),
        ("tokenizer_config.json", "truncation_side", "up"),
        ("tokenizer_config.json", "tokenizer_class", 3),
        ("tokenizer.json", "truncation", 3),
    ],
)
def test_values(folder: Path, file: str, key: str, value: object) -> None:
    edit(folder / file, **{key: value})
    weights = r"tensor .* of shape|no tensor .*layer\.2|a divisor of 23|struct TruncationParams"
    refused(folder, rf"found {key}[.\w]* = |{weights}")


@pytest.mark.parametrize("file", ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (DEEP, "nested too deeply|damaged tokenizer"),
        (b"\xff\xfe\x00", "not JSON|damaged tokenizer"),
        (b"", "an empty file"),
        (LFS_POINTER, r"a pointer of Git LFS.*expected the file that it points to: `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>Access denied", "a web page"),
        (b"1" * 5000, "not JSON|damaged tokenizer"),
    ],
)
def test_what_is_no_json(folder: Path, file: str, content: bytes, found: str) -> None:
    (folder / file).write_bytes(content)
    refused(folder, found)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300, "a\0b"])
def test_names_of_encoders(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(PgembedError, match="name is"):
        export_onnx(folder, tmp_path / "encoder", name=name)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "secret/config.json/encoder"])
def test_places_that_cannot_be_written_to(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderFilesError, match="a place that an encoder can be written to"):
        export_onnx(folder, tmp_path / name, name="encoder")
    with pytest.raises(EncoderFilesError, match="no folder"):
        export_onnx(tmp_path / name, tmp_path / "encoder")


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (LFS_POINTER, r"model\.safetensors: found a pointer of Git LFS, expected the file .* `git lfs pull`"),
        (b"", "an empty file"),
        (b"<html>404", "a web page"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    ],
)
def test_what_lies_in_the_place_of_weights(folder: Path, content: bytes, found: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, found)


@pytest.mark.parametrize("pointer", [True, False])
def test_older_weights_alone(folder: Path, pointer: bool) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(LFS_POINTER if pointer else b"PK\x03\x04")
    ending = ", a pointer of Git LFS, expected" if pointer else ", expected"
    refused(folder, rf"no model\.safetensors, but pytorch_model\.bin{ending} the weights as safetensors")


def written(path: Path, header: bytes, data: bytes = bytes(24), *, length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def tensor(kind: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> bytes:
    return json.dumps({"x": {"dtype": kind, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"not JSON", "not a safetensors file"),
        (b"[]", "its header is not a JSON object"),
        (b'"x"', "its header is not a JSON object"),
        (b'{"x": "\xff"}', "not a safetensors file"),
        (DEEP, "not a safetensors file"),
        (b'{"x": 3}', "lacks dtype, shape or data_offsets"),
        (b'{"x": {"dtype": "F32"}}', "lacks dtype, shape or data_offsets"),
        (tensor()[:-1] + b"," + tensor()[1:], "has a name twice"),
        (tensor(kind="F64"), "type F64 and shape .* has 24 bytes"),
        (tensor(kind=4), "is described by"),
        (tensor(shape=[2, 4]), "has 24 bytes"),
        (tensor(shape=[-2, -3]), "is described by"),
        (tensor(shape=[2.0, 3]), "is described by"),
        (tensor(shape=[True, 6]), "is described by"),
        (tensor(shape=6), "lacks dtype, shape"),
        (tensor(shape=[2**62, 2**62]), "has 24 bytes"),
        (tensor(offsets=[-24, 0]), "is described by"),
        (tensor(offsets=[24, 0]), "has -24 bytes"),
        (tensor(offsets=[0, 24, 48]), "lacks dtype, shape"),
        (tensor(offsets=[8, 32]), "expected one from byte 0"),
        (tensor(offsets=[0, 48], shape=[4, 3]), "the file was copied in part"),
        (tensor(offsets=[0, 12], shape=[3]), "bytes, expected"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: bytes, found: str) -> None:
    with pytest.raises(EncoderFilesError, match=found):
        SafetensorsFile(written(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 10**6])
def test_headers_longer_than_the_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(EncoderFilesError, match=f"its header has {length} bytes"):
        SafetensorsFile(written(tmp_path / "x.safetensors", tensor(), length=length))


def test_tensors_that_overlap(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"a": entry, "b": entry | {"data_offsets": [12, 36]}}).encode()
    with pytest.raises(
        EncoderFilesError, match="tensor 'b' at the bytes 12 to 36, expected one from byte 24"
    ):
        SafetensorsFile(written(tmp_path / "x.safetensors", header, bytes(36)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda name, old: old.T if name.endswith("intermediate.dense.weight") else old, "of shape"),
        (lambda name, old: old[:-1] if name.endswith("LayerNorm.weight") else old, "of shape"),
        (lambda name, old: old.reshape(-1) if "word_embeddings" in name else old, "of shape"),
        (lambda name, old: old[:9] if "position_embeddings" in name else old, "of shape"),
        (lambda name, old: old[:0] if "token_type" in name else old, "of shape"),
        (lambda name, old: old.astype(np.int8) if "query" in name else old, "expected floats"),
        (lambda name, old: np.full_like(old, np.nan) if "query" in name else old, "not finite"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[str, Any], Any], found: str) -> None:
    path = folder / "model.safetensors"
    changed = {name: np.ascontiguousarray(change(name, old)) for name, old in load_file(path).items()}
    save_file(changed, path)
    refused(folder, found)


def test_a_tensor_in_two_files(folder: Path) -> None:
    shutil.copyfile(folder / "model.safetensors", folder / "b.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = {"first": "a.safetensors", "second": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, r"which a\.safetensors has as well")


@pytest.mark.parametrize(("mapping", "found"), [([0, 99], "a mapping to the rows"), ([-1, 0], "a mapping")])
def test_word_vectors_that_are_not_there(tmp_path: Path, mapping: list[int], found: str) -> None:
    folder = copied("static", tmp_path)
    rows = load_file(folder / "model.safetensors")["embedding.weight"]
    places = np.resize(np.array(mapping, dtype=np.int64), len(rows))
    save_file({"embeddings": rows[:9], "mapping": places}, folder / "model.safetensors")
    refused(folder, found)


# --- anything at all ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def mutated(data: st.DataObject, value: Any) -> Any:
    """``value`` with something put in another's place somewhere inside."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 5)):
        changed = copy.copy(value)
        key: Any = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        if data.draw(st.integers(0, 6)) == 0:
            del changed[key]
        else:
            changed[key] = mutated(data, value[key])
        return changed
    return data.draw(JSON)


FILES = [
    ("bert", "config.json"),
    ("bert", "modules.json"),
    ("bert", "sentence_bert_config.json"),
    ("bert", "config_sentence_transformers.json"),
    ("bert", "tokenizer_config.json"),
    ("bert", "1_Pooling/config.json"),
    ("distilbert", "config.json"),
    ("distilbert", "2_Dense/config.json"),
    ("modernbert", "config.json"),
    ("mpnet", "config.json"),
    ("roberta", "config.json"),
    ("router", "router_config.json"),
    ("static", "tokenizer.json"),
    ("words", "whitespacetokenizer_config.json"),
    ("words", "wordembedding_config.json"),
]


@pytest.mark.parametrize(("model", "file"), FILES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings(tmp_path: Path, model: str, file: str, data: st.DataObject) -> None:
    """An encoder or a named error, and never anything half-written."""
    folder = tmp_path / "model"
    if not folder.exists():
        copied(model, tmp_path)
    original = json.loads((MODELS / model / file).read_text())
    (folder / file).write_text(json.dumps(mutated(data, original)))
    target = tmp_path / "encoder"
    shutil.rmtree(target, ignore_errors=True)
    try:
        Encoder(export_onnx(folder, target)).encode_documents(["text"])
    except PgembedError:
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header(tmp_path: Path, data: st.DataObject) -> None:
    content = (MODELS / "bert" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(mutated(data, json.loads(content[8 : 8 + length]))).encode()
    stated = data.draw(st.sampled_from([len(header), length, data.draw(st.integers(0, 2**64 - 1))]))
    path = written(tmp_path / "x.safetensors", header, content[8 + length :], length=stated)
    with suppress(PgembedError):
        file = SafetensorsFile(path)
        assert all(file[name].nbytes >= 0 for name in file)
