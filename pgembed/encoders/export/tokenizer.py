"""The tokenizer's file, with what its configuration says otherwise put into it.

``transformers`` lets ``tokenizer_config.json`` go before ``tokenizer.json`` in the side on which texts are
cut, and in how the tokenizers of BERT clean them; the encoder's folder holds one file that says it all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pgembed.encoders.export.config import read_json
from pgembed.encoders.export.pipeline import Pipeline

_BERT_LIKE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
# Key in the configuration, key in the file, value where the configuration says nothing.
_CLEANING = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)
_TRUNCATION = {"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}


def copy_tokenizer(pipeline: Pipeline, target: Path) -> None:
    """Write the tokenizer of ``pipeline`` to ``target``; byte by byte, unless its configuration differs."""
    settings = pipeline.folder / "tokenizer_config.json"
    if pipeline.first == "Transformer" and settings.is_file():
        stated = read_json(pipeline.tokenizer)
        effective = _effective(stated, read_json(settings))
        if effective != stated:
            target.write_text(json.dumps(effective, ensure_ascii=False), encoding="utf-8")
            return
    shutil.copyfile(pipeline.tokenizer, target)


def _effective(tokenizer: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    truncation = _TRUNCATION | (tokenizer.get("truncation") or {})
    side = str(settings.get("truncation_side", truncation["direction"])).capitalize()
    if side != truncation["direction"]:
        changed["truncation"] = truncation | {"direction": side}
    normalizer = tokenizer.get("normalizer") or {}
    like_bert = str(settings.get("tokenizer_class")).removesuffix("Fast") in _BERT_LIKE
    if like_bert and normalizer.get("type") == "BertNormalizer":
        cleaning = {key: settings.get(name, default) for name, key, default in _CLEANING}
        changed["normalizer"] = normalizer | cleaning
    return tokenizer | changed
