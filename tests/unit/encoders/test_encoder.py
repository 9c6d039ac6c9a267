"""The encoder as an object: cheap, lazy, shared, and clear about what it refuses."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder, EncoderSpec
from pgembed.encoders.text.texts import distinct, repeated
from pgembed.exc import (
    EncoderError,
    EncoderFilesError,
    EncoderNotFoundError,
    EncoderOptionError,
    FingerprintMismatchError,
    TextError,
)

HEAVY = ("onnxruntime", "onnx", "tokenizers", "safetensors", "huggingface_hub", "typer", "tomllib")


def run_python(code: str, **environment: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# --- laziness -----------------------------------------------------------------------------------------


def test_import_and_constructor_load_nothing_heavy(minilm_folder: Path) -> None:
    code = (
        "import sys; from pgembed.encoders import Encoder; from pathlib import Path\n"
        f"encoder = Encoder(Path({str(minilm_folder)!r})); encoder.fingerprint, repr(encoder)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_spec_file_alone_is_enough_until_something_is_encoded(
    minilm_folder: Path, minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schema" / "minilm.json"
    path.parent.mkdir()
    path.write_bytes((minilm_folder / "encoder.json").read_bytes())
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path / "nothing"))
    monkeypatch.setattr("pgembed.encoders.sources.local.default_folder", lambda: tmp_path / "default")
    encoder = Encoder(path)
    assert (encoder.fingerprint, encoder.dimensions) == (minilm.fingerprint, 384)
    with pytest.raises(EncoderNotFoundError, match="weights are looked up by its name"):
        encoder.encode_documents(["x"])
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    assert encoder.encode_documents(["x"]).shape == (1, 384)


def test_stated_fingerprint_needs_no_files(
    minilm_folder: Path, minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    monkeypatch.setattr("pgembed.encoders.sources.local.default_folder", lambda: tmp_path / "default")
    stated = Encoder("all-MiniLM-L6-v2", fingerprint=minilm.fingerprint, dimensions=384)
    other = Encoder("all-MiniLM-L6-v2", fingerprint="0" * 32, dimensions=384)
    assert (stated.name, stated.fingerprint, stated.dimensions) == (
        "all-MiniLM-L6-v2",
        minilm.fingerprint,
        384,
    )
    assert stated.encode_documents([]).shape == (0, 384)
    with pytest.raises(EncoderNotFoundError) as caught:
        stated.encode_documents(["x"])
    assert caught.value.searched == (tmp_path, tmp_path / "default")
    monkeypatch.setenv("PGEMBED_ENCODERS", os.pathsep.join(["/nowhere", str(minilm_folder.parent)]))
    assert stated.encode_documents(["x"]).shape == (1, 384)
    with pytest.raises(FingerprintMismatchError) as mismatch:
        other.encode_documents(["x"])
    assert (mismatch.value.found, mismatch.value.stated) == (minilm.fingerprint, "0" * 32)


# --- lookup -------------------------------------------------------------------------------------------


def test_names_are_never_relative_to_the_working_directory(
    minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(minilm_folder.parent)
    monkeypatch.setenv("PGEMBED_ENCODERS", "")
    monkeypatch.setattr("pgembed.encoders.sources.local.default_folder", lambda: tmp_path)
    with pytest.raises(EncoderNotFoundError, match="is a name"):
        Encoder("all-MiniLM-L6-v2")
    relative = Encoder("./all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    assert relative.encode_documents(["x"]).shape == (1, 384)


def test_path_without_encoder(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFoundError, match=r"needs the file encoder\.json"):
        Encoder(tmp_path)


def test_name_of_the_hub() -> None:
    with pytest.raises(EncoderNotFoundError, match=r"pgembed pull BAAI/bge-m3`, then Encoder\('bge-m3'\)"):
        Encoder("BAAI/bge-m3")


# --- texts --------------------------------------------------------------------------------------------


def test_nothing_and_repetition(minilm: Encoder) -> None:
    assert minilm.encode_documents([]).shape == (0, 384)
    assert minilm.encode_documents([]).dtype == np.float32
    vectors = minilm.encode_documents(["b", "a", "b", "", "b"])
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[4])
    assert not np.array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("texts", [["a", "a"], ["b", "a", "b", "c", "a", "a", "d"], ["a", "b"] * 5000])
def test_repetition_takes_no_second_copy(texts: list[str]) -> None:
    different, inverse = distinct(texts)
    vectors = np.array([[ord(text), -ord(text)] for text in different], dtype=np.float32)
    spread = repeated(vectors, inverse)
    assert spread is vectors
    assert spread.tolist() == [[ord(text), -ord(text)] for text in texts]


def test_generators_are_welcome(minilm: Encoder) -> None:
    assert minilm.encode_documents(text for text in ("a", "b")).shape == (2, 384)


@pytest.mark.parametrize(
    ("texts", "position", "reason"),
    [
        (["a", None], 1, "NoneType"),
        (["a", "b", b"c"], 2, "bytes"),
        ([1.5], 0, "float"),
        (["a", "broken \udc80 text"], 1, "surrogate"),
        ("a text instead of a list", None, "single str"),
    ],
)
def test_what_is_no_text(minilm: Encoder, texts: list[str], position: int | None, reason: str) -> None:
    with pytest.raises(TextError, match=reason) as caught:
        minilm.encode_documents(texts)
    assert caught.value.position == position


def test_a_megabyte_of_text(minilm: Encoder) -> None:
    text = "many words " * 100_000
    assert np.allclose(minilm.encode_documents([text]), minilm.encode_documents([text[:5000]]), atol=1e-6)


# --- sharing ------------------------------------------------------------------------------------------


def test_threads_share_one_encoder(minilm_folder: Path) -> None:
    texts = [f"text number {i} " + "word " * (i % 30) for i in range(120)]
    with Encoder(minilm_folder) as encoder, ThreadPoolExecutor(8) as pool:
        expected = encoder.encode_documents(texts)
        parts = list(pool.map(lambda i: encoder.encode_documents(texts[i * 15 : i * 15 + 15]), range(8)))
    assert np.abs(np.concatenate(parts) - expected).max() < 1e-6


def test_copies(minilm: Encoder, minilm_folder: Path) -> None:
    assert copy.copy(minilm) is minilm
    assert copy.deepcopy({"encoder": minilm})["encoder"] is minilm
    assert len({minilm, copy.deepcopy(minilm)}) == 1
    other = pickle.loads(pickle.dumps(Encoder(minilm_folder, dimensions=32, query_prompt="q: ")))
    assert (other.dimensions, other.spec.query_prompt) == (32, "q: ")
    assert "all-MiniLM-L6-v2" in repr(other)
    assert other.fingerprint[:8] in repr(other)


def test_closed(minilm_folder: Path) -> None:
    encoder = Encoder(minilm_folder)
    with encoder as opened:
        opened.open()
    with pytest.raises(EncoderError, match="closed"):
        encoder.encode_documents(["x"])
    assert encoder.dimensions == 384


# --- options and files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"dimensions": 385},
        {"dimensions": 0},
        {"max_tokens": 513},
        {"device": "tpu"},
        {"precision": "fp8"},
        {"query_cache": -1},
    ],
)
def test_impossible_options(minilm_folder: Path, option: dict[str, object]) -> None:
    with pytest.raises(EncoderOptionError) as caught:
        Encoder(minilm_folder, **option)
    assert (caught.value.option, caught.value.found) == next(iter(option.items()))


def test_limit_below_the_special_tokens(minilm_folder: Path) -> None:
    with pytest.raises(EncoderOptionError, match="max_tokens is 1, expected 2 or more, for special tokens"):
        Encoder(minilm_folder, max_tokens=1).encode_documents(["a text"])
    with Encoder(minilm_folder, max_tokens=2) as encoder:
        assert encoder.encode_counted(["a text"], "document")[1].tolist() == [2]


def damaged(folder: Path, tmp_path: Path, name: str, content: bytes | None) -> Path:
    """A copy of the encoder in which one file is missing or other."""
    copied = tmp_path / "damaged"
    copied.mkdir()
    for path in folder.iterdir():
        if path.name != name:
            (copied / path.name).symlink_to(path)
    if content is not None:
        (copied / name).write_bytes(content)
    return copied


@pytest.mark.parametrize("content", [None, b"", b"not what it was"])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_damaged_files(minilm_folder: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    encoder = Encoder(damaged(minilm_folder, tmp_path, name, content))
    assert encoder.dimensions == 384
    with pytest.raises(EncoderFilesError, match=name):
        encoder.encode_documents(["x"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"{", "not JSON"),
        (b"[]", "another kind"),
        (b'{"format": 9}', "format 9"),
        (b'{"format": 1}', "incomplete"),
    ],
)
def test_damaged_spec(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "encoder.json").write_bytes(content)
    with pytest.raises(EncoderFilesError, match=found):
        Encoder(tmp_path)


def test_edited_spec(minilm: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.json"
    minilm.spec.save(path)
    assert EncoderSpec.load(path) == minilm.spec
    path.write_text(path.read_text().replace('"max_tokens": 256', '"max_tokens": 512'))
    with pytest.raises(EncoderFilesError, match="unedited"):
        EncoderSpec.load(path)


def test_options_make_the_same_encoder_elsewhere(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEMBED_ENCODERS", str(minilm_folder.parent))
    plain = Encoder(minilm_folder, device="cpu", precision="fp32", threads=1, query_cache=0)
    assert plain.options == {}
    given = {"max_tokens": 64, "query_prompt": "q: ", "document_prompt": "", "precision": "int8"}
    encoder = Encoder(minilm_folder, **given, dimensions=128)
    assert encoder.options == given
    same = Encoder(encoder.name, **encoder.options, dimensions=encoder.dimensions)
    assert same.spec == encoder.spec
    assert pickle.loads(pickle.dumps(encoder)).options == given
    assert Encoder.remote("http://127.0.0.1:1", query_prompt="q: ").options == {}
