"""Cross-encoders give the scores of the reference, whatever their family, labels and pairs."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Whole
from typer.testing import CliRunner

from pgembed import Encoder, Reranker, export_onnx
from pgembed.cli.main import app
from pgembed.encoders.onnx import feeds
from pgembed.encoders.text.pair_tokenizer import PairTokenizer, tokenizer_of
from pgembed.exc import (
    EncoderError,
    EncoderFilesError,
    EncoderNotFoundError,
    EncoderOptionError,
    TextError,
    UnsupportedArchitectureError,
)
from tests.unit.encoders.models import PAIRS, RERANKERS, copied, edit

NAMES = sorted(path.name for path in RERANKERS.iterdir() if path.is_dir())
NLI = ("contradiction", "entailment", "neutral")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, scoring: Callable[[str], Path]) -> tuple[str, Reranker]:
    return request.param, Reranker(scoring(request.param))


@pytest.fixture
def bert(scoring: Callable[[str], Path]) -> Reranker:
    return Reranker(scoring("bert"))


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(RERANKERS / name / "golden.npz"))


# --- the reference ------------------------------------------------------------------------------------


def test_scores_are_those_of_the_reference(model: tuple[str, Reranker]) -> None:
    name, reranker = model
    wanted = golden(name)
    scores = reranker.predict(PAIRS)
    assert (scores.dtype, scores.shape) == (np.float32, wanted["scores"].shape)
    for found, kind in ((scores, "scores"), (reranker.predict(PAIRS, activation="identity"), "logits")):
        assert np.abs(found - wanted[kind]).max() < 1e-5 * max(np.abs(wanted[kind]).max(), 1), kind
    for pair, alone in list(zip(PAIRS, wanted["scores"], strict=True))[::3]:
        assert np.abs(reranker.predict([pair])[0] - alone).max() < 1e-5 * max(
            np.abs(wanted["scores"]).max(), 1
        )


def test_models_are_no_trivial_ones(model: tuple[str, Reranker]) -> None:
    """Logits differ by far more than the tolerance, and long pairs are cut."""
    logits = golden(model[0])["logits"].reshape(len(PAIRS), -1)
    assert np.median(np.abs(np.diff(np.sort(logits, axis=0), axis=0)), axis=0).min() > 5e-5
    reranker = model[1]
    before = reranker.cut
    reranker.predict(PAIRS)
    assert reranker.cut - before == reranker.count_cut(PAIRS) >= 16
    assert reranker.count_cut([]) == 0


def test_the_folders_hold_every_family_and_form() -> None:
    families = {json.loads((RERANKERS / name / "config.json").read_text())["model_type"] for name in NAMES}
    assert families == {"bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "mpnet"}
    assert (RERANKERS / "bert-nli" / "modules.json").is_file()


@pytest.mark.parametrize(
    ("name", "labels", "activation"),
    [
        ("bert", ("LABEL_0",), "sigmoid"),  # one label, nothing stated
        ("bert-nli", NLI, "identity"),  # config_sentence_transformers.json
        ("bert-untyped", ("LABEL_0",), "identity"),  # sbert_ce_default_activation_function
        ("roberta", ("LABEL_0",), "identity"),  # sentence_transformers.activation_fn
        ("distilbert", ("LABEL_0", "LABEL_1"), "identity"),  # two labels without names
    ],
)
def test_labels_and_activation(
    scoring: Callable[[str], Path], name: str, labels: tuple[str, ...], activation: str
) -> None:
    spec = Reranker(scoring(name)).spec
    assert (spec.labels, spec.activation) == (labels, activation)


def test_int8_gives_nearly_the_same_order(
    model: tuple[str, Reranker], scoring: Callable[[str], Path]
) -> None:
    """Random weights suffer more from 8 bits than trained ones do."""
    name, reranker = model
    wanted = golden(name)["logits"].reshape(len(PAIRS), -1)
    small = Reranker(scoring(name), precision="int8")
    assert small.fingerprint != reranker.fingerprint
    found = small.predict(PAIRS, activation="identity").reshape(len(PAIRS), -1)
    for label in range(wanted.shape[1]):
        assert np.corrcoef(found[:, label], wanted[:, label])[0, 1] > 0.95
    assert np.abs(found - wanted).mean() < 0.05 * max(np.ptp(wanted), np.abs(wanted).max())
    assert np.abs(found - wanted).max() > 1e-4  # it is another graph


def test_activations(scoring: Callable[[str], Path]) -> None:
    logits = golden("bert-nli")["logits"]
    nli = Reranker(scoring("bert-nli"))
    softmax = nli.predict(PAIRS, activation="softmax")
    assert np.abs(softmax - np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max() < 1e-5
    assert np.abs(nli.predict(PAIRS, activation="sigmoid") - 1 / (1 + np.exp(-logits))).max() < 1e-5
    fixed = Reranker(scoring("bert-nli"), activation="softmax")
    assert (fixed.predict(PAIRS) == softmax).all()
    assert fixed.fingerprint != nli.fingerprint
    assert fixed.options == {"activation": "softmax"}
    extreme = np.array([[-200.0], [-20.0], [0.0], [200.0]], dtype=np.float32)
    scores = Reranker(scoring("bert")).scores(extreme)
    assert scores.tolist() == pytest.approx([0, 2.0611537e-9, 0.5, 1], rel=1e-5)
    assert scores.dtype == np.float32


def test_no_pairs(scoring: Callable[[str], Path]) -> None:
    assert Reranker(scoring("bert")).predict([]).shape == (0,)
    assert Reranker(scoring("bert-nli")).predict([]).shape == (0, 3)


def test_equal_pairs_are_scored_once(bert: Reranker) -> None:
    before = bert.cut
    long = ("word " * 60, "text")
    scores = bert.predict([long, ("a", "b"), long, ("b", "a")])
    assert bert.cut == before + 1
    assert scores[0] == scores[2]
    assert abs(scores[1] - scores[3]) > 1e-4  # which text is the query counts


# --- pairs as tokens ----------------------------------------------------------------------------------


def whole(path: Path, limit: int) -> Whole:
    tokenizer = Whole.from_file(str(path))
    side = tokenizer.truncation["direction"] if tokenizer.truncation else "right"
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, strategy="longest_first", direction=side)
    return tokenizer


@pytest.mark.parametrize("limit", [20, 21])
@pytest.mark.parametrize("name", ["bert", "bert-untyped"])
def test_long_pairs_are_cut_as_if_tokenised_whole(
    scoring: Callable[[str], Path], name: str, limit: int
) -> None:
    """Of long texts only the beginning is tokenised, unless that would change which text is cut."""
    path = scoring(name) / "tokenizer.json"
    texts = ["", "one", "one two three " * 3, "one two three " * 45, "reset reset printer " * 33]
    texts += ["x" * 600, "x" * 600 + " one two three" * 20, "一二三四五六七" * 8]
    pairs = [(left, right) for left in texts for right in texts]
    found = PairTokenizer(path, max_tokens=limit, segments=True)(pairs)
    assert found.segments is not None
    for index, encoding in enumerate(whole(path, limit).encode_batch(pairs)):
        part = slice(found.offsets[index], found.offsets[index + 1])
        assert found.ids[part].tolist() == encoding.ids, index
        assert found.segments[part].tolist() == encoding.type_ids, index


def test_limit_must_hold_the_special_tokens_of_a_pair(scoring: Callable[[str], Path]) -> None:
    with pytest.raises(EncoderOptionError, match="max_tokens is 2, expected 3 or more, for special tokens"):
        Reranker(scoring("bert"), max_tokens=2).predict([("a", "b")])
    with pytest.raises(EncoderOptionError, match="expected 1 to 50, the limit"):
        Reranker(scoring("bert"), max_tokens=51)


def test_packed_batches_tell_texts_apart_as_padded_ones_do(
    bert: Reranker, scoring: Callable[[str], Path]
) -> None:
    tokens = tokenizer_of(scoring("bert"), bert.spec)(PAIRS)
    batch = np.array([3, 0, 7])
    padded, packed = feeds.padded(tokens, batch), feeds.packed(tokens, batch)
    inside = padded["attention_mask"] > 0
    assert (padded["token_type_ids"][inside] == packed["token_type_ids"]).all()
    assert set(packed["token_type_ids"]) == {0, 1}
    assert not padded["token_type_ids"][~inside].any()


# --- an ordinary model of this package ------------------------------------------------------------------


def test_found_by_name_and_lazy(
    scoring: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scoring("bert"), tmp_path / "cross")
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    reranker = Reranker("cross")
    assert repr(reranker).startswith("<Reranker 'cross', fingerprint=")
    (tmp_path / "cross" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(EncoderFilesError, match=r"model\.onnx"):
        reranker.predict([("a", "b")])
    with pytest.raises(EncoderNotFoundError):
        Reranker("elsewhere")


def test_copies_threads_and_the_event_loop(bert: Reranker) -> None:
    wanted = golden("bert")["scores"]
    assert copy.deepcopy(bert) is bert
    assert np.abs(pickle.loads(pickle.dumps(bert)).predict(PAIRS) - wanted).max() < 1e-5
    with ThreadPoolExecutor(4) as threads:
        for scores in threads.map(bert.predict, [PAIRS] * 8):
            assert np.abs(scores - wanted).max() < 1e-5
    assert np.abs(asyncio.run(bert.apredict(PAIRS)) - wanted).max() < 1e-5


def test_closed(scoring: Callable[[str], Path]) -> None:
    with Reranker(scoring("bert")) as reranker:
        reranker.open()
    with pytest.raises(EncoderError, match="reranker 'bert' is closed"):
        reranker.predict([("a", "b")])


def test_each_kind_is_opened_with_its_own_class(
    scoring: Callable[[str], Path], tiny: Callable[[str], Path]
) -> None:
    with pytest.raises(EncoderOptionError, match=r"scores pairs of texts: open it with Reranker\("):
        Encoder(scoring("bert"))
    with pytest.raises(EncoderOptionError, match=r"encodes texts: open it with Encoder\("):
        Reranker(tiny("bert"))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("ab", "a single str"),
        (["ab"], "text 0: found str of 2, expected a pair"),
        ([("a", "b"), ("a", "b", "c")], "text 1: found tuple of 3"),
        ([("a", "b"), ("a", None)], "text 1: found NoneType, expected str"),
        ([("a", "\ud800")], "text 0: found a lone surrogate"),
        ([{"a", "b"}], "text 0: found set of 2"),
    ],
)
def test_what_is_no_pair(bert: Reranker, pairs: object, message: str) -> None:
    with pytest.raises(TextError, match=message):
        bert.predict(pairs)  # type: ignore[arg-type]


def test_wrong_activations(bert: Reranker, scoring: Callable[[str], Path]) -> None:
    for wrong in ("tanh", "softmax"):
        with pytest.raises(
            EncoderOptionError, match=f"activation is '{wrong}', expected identity or sigmoid"
        ):
            bert.predict([("a", "b")], activation=wrong)
    with pytest.raises(EncoderOptionError, match="activation is 'tanh'"):
        Reranker(scoring("bert"), activation="tanh")


# --- exporting ----------------------------------------------------------------------------------------


def test_ready_onnx_file(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path, "model.safetensors", models=RERANKERS)
    shutil.copyfile(RERANKERS / "ready.onnx", folder / "model.onnx")
    reranker = Reranker(export_onnx(folder, tmp_path / "out"))
    assert (reranker.spec.architecture, reranker.spec.segments) == ("onnx", True)
    assert np.abs(reranker.predict(PAIRS) - golden("bert")["scores"]).max() < 1e-5
    edit(folder / "config.json", id2label={"0": "no", "1": "yes"})
    with pytest.raises(EncoderFilesError, match="found 1 logits, expected 2, one for each label"):
        export_onnx(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "file", "values", "message"),
    [
        (
            "bert",
            "config.json",
            {"id2label": {"0": "a", "1": "b"}},
            r"classifier\.weight.* of shape \(1, 16\)",
        ),
        ("bert", "config.json", {"id2label": {"0": "a", "2": "b"}}, "id2label = .*numbered from 0"),
        ("bert-nli", "config.json", {"id2label": dict.fromkeys("012", "a")}, "id2label = .*different names"),
        ("bert-nli", "sentence_bert_config.json", {"module_output_name": "x"}, "module_output_name = 'x'"),
        (
            "bert-nli",
            "config_sentence_transformers.json",
            {"activation_fn": "torch.nn.Tanh"},
            "activation_fn = ",
        ),
        ("bert-nli", "config_sentence_transformers.json", {"default_prompt_name": "q"}, "no prompt"),
        ("modernbert-cls", "config.json", {"classifier_pooling": "max"}, "classifier_pooling = 'max'"),
        (
            "modernbert-cls",
            "config.json",
            {"classifier_activation": "mish"},
            "classifier_activation = 'mish'",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, name: str, file: str, values: dict[str, object], message: str
) -> None:
    folder = copied(name, tmp_path, models=RERANKERS)
    edit(folder / file, **values)
    with pytest.raises(EncoderFilesError, match=message):
        export_onnx(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modules_after_a_classifier_are_refused(tmp_path: Path) -> None:
    folder = copied("bert-nli", tmp_path, models=RERANKERS)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "1_Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderFilesError, match="Dense after a Transformer that classifies"):
        export_onnx(folder, tmp_path / "out")


def test_unknown_family(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path, models=RERANKERS)
    edit(folder / "config.json", model_type="deberta-v2")
    with pytest.raises(UnsupportedArchitectureError, match="deberta-v2"):
        export_onnx(folder, tmp_path / "out")


def test_an_activation_of_other_code_counts_as_none(tmp_path: Path) -> None:
    """As in the reference, which does not run it either."""
    folder = copied("bert", tmp_path, models=RERANKERS)
    edit(folder / "config.json", sentence_transformers={"activation_fn": "evil.code.Sigmoid"})
    assert Reranker(export_onnx(folder, tmp_path / "out")).spec.activation == "sigmoid"


def test_commands_say_what_it_is(
    scoring: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scoring("bert-nli"), tmp_path / "nli")
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["encoders", "show", "nli"]).output
    assert "contradiction, entailment, neutral" in shown
    assert "prompt" not in shown
    assert "scores of pairs, 3 labels" in CliRunner().invoke(app, ["encoders", "list"]).output
