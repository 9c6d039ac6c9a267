"""The tokenizer's file, with the settings of ``tokenizer_config.json`` put into it.

In ``transformers``, ``tokenizer_config.json`` takes precedence over ``tokenizer.json`` for the side on which
texts are cut, and for how the tokenizers of BERT and RoBERTa clean and split them; the encoder's folder holds
one file with all of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.files import JsonObject

_FAMILIES = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "bert",
    "MobileBertTokenizer": "bert",
    "MPNetTokenizer": "bert",
    "RobertaTokenizer": "roberta",
}
# The family of a model's tokenizer by ``model_type``, if no file names a class.
_LIKE_BERT = (
    "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert", "mobilebert", "mpnet",
    "nezha", "nomic_bert", "qdqbert", "realm", "retribert", "squeezebert",
)  # fmt: skip
_LIKE_ROBERTA = ("data2vec-text", "ibert", "longformer", "roberta", "roberta-prelayernorm")
_FAMILIES_OF_MODELS = dict.fromkeys(_LIKE_BERT, "bert") | dict.fromkeys(_LIKE_ROBERTA, "roberta")
# Models whose tokenizers are used as their file describes them, whatever class is named.
_AS_IT_IS = ("modernbert",)
# Key in the configuration, key in the file, value if the configuration does not say.
_CLEANING = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)
_TRUNCATION = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}


def copy_tokenizer(pipeline: Pipeline, target: Path) -> None:
    """Write the tokenizer of ``pipeline`` to ``target``; a plain copy, unless its configuration differs."""
    if pipeline.first == "Transformer":
        stated = JsonObject.read(pipeline.tokenizer)
        settings = JsonObject.optional(pipeline.folder.file("tokenizer_config.json"))
        config = JsonObject.optional(pipeline.folder.file("config.json"))
        family = _family(settings, config)
        changed = _truncation(stated, settings) | _cleaning_and_splitting(family, stated, settings)
        if changed:
            text = json.dumps(dict(stated) | changed, ensure_ascii=False)
            target.write_text(text, encoding="utf-8")
            return
    shutil.copyfile(pipeline.tokenizer, target)


def _truncation(tokenizer: JsonObject, settings: JsonObject) -> dict[str, Any]:
    truncation = _TRUNCATION | dict(tokenizer.table("truncation"))
    side = settings.text("truncation_side", str(truncation["direction"])).capitalize()
    if side not in ("Left", "Right"):
        raise settings.wrong("truncation_side", needed="'left' or 'right'")
    if side == truncation["direction"]:
        return {}
    return {"truncation": truncation | {"direction": side}}


def _cleaning_and_splitting(family: str, tokenizer: JsonObject, settings: JsonObject) -> dict[str, Any]:
    """How the family's tokenizers clean and split texts, if this one's file differs."""
    wanted: dict[str, Any] = {}
    splitting = tokenizer.table("pre_tokenizer")
    if family == "bert" and tokenizer.table("model").get("type", "WordPiece") == "WordPiece":
        cleaning = {
            key: default if settings.get(name) is None else settings.flag(name)
            for name, key, default in _CLEANING
        }
        wanted["normalizer"] = {"type": "BertNormalizer", "clean_text": True} | cleaning
        wanted["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    if family == "roberta" and splitting.get("type") == "ByteLevel":
        prefix = settings.flag("add_prefix_space", False)
        wanted["pre_tokenizer"] = dict(splitting) | {"add_prefix_space": prefix}
    return {key: value for key, value in wanted.items() if tokenizer.get(key) != value}


def _family(settings: JsonObject, config: JsonObject) -> str:
    """By the class that a file names, else by the model, as ``transformers.AutoTokenizer`` chooses."""
    named = settings.text("tokenizer_class", "") or config.text("tokenizer_class", "")
    model_type = config.text("model_type", "")
    if model_type in _AS_IT_IS:
        return ""
    if not named:
        return _FAMILIES_OF_MODELS.get(model_type, "")
    return _FAMILIES.get(named.removesuffix("Fast"), "")
