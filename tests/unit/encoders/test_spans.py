"""Vectors of spans of a text are means of tokens that have read all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pgembed.encoders import Encoder, EncoderSpec, export_onnx, packaged
from pgembed.encoders.files import file_digest
from pgembed.encoders.onnx.runtime import OnnxRuntime
from pgembed.encoders.sources.packaged import PACKAGES, Package
from pgembed.encoders.text import tokenizer as tokenizers
from pgembed.exc import EncoderOptionError, TextError
from tests.unit.encoders.models import GOLDEN, TEXTS, copied, edit
from tests.unit.encoders.wire import serving

RECORDED: dict[str, Any] = json.loads((GOLDEN / "spans.json").read_text())
LONG = RECORDED["texts"][2]
TinyFolder = Callable[[str], Path]


@pytest.mark.parametrize("name", RECORDED["vectors"])
def test_vectors_are_those_of_torch(tiny: TinyFolder, name: str) -> None:
    """Of short texts and of several windows, with a prompt and without."""
    with Encoder(tiny(name)) as encoder:
        found = encoder.encode_spans(RECORDED["texts"], RECORDED["spans"])
        windows = encoder.count_tokens(RECORDED["texts"]) / encoder.max_tokens
    assert windows.max() > 4
    assert bool(windows.min() < 1) is (name != "xlm-roberta")  # whose limit is low
    for vectors, expected in zip(found, RECORDED["vectors"][name], strict=True):
        assert vectors.dtype == np.float32
        assert vectors.shape == np.shape(expected)
        assert np.abs(vectors - expected).max() < 1e-5


@pytest.mark.parametrize(("name", "short"), [("bert", 6), ("mpnet", 7), ("xlm-roberta", 1)])
def test_a_span_over_a_short_text_is_the_text(tiny: TinyFolder, name: str, short: int) -> None:
    texts = [text for text in TEXTS if text]
    with Encoder(tiny(name)) as encoder:
        whole = encoder.count_tokens(texts) <= encoder.max_tokens
        found = np.concatenate(encoder.encode_spans(texts, [[(0, len(text))] for text in texts]))
        assert whole.sum() >= short
        assert np.abs(found - encoder.encode_documents(texts))[whole].max() < 1e-6


def test_prompts_that_are_not_pooled(tmp_path: Path) -> None:
    folder = copied("xlm-roberta", tmp_path)
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    text = "a reset"
    with Encoder(export_onnx(folder, tmp_path / "encoder")) as encoder:
        assert encoder.spec.document_prompt
        assert not encoder.spec.include_prompt
        whole, beginning = encoder.encode_spans([text], [[(0, len(text)), (0, 3)]])[0]
        assert np.abs(whole - encoder.encode_documents([text])[0]).max() < 1e-6
    with Encoder(tmp_path / "encoder", document_prompt="") as encoder:
        assert np.abs(beginning - encoder.encode_spans([text], [[(0, 3)]])[0][0]).max() > 1e-3


def test_means_of_the_graphs_token_vectors(tiny: TinyFolder) -> None:
    """With numpy and the graph's own output: every span of words of a short text."""
    text = "one two three four five"
    session = onnxruntime.InferenceSession(str(tiny("bert") / "model.onnx"))
    ids = tokenizers.Tokenizer(tiny("bert") / "tokenizer.json", max_tokens=40)([text]).ids.astype(np.int64)
    feed = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
    (tokens,), (pooled,) = session.run(["token_embeddings", "embedding"], feed)
    assert np.abs(tokens.mean(axis=0) / np.linalg.norm(tokens.mean(axis=0)) - pooled).max() < 1e-6
    places = [0, 4, 8, 14, 19, len(text)]
    with Encoder(tiny("bert")) as encoder:
        inner = tokens[1:-1]
        counts = [count - 2 for count in encoder.count_tokens(["one", "two", "three", "four", "five"])]
        ends = np.cumsum([0, *counts])
        assert len(inner) == ends[-1]
        spans = [(i, j) for i in range(1, 5) for j in range(i + 1, 5)]
        found = encoder.encode_spans([text], [[(places[i], places[j]) for i, j in spans]])[0]
    for (i, j), vector in zip(spans, found, strict=True):
        mean = inner[ends[i] : ends[j]].mean(axis=0)
        assert np.abs(vector - mean / np.linalg.norm(mean)).max() < 1e-6


def test_context_counts(tiny: TinyFolder) -> None:
    """The same words have other vectors in another text; plain encoding would not tell them apart."""
    with Encoder(tiny("bert")) as encoder:
        first, second = encoder.encode_spans(["one two three", "one two zebra"], [[(0, 7)], [(0, 7)]])
    assert np.abs(first - second).max() > 1e-2


def test_every_character_has_a_vector(tiny: TinyFolder) -> None:
    """Within tokens, of blanks, of characters that are no token, and where no text has any."""
    texts = ["  password \u200b ", "   ", "\u0000"]
    spans = [list(pairwise(range(len(text) + 1))) for text in texts]
    with Encoder(tiny("bert")) as encoder:
        found = encoder.encode_spans(texts, spans)
        plain = encoder.encode_documents(["   "])
    assert [len(vectors) for vectors in found] == [len(text) for text in texts]
    for vectors in found:
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(found[1][1] - plain).max() < 1e-6  # a blank in the middle of blanks


def test_order_of_spans_and_company_of_texts(tiny: TinyFolder) -> None:
    spans = RECORDED["spans"]
    with Encoder(tiny("bert")) as encoder:
        together = encoder.encode_spans(RECORDED["texts"], spans)
        (turned,) = encoder.encode_spans([LONG], [spans[2][::-1]])
        assert np.abs(turned[::-1] - together[2]).max() < 1e-6
        assert encoder.encode_spans([], []) == []
        assert [vectors.shape for vectors in encoder.encode_spans(["a", ""], [[], []])] == [(0, 24)] * 2


def test_only_the_windows_of_spans_are_read(tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = OnnxRuntime.token_vectors

    def counted(runtime: OnnxRuntime, tokens: tokenizers.Tokens) -> Any:
        read.append(len(tokens.lengths))
        return whole(runtime, tokens)

    monkeypatch.setattr(OnnxRuntime, "token_vectors", counted)
    spans = RECORDED["spans"][2]
    with Encoder(tiny("bert")) as encoder:
        encoder.encode_spans([LONG, LONG], [spans, []])
        encoder.encode_spans([LONG], [[spans[3]]])
    assert read[0] > 9
    assert 1 <= read[1] <= 4


def test_tokens_of_long_texts_are_found_block_by_block(
    tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the whole text at once, wherever blocks end."""
    tokenizer = tokenizers.Tokenizer(tiny("bert") / "tokenizer.json", max_tokens=100_000)
    (whole,) = tokenizer.placed([LONG])
    assert len(whole.ids) > 300
    for block in (20, 33, 50):
        monkeypatch.setattr(tokenizers, "_BLOCK", block)
        (found,) = tokenizer.placed([LONG])
        assert found.ids.tolist() == whole.ids.tolist()
        assert found.ends.tolist() == whole.ends.tolist()
    monkeypatch.setattr(tokenizers, "_BLOCK", 4)  # less than a word
    (found,) = tokenizer.placed([LONG])
    assert found.ends[-1] == whole.ends[-1]


def test_fewer_dimensions_and_tokens(tiny: TinyFolder) -> None:
    spans = [RECORDED["spans"][2]]
    with (
        Encoder(tiny("bert")) as whole,
        Encoder(tiny("bert"), dimensions=8) as fewer,
        Encoder(tiny("bert"), dimensions=8, max_tokens=20) as less,
    ):
        (full,) = whole.encode_spans([LONG], spans)
        kept = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
        (vectors,) = fewer.encode_spans([LONG], spans)
        assert np.abs(kept - vectors).max() < 1e-6
        (vectors,) = less.encode_spans([LONG], spans)
        assert np.abs(kept - vectors).max() > 1e-3  # of shorter windows
    with (
        Encoder(tiny("xlm-roberta"), max_tokens=6) as tight,
        pytest.raises(EncoderOptionError, match="max_tokens is 6, expected more than"),
    ):
        tight.encode_spans(["a"], [[(0, 1)]])


def test_int8(tiny: TinyFolder) -> None:
    with Encoder(tiny("bert"), precision="int8") as encoder:
        (found,) = encoder.encode_spans(["one two"], [[(0, 7)]])
        assert np.abs(found - encoder.encode_documents(["one two"])).max() < 1e-6


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([[(0, 2)]], r"text 0.*span \(0, 2\) of a text of 1 characters, expected 0 <= start < end <= 1"),
        ([[(1, 1)]], r"span \(1, 1\)"),
        ([[(-1, 1)]], r"span \(-1, 1\)"),
        ([], "spans of 0 texts, expected a list for each of the 1"),
    ],
)
def test_spans_outside(tiny: TinyFolder, spans: list[list[tuple[int, int]]], error: str) -> None:
    with Encoder(tiny("bert")) as encoder, pytest.raises(TextError, match=error):
        encoder.encode_spans(["a"], spans)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("modernbert", "pooling is 'cls and normalize', expected mean, with nothing but normalize after it"),
        ("distilbert", "pooling is 'mean and max and dense:tanh"),
        ("static", "encoder is 'tiny', expected a transformer"),
        ("words", "expected a transformer"),
    ],
)
def test_encoders_without(tiny: TinyFolder, name: str, error: str) -> None:
    with Encoder(tiny(name)) as encoder, pytest.raises(EncoderOptionError, match=error):
        encoder.encode_spans(["a"], [[(0, 1)]])


def test_a_server_has_none(tiny: TinyFolder) -> None:
    with (
        Encoder(tiny("bert")) as encoder,
        serving(encoder) as server,
        Encoder.remote(f"http://127.0.0.1:{server.server_port}") as remote,
        pytest.raises(EncoderOptionError, match="one on this machine: a server gives no vectors of tokens"),
    ):
        remote.encode_spans(["a"], [[(0, 1)]])


# --- exports without the vectors of tokens ------------------------------------------------------------


def test_ready_graphs(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path, "*.safetensors")
    model = onnx.load(GOLDEN / "ready_bert.onnx")
    onnx.save(model, folder / "model.onnx")
    with Encoder(export_onnx(folder, tmp_path / "encoder")) as encoder:
        found = encoder.encode_spans(RECORDED["texts"], RECORDED["spans"])
    for vectors, expected in zip(found, RECORDED["vectors"]["bert"], strict=True):
        assert np.abs(vectors - expected).max() < 1e-5
    first = helper.make_tensor("first", TensorProto.INT64, [], [0])
    model.graph.initializer.append(first)
    model.graph.node.append(
        helper.make_node("Gather", ["last_hidden_state", "first"], ["sentence_embedding"], axis=1)
    )
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["texts", 24])
    )
    (folder / "modules.json").unlink()
    onnx.save(model, folder / "model.onnx")
    with (
        Encoder(export_onnx(folder, tmp_path / "pooled")) as encoder,
        pytest.raises(EncoderOptionError, match="pooling is '', expected mean"),
    ):
        encoder.encode_spans(["a"], [[(0, 1)]])


def as_older(spec: Path) -> None:
    """Make a spec that of an export without the vectors of tokens."""
    document = json.loads(spec.read_text())
    del document["token_vectors"]
    spec.write_text(json.dumps(document))


def test_older_exports(tiny: TinyFolder, tmp_path: Path) -> None:
    """They encode as ever, under the same fingerprint."""
    folder = shutil.copytree(tiny("bert"), tmp_path / "older")
    as_older(folder / "encoder.json")
    with Encoder(folder) as older, Encoder(tiny("bert")) as newer:
        assert older.fingerprint == newer.fingerprint
        assert (older.encode_documents(TEXTS) == newer.encode_documents(TEXTS)).all()
        with pytest.raises(EncoderOptionError, match=r"vectors of tokens: export the model again"):
            older.encode_spans(["a"], [[(0, 1)]])


def test_older_packaged_encoders_are_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "tiny_weights"
    copied("bert", package)
    (package / "__init__.py").touch()
    weights = file_digest(package / "model" / "model.safetensors")
    monkeypatch.setitem(PACKAGES, "tiny", Package("tiny-weights", "tiny_weights", "model", weights))
    monkeypatch.syspath_prepend(package.parent)
    spec = packaged("tiny", tmp_path) / "encoder.json"
    as_older(spec)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packaged("tiny", tmp_path)
    assert not EncoderSpec.load(spec).token_vectors  # there is nothing to export
    monkeypatch.undo()
    monkeypatch.setitem(PACKAGES, "tiny", Package("tiny-weights", "tiny_weights", "model", weights))
    monkeypatch.syspath_prepend(package.parent)
    packaged("tiny", tmp_path)
    assert EncoderSpec.load(spec).token_vectors
