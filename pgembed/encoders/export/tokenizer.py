"""The tokenizer's file, with what its configuration says otherwise put into it.

``transformers`` lets ``tokenizer_config.json`` go before ``tokenizer.json`` in the side on which texts are
cut, and in how the tokenizers of BERT clean them; the encoder's folder holds one file that says it all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.settings import Settings

_BERT_LIKE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "MobileBertTokenizer")
# The class of a model's tokenizer where no file names one, by ``model_type``: those that are like BERT's.
_BERT_LIKE_MODELS = (
    "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert", "mobilebert", "mpnet",
    "nezha", "nomic_bert", "qdqbert", "realm", "retribert", "squeezebert",
)  # fmt: skip
# Key in the configuration, key in the file, value where the configuration says nothing.
_CLEANING = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)
_TRUNCATION = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}


def copy_tokenizer(pipeline: Pipeline, target: Path) -> None:
    """Write the tokenizer of ``pipeline`` to ``target``; byte by byte, unless its configuration differs."""
    if pipeline.first == "Transformer":
        stated = Settings.read(pipeline.tokenizer)
        settings = Settings.optional(pipeline.folder.file("tokenizer_config.json"))
        config = Settings.optional(pipeline.folder.file("config.json"))
        changed = _truncation(stated, settings) | _cleaning(stated, settings, config)
        if changed:
            text = json.dumps(dict(stated) | changed, ensure_ascii=False)
            target.write_text(text, encoding="utf-8")
            return
    shutil.copyfile(pipeline.tokenizer, target)


def _truncation(tokenizer: Settings, settings: Settings) -> dict[str, Any]:
    truncation = _TRUNCATION | dict(tokenizer.table("truncation"))
    side = settings.text("truncation_side", str(truncation["direction"])).capitalize()
    if side not in ("Left", "Right"):
        raise settings.wrong("truncation_side", needed="'left' or 'right'")
    if side == truncation["direction"]:
        return {}
    return {"truncation": truncation | {"direction": side}}


def _cleaning(tokenizer: Settings, settings: Settings, config: Settings) -> dict[str, Any]:
    """How a tokenizer of BERT cleans and splits texts, where its file says something else."""
    if (
        not _is_like_bert(settings, config)
        or tokenizer.table("model").get("type", "WordPiece") != "WordPiece"
    ):
        return {}
    normalizer: dict[str, Any] = {"type": "BertNormalizer", "clean_text": True}
    for name, key, default in _CLEANING:
        is_stated = settings.get(name) is not None
        normalizer[key] = settings.flag(name, False) if is_stated else default
    wanted = {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}}
    return {key: value for key, value in wanted.items() if tokenizer.get(key) != value}


def _is_like_bert(settings: Settings, config: Settings) -> bool:
    """By the class that a file names, else by the model, as ``transformers.AutoTokenizer`` chooses."""
    named = settings.text("tokenizer_class", "") or config.text("tokenizer_class", "")
    model_type = config.text("model_type", "")
    if model_type == "modernbert" or not named:
        return model_type in _BERT_LIKE_MODELS
    return named.removesuffix("Fast") in _BERT_LIKE
