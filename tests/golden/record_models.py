"""Makes small random models of every family and records what sentence-transformers computes with them.

Run it in an environment with torch, transformers and sentence-transformers::

    python tests/golden/record_models.py

It writes ``models/<name>/`` (weights in 16 bit, some tens of kB each) and ``models/<name>/golden.npz`` with
the vectors of ``TEXTS`` as documents and as queries. Between them the models use every part of the pipeline.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.models import StaticEmbedding, WordEmbeddings
from sentence_transformers.models.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

FOLDER = Path(__file__).parent / "models"
VOCABULARY = 220
TEXTS = [
    "",
    "a",
    "How do I reset my password?",
    "  Leading blanks, and UPPER case  ",
    "naïve café, Привет мир, 你好世界",
    "The printer on the second floor is on fire. " * 2,
    "Vectors are compared by their angle; the shorter text comes first. " * 6,
    "one two three four five six seven eight nine ten",
    "zebra\nnew line\tand a tab",
]
PROMPTS = {"query": "query: ", "document": "passage of text: "}


def trained(kind: str) -> Any:
    """A small tokenizer of the kind that the family uses, trained on the texts."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(tokenizer_models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special)
    elif kind == "bpe":
        tokenizer = Tokenizer(tokenizer_models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY + 150,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        tokenizer = Tokenizer(tokenizer_models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([*TEXTS, *PROMPTS.values()], trainer)
    first, last = ("[CLS]", "[SEP]") if kind == "wordpiece" else ("<s>", "</s>")
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ids)
    names = {"pad": special[0] if kind == "wordpiece" else special[1], "cls": first, "sep": last}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=48,
        **{f"{key}_token": value for key, value in names.items()},
    )


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that every part of the model matters, rounded to 16 bit."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        base = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
        scale = 0.4 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
        parameter.data = (base + scale * noise).half()
    return model.half()


def transformer(
    name: str, kind: str, config: transformers.PretrainedConfig, **options: Any
) -> models.Transformer:
    """The transformer of a pipeline, saved and loaded again as float32."""
    scratch = FOLDER / f"{name}.scratch"
    tokenizer = trained(kind)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    randomised(transformers.AutoModel.from_config(config)).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    loaded = models.Transformer(str(scratch), model_args={"dtype": torch.float32}, **options)
    shutil.rmtree(scratch)
    return loaded


def record(name: str, modules: list[torch.nn.Module], **options: Any) -> None:
    """Save the pipeline in 16 bit and the vectors that it computes in 32."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model = SentenceTransformer(modules=modules, device="cpu", **options)
    queries, documents = (
        np.stack([model.encode(text, prompt_name=prompt) for text in TEXTS])
        for prompt in (
            "query" if options.get("prompts") else None,
            "document" if options.get("prompts") else None,
        )
    )
    model.half().save(str(folder), create_model_card=False)
    for surplus in folder.glob("README.md"):
        surplus.unlink()
    np.savez_compressed(folder / "golden.npz", documents=documents, queries=queries)
    print(name, documents.shape, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def record_ready(name: str, file: str, *, opset: int) -> None:
    """The transformer of ``name`` as torch exports it to ONNX, the way it is found on the hub."""

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(
                FOLDER / name, dtype=torch.float32, attn_implementation="eager"
            ).requires_grad_(False)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 9), dtype=torch.int64)
    torch.onnx.export(
        LastHiddenState().eval(),
        (example, example, torch.zeros_like(example)),
        str(FOLDER.parent / file),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={key: {0: "texts", 1: "tokens"} for key in [*names, "last_hidden_state"]},
        opset_version=opset,
        dynamo=False,
    )


def record_router() -> None:
    """Two towers with one space: a transformer for documents, word vectors for queries."""
    sizes: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36,
        "max_position_embeddings": 50,
    }  # fmt: skip
    documents = transformer("router", "wordpiece", transformers.BertConfig(**sizes), max_seq_length=40)
    tokenizer = trained("wordpiece").backend_tokenizer
    rows = np.random.default_rng(6).normal(size=(tokenizer.get_vocab_size(), 24)).astype(np.float16)
    router = models.Router.for_query_document(
        query_modules=[StaticEmbedding(tokenizer, embedding_weights=rows.astype(np.float32))],
        document_modules=[documents, models.Pooling(24, "mean")],
    )
    folder = FOLDER / "router"
    shutil.rmtree(folder, ignore_errors=True)
    model = SentenceTransformer(modules=[router, models.Normalize()], device="cpu")
    found = {
        "documents": np.stack([model.encode_document(text) for text in TEXTS]),
        "queries": np.stack([model.encode_query(text) for text in TEXTS]),
    }
    model.half().save(str(folder), create_model_card=False)
    np.savez_compressed(folder / "golden.npz", **found)


def dense(inputs: int, outputs: int, activation: Any) -> models.Dense:
    """A dense layer with random weights."""
    layer = models.Dense(inputs, outputs, activation_function=activation)
    randomised(layer)
    return layer.float()


def main() -> None:
    """Record all."""
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "texts.json").write_text(json.dumps({"texts": TEXTS, "prompts": PROMPTS}, indent=1) + "\n")
    sizes: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36,
        "max_position_embeddings": 50,
    }  # fmt: skip
    bert = transformer("bert", "wordpiece", transformers.BertConfig(**sizes), max_seq_length=40)
    record("bert", [bert, models.Pooling(24, "mean"), models.Normalize()])

    record_ready("bert", "ready_bert.onnx", opset=13)
    record_ready("bert", "ready_bert_opset11.onnx", opset=11)
    record_router()

    every_mode = tuple(models.Pooling.POOLING_MODES)
    pooling = models.Pooling(24, every_mode, include_prompt=False)
    relu = transformer("pooling", "wordpiece", transformers.BertConfig(**sizes | {"hidden_act": "relu"}))
    record("pooling", [relu, pooling], prompts=PROMPTS)

    left = transformer("left", "wordpiece", transformers.BertConfig(**sizes | {"hidden_act": "gelu_new"}))
    left.tokenizer.padding_side = "left"
    record("left", [left, models.Pooling(24, "lasttoken"), models.Normalize()], truncate_dim=16)

    roberta = transformer("roberta", "bpe", transformers.RobertaConfig(**sizes), do_lower_case=True)
    record("roberta", [roberta, models.Pooling(24, "cls")])

    xlmr = transformer("xlm-roberta", "unigram", transformers.XLMRobertaConfig(**sizes), max_seq_length=24)
    record("xlm-roberta", [xlmr, models.Pooling(24, "mean"), models.Normalize()], prompts=PROMPTS)

    distilbert = transformers.DistilBertConfig(
        dim=24, n_layers=2, n_heads=4, hidden_dim=36, max_position_embeddings=50, sinusoidal_pos_embds=False
    )
    layers = [dense(48, 20, torch.nn.Tanh()), dense(20, 12, torch.nn.Identity()), models.Normalize()]
    record(
        "distilbert",
        [transformer("distilbert", "wordpiece", distilbert), models.Pooling(24, ("mean", "max")), *layers],
    )

    mpnet = transformer("mpnet", "bpe", transformers.MPNetConfig(**sizes | {"max_position_embeddings": 200}))
    mpnet.max_seq_length = 150
    record("mpnet", [mpnet, models.Pooling(24, "mean"), models.Normalize()])

    modernbert = transformers.ModernBertConfig(
        **sizes | {"num_hidden_layers": 4, "local_attention": 8}, attn_implementation="eager"
    )
    record(
        "modernbert",
        [transformer("modernbert", "bpe", modernbert), models.Pooling(24, "cls"), models.Normalize()],
        default_prompt_name="document",
        prompts=PROMPTS,
    )

    generator = np.random.default_rng(5)
    tokenizer = trained("wordpiece").backend_tokenizer
    rows = generator.normal(size=(tokenizer.get_vocab_size(), 24)).astype(np.float16)
    record(
        "static", [StaticEmbedding(tokenizer, embedding_weights=rows.astype(np.float32)), models.Normalize()]
    )

    words = sorted({word.strip(".,;?") for text in TEXTS for word in text.split()} | {"zebra", "reset"})
    rows = generator.normal(size=(len(words), 24)).astype(np.float16)
    splitter = WhitespaceTokenizer(words, stop_words=["the", "is", "on"])
    record(
        "words",
        [
            WordEmbeddings(
                splitter, embedding_weights=torch.from_numpy(rows.astype(np.float32)), max_seq_length=30
            ),
            models.Pooling(24, "mean"),
            dense(24, 16, torch.nn.ReLU()),
        ],
    )


if __name__ == "__main__":
    main()
