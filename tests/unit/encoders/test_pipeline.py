"""What the files of a model's folder decide, in all the ways in which they have said it over the years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.encoders import Encoder, EncoderSpec, export_onnx
from pgembed.encoders.spec import SPEC_FILE
from pgembed.encoders.text.pair_tokenizer import tokenizer_of
from pgembed.exc import EncoderError, EncoderFilesError
from tests.unit.encoders.models import MODELS, TEXTS, copied, edit

LONG = "The printer on the second floor is on fire. " * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that may be edited."""
    return copied("bert", tmp_path)


def exported(folder: Path) -> Path:
    return export_onnx(folder, folder.parent / "encoder")


def token_ids(folder: Path, text: str) -> list[int]:
    ids: list[int] = tokenizer_of(folder, EncoderSpec.load(folder / SPEC_FILE))([text]).ids.tolist()
    return ids


def modules(*kinds: str) -> str:
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": places[kind]} for kind in kinds]
    return json.dumps(listed)


def test_modules_are_in_the_order_of_the_list(folder: Path) -> None:
    """As for the reference, whatever the numbers say, which need not be there."""
    listed = json.loads((folder / "modules.json").read_text())
    for number, module in zip((5, 1, 0), listed, strict=True):
        module["idx"] = number
    del listed[1]["idx"]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert EncoderSpec.load(exported(folder) / SPEC_FILE).steps == ("normalize",)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (modules("Transformer"), "nothing after the Transformer"),
        (modules("Transformer", "Normalize", "Pooling"), "Normalize and Pooling after the Transformer"),
        ("{}", "no module as the first"),
        ("[1]", "no list of modules"),
        ('[{"type": "a.Transformer"}]', "no list of modules"),
    ],
)
def test_modules_that_give_no_vector_a_text(folder: Path, content: str, found: str) -> None:
    (folder / "modules.json").write_text(content)
    with pytest.raises(EncoderFilesError, match=found):
        exported(folder)


@pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
@pytest.mark.parametrize(("model", "place"), [("bert", "2_Normalize"), ("distilbert", "2_Dense")])
def test_modules_for_other_vectors_than_the_text_s(tmp_path: Path, model: str, place: str, key: str) -> None:
    """They would be applied to it all the same."""
    folder = copied(model, tmp_path)
    edit(folder / place / "config.json", **{key: "token_embeddings"})
    with pytest.raises(
        EncoderFilesError, match=f"a {place[2:]} for token_embeddings as {key}, expected one for"
    ):
        exported(folder)
    edit(folder / place / "config.json", **{key: "sentence_embedding"})
    assert exported(folder).is_dir()


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("use_residual", True, "use_residual"),
        ("activation_function", "torch.nn.modules.activation.Mish", "the activation"),
        ("activation_function", "evil.ReLU", "the activation 'evil.ReLU'"),
        ("activation_function", None, "the activation None"),
        ("in_features", 24, "in_features = 24, expected 48"),
        ("out_features", 21, "of shape"),
        ("bias", False, "bias = False"),
    ],
)
def test_dense_layers_that_are_others(tmp_path: Path, key: str, value: object, found: str) -> None:
    folder = copied("distilbert", tmp_path)
    edit(folder / "2_Dense" / "config.json", **{key: value})
    with pytest.raises(EncoderFilesError, match=found):
        exported(folder)


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_limit_of_a_transformer(folder: Path, file: str) -> None:
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / file, max_seq_length=12, do_lower_case=True)
    spec = EncoderSpec.load(exported(folder) / SPEC_FILE)
    assert (spec.max_tokens, spec.lowercase) == (12, True)


def test_limit_of_a_static_model_is_that_of_its_tokenizer(tmp_path: Path) -> None:
    folder = copied("static", tmp_path)
    edit(folder / "tokenizer_config.json", model_max_length=5)
    assert len(token_ids(exported(folder), LONG)) > 20
    cut = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=cut)
    assert len(token_ids(exported(folder), LONG)) == 7


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_texts_are_cut_on_the_left(folder: Path, file: str) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=40)
    whole = token_ids(exported(folder), LONG[:80])
    edit(folder / "sentence_bert_config.json", max_seq_length=12)
    if file == "tokenizer.json":
        truncation = json.loads((folder / file).read_text())["truncation"]
        edit(folder / file, truncation=truncation | {"direction": "Left"})
    else:
        edit(folder / file, truncation_side="left")
    assert token_ids(exported(folder), LONG[:80]) == [whole[0], *whole[-11:]]
    words = "fire " * 5000 + LONG[:80]  # long enough for only the beginning to be tokenised otherwise
    assert token_ids(exported(folder), words) == [whole[0], *whole[-11:]]


def test_how_the_tokenizer_of_bert_cleans_texts(folder: Path) -> None:
    unchanged = exported(folder)
    assert (unchanged / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert token_ids(unchanged, "PRINTER é") == token_ids(unchanged, "printer e")
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizerFast", do_lower_case=False)
    assert token_ids(exported(folder), "PRINTER") != token_ids(exported(folder), "printer")
    edit(folder / "tokenizer_config.json", do_lower_case=True, strip_accents=False)
    assert token_ids(exported(folder), "é") != token_ids(exported(folder), "e")


CASED = [2, 1, 1, 43, 44, 1, 3]
LOWERED = [2, 128, 14, 43, 44, 186, 3]
WITH_ACCENTS = [2, 128, 1, 43, 44, 1, 3]
CHINESE_TOGETHER = [2, 128, 14, 1, 186, 3]
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("model", "settings", "config", "tokenizer", "ids"),
    [
        ("bert", None, {}, {}, LOWERED),
        ("bert", {}, {}, {}, LOWERED),
        ("bert", {"do_lower_case": False}, {}, {}, CASED),
        ("bert", {"strip_accents": False}, {}, {}, WITH_ACCENTS),
        ("bert", {"tokenize_chinese_chars": False}, {}, {}, CHINESE_TOGETHER),
        ("bert", {}, {}, {"normalizer": None}, LOWERED),
        ("bert", {}, {}, {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Whitespace"}}, LOWERED),
        ("bert", {"do_lower_case": False}, {"tokenizer_class": "BertTokenizer"}, {}, CASED),
        ("bert", {"do_lower_case": False}, {"tokenizer_class": "PreTrainedTokenizerFast"}, {}, LOWERED),
        ("distilbert", {"do_lower_case": False}, {}, {}, CASED),
        ("modernbert", {"tokenizer_class": "BertTokenizer", "add_prefix_space": True}, {}, {}, [0, 52, 54]),
        ("roberta", {}, {}, {"normalizer": None}, [0, 52, 54]),
        ("roberta", {"add_prefix_space": True}, {}, {"normalizer": None}, [0, 225, 52]),
        ("roberta", {}, {}, {"normalizer": None, "pre_tokenizer": PREFIXED}, [0, 52, 54]),
    ],
)
def test_tokenizers_whose_class_the_model_decides(
    tmp_path: Path,
    model: str,
    settings: dict[str, Any] | None,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    ids: list[int],
) -> None:
    """The token ids are those of ``transformers.AutoTokenizer`` (5.24) for the same folders."""
    folder = copied(model, tmp_path)
    path = folder / "tokenizer_config.json"
    stated = {
        k: v for k, v in json.loads(path.read_text()).items() if k not in ("tokenizer_class", "backend")
    }
    path.unlink() if settings is None else path.write_text(json.dumps(stated | settings))
    edit(folder / "config.json", **config)
    edit(folder / "tokenizer.json", **tokenizer)
    edit(folder / "sentence_bert_config.json", do_lower_case=False)
    assert token_ids(exported(folder), "PRINTER é 你好 naïve")[: len(ids)] == ids


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "q: "}, "query", "q: ", ""),
        ({"passage": "p: "}, "passage", "", "p: "),
        ({"query": "q: ", "passage": "p: "}, None, "q: ", "p: "),
        ({"corpus": "c: "}, None, "", "c: "),
        ({"query": "q: ", "document": "", "passage": "p: "}, "query", "q: ", ""),
        ({"query": None, "other": "o: "}, "other", "", "o: "),
        ({}, None, "", ""),
    ],
)
def test_prompts(
    folder: Path, prompts: dict[str, str], default: str | None, query: str, document: str
) -> None:
    path = folder / "config_sentence_transformers.json"
    edit(path, prompts=prompts, default_prompt_name=default)
    spec = EncoderSpec.load(exported(folder) / SPEC_FILE)
    assert (spec.query_prompt, spec.document_prompt) == (query, document)


def test_an_encoder_is_no_model(folder: Path) -> None:
    """Its graph would be taken for a ready one, without its prompts and limits."""
    encoder = exported(folder)
    with pytest.raises(EncoderFilesError, match="an encoder, which has been exported already"):
        export_onnx(encoder, folder.parent / "again")


def test_more_dimensions_than_there_are(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", truncate_dim=1000)
    spec = EncoderSpec.load(exported(folder) / SPEC_FILE)
    assert spec.dimensions == spec.width


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("1_Pooling/config.json", "pooling_mode", 3, "pooling mode is '3'"),
        ("config_sentence_transformers.json", "prompts", "query: ", "found prompts = 'query: '"),
        ("config.json", "hidden_act", ["gelu"], r"found hidden_act = \['gelu'\]"),
    ],
)
def test_values_of_another_kind(folder: Path, file: str, key: str, value: object, message: str) -> None:
    edit(folder / file, **{key: value})
    with pytest.raises(EncoderError, match=message):
        exported(folder)


def test_router_in_a_subfolder(tmp_path: Path) -> None:
    """Its towers are found there too."""
    folder = copied("router", tmp_path)
    (folder / "0_Router").mkdir()
    for path in (*folder.glob("query_*"), *folder.glob("document_*"), folder / "router_config.json"):
        path.rename(folder / "0_Router" / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Router"
    (folder / "modules.json").write_text(json.dumps(listed))
    golden = np.load(MODELS / "router" / "golden.npz")
    encoder = Encoder(exported(folder))
    assert np.abs(encoder.encode_queries(TEXTS) - golden["queries"]).max() < 1e-5
    assert np.abs(encoder.encode_documents(TEXTS) - golden["documents"]).max() < 1e-5


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"types": {}}', "no router"),
        ('{"structure": {"document": ["a"]}, "types": {}}', "no router"),
        ('{"structure": {"query": ["a"]}, "types": {"a": "b.C"}}', "the routes query"),
    ],
)
def test_damaged_router(tmp_path: Path, content: str, found: str) -> None:
    folder = copied("router", tmp_path)
    (folder / "router_config.json").write_text(content)
    with pytest.raises(EncoderFilesError, match=found):
        exported(folder)


def test_last_token_of_texts_that_are_all_prompt(folder: Path) -> None:
    """Zeros, as in the reference, and not the values in the padding."""
    edit(folder / "1_Pooling" / "config.json", pooling_mode="lasttoken", include_prompt=False)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", post_processor=None, truncation=tokenizer["truncation"])
    edit(folder / "config_sentence_transformers.json", prompts={"document": "passage of text"})
    encoder = Encoder(exported(folder))
    assert not encoder.encode_documents(["", LONG])[0].any()
    assert np.abs(encoder.encode_documents([LONG])[0]).max() > 0
