"""Makes small random cross-encoders of every family and records the scores of sentence-transformers.

Run it in an environment with torch, transformers, sentence-transformers and onnx::

    python tests/golden/record_rerankers.py

It writes ``rerankers/<name>/`` (weights in 16 bit), with the logits and the scores of ``PAIRS`` in
``golden.npz``. Between them the models use every head, one and several labels, and every place where a
model's files name an activation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from record_models import TEXTS, randomised, trained
from sentence_transformers import CrossEncoder
from tokenizers import processors

FOLDER = Path(__file__).parent / "rerankers"
QUERIES = ["How do I reset my password?", "", "Привет мир: 你好世界?", "one two three four five six " * 12]
#: Short and long texts on either side, and pairs of which both are cut.
PAIRS = [(query, text) for query in QUERIES for text in [*TEXTS, "zebra password " * 40]]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 50,
}  # fmt: skip


def pair_tokenizer(kind: str, *, types: bool, **options: Any) -> Any:
    """As :func:`trained`, with the pairs of the family: ``</s></s>`` or ``[SEP]`` between the texts."""
    tokenizer = trained(kind)
    first, last = tokenizer.cls_token, tokenizer.sep_token
    between = f"{last}" if kind == "wordpiece" else f"{last} {last}"
    second = 1 if types else 0
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {between} $B:{second} {last}:{second}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (first, last)],
    )
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=names,
        model_max_length=options.pop("limit", 40),
        pad_token=tokenizer.pad_token,
        cls_token=first,
        sep_token=last,
        **options,
    )


def record(
    name: str,
    kind: str,
    config: transformers.PretrainedConfig,
    *,
    types: bool = False,
    saved_by: str = "transformers",
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Save a classifier in 16 bit, and the logits and scores that it gives in 32."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = pair_tokenizer(kind, types=types, **options)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    randomised(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if extra:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | extra, indent=1) + "\n")
    encoder = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    scores = np.stack([encoder.predict(pair) for pair in PAIRS])
    logits = np.stack([encoder.predict(pair, activation_fn=torch.nn.Identity()) for pair in PAIRS])
    if saved_by == "sentence-transformers":
        shutil.rmtree(folder)
        encoder.half().save(str(folder), create_model_card=False)
    np.savez_compressed(folder / "golden.npz", scores=scores, logits=logits)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(name, encoder.activation_fn, encoder.max_seq_length, scores.shape, scores[:3].tolist(), size)


def record_ready(name: str) -> None:
    """The classifier of ``name`` as torch exports it to ONNX, the way it is found on the hub."""

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
                FOLDER / name, dtype=torch.float32, attn_implementation="eager"
            ).requires_grad_(False)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).logits

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 9), dtype=torch.int64)
    torch.onnx.export(
        Logits().eval(),
        (example, example, torch.zeros_like(example)),
        str(FOLDER / "ready.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={key: {0: "texts", 1: "tokens"} for key in names} | {"logits": {0: "texts"}},
        opset_version=17,
        dynamo=False,
    )


def main() -> None:
    """Record all."""
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "pairs.json").write_text(json.dumps(PAIRS, indent=1) + "\n")
    record("bert", "wordpiece", transformers.BertConfig(**SIZES, num_labels=1), types=True)
    record_ready("bert")
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    record(
        "bert-nli",
        "wordpiece",
        transformers.BertConfig(**SIZES, id2label=names, label2id={name: key for key, name in names.items()}),
        types=True,
        limit=39,
        saved_by="sentence-transformers",
    )
    record(
        "bert-untyped",
        "wordpiece",
        transformers.BertConfig(**SIZES, num_labels=1),
        truncation_side="left",
        extra={"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    )
    record(
        "roberta",
        "bpe",
        transformers.RobertaConfig(**SIZES, num_labels=1),
        extra={"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    )
    record("xlm-roberta", "unigram", transformers.XLMRobertaConfig(**SIZES, num_labels=1), limit=31)
    distilbert = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=50, num_labels=2
    )
    record("distilbert", "wordpiece", distilbert)
    record("mpnet", "wordpiece", transformers.MPNetConfig(**SIZES, num_labels=1))
    for pooling in ("cls", "mean"):
        config = transformers.ModernBertConfig(
            **SIZES | {"num_hidden_layers": 4, "local_attention": 8},
            attn_implementation="eager",
            num_labels=1,
            classifier_pooling=pooling,
        )
        record(f"modernbert-{pooling}", "bpe", config)


if __name__ == "__main__":
    main()
