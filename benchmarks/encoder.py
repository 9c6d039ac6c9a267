"""How fast: Encoder beside sentence-transformers and fastembed on the same texts, in one run.

Usage, in an environment that has torch and sentence-transformers (and fastembed) as well as pgembed::

    python benchmarks/encoder.py MODEL_DIR [--rounds 5] [--texts 400]

``MODEL_DIR`` is the sentence-transformers folder of the model; all contestants compute from its weights, in
float32 on the CPU. Their runs are interleaved, so that a busy machine is unfair to none; medians are
printed, and the arithmetic done on real tokens (padding does not count) as a share of the speed of a large
matrix product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import corpus
import numpy as np

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.threads import available_threads
from pgembed.encoders.tokens import TOKENIZER_FILE, Tokenizer

Encode = Callable[[list[str]], np.ndarray]


def sgemm_speed(threads: int) -> float:
    """Floating point operations a second of a float32 matrix product, the better of torch's and numpy's."""
    import torch

    torch.set_num_threads(threads)
    left, right = (np.random.default_rng(seed).random((1536, 1536), dtype=np.float32) for seed in (0, 1))
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    best = 0.0
    for product in (lambda: tensors[0] @ tensors[1], lambda: left @ right):
        for _ in range(8):
            start = time.perf_counter()
            product()
            best = max(best, 2 * 1536**3 / (time.perf_counter() - start))
    return best


def operations(config: dict[str, int], lengths: np.ndarray) -> float:
    """Floating point operations of a transformer on texts of these many tokens."""
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    linear = 2 * lengths * (4 * width * width + 2 * width * inner)
    attention = 4 * lengths * lengths * width
    return float(layers * (linear + attention).sum())


def sentence_transformers(model_dir: Path) -> Encode:
    """The reference implementation, as users call it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_dir), device="cpu")
    return lambda texts: model.encode(texts, convert_to_numpy=True, show_progress_bar=False)


def fastembed(model_dir: Path, scratch: Path, threads: int) -> Encode | None:
    """fastembed with the same weights, in the graph that torch exports; ``None`` without fastembed."""
    try:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType
    except ImportError:
        return None
    import shutil

    import torch
    from transformers import AutoModel

    for path in model_dir.glob("*.json"):
        shutil.copyfile(path, scratch / path.name)
    transformer = AutoModel.from_pretrained(str(model_dir), attn_implementation="eager").eval()

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer.requires_grad_(False)

        def forward(self, input_ids, attention_mask, token_type_ids):  # type: ignore[no-untyped-def]
            return self.transformer(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 9), dtype=torch.int64)
    torch.onnx.export(
        LastHiddenState().eval(),
        (example, example, torch.zeros_like(example)),
        str(scratch / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        opset_version=17,
        dynamo=False,
    )
    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),
        dim=transformer.config.hidden_size,
        model_file="model.onnx",
    )
    model = TextEmbedding("local/model", specific_model_path=str(scratch), threads=threads)
    return lambda texts: np.stack(list(model.embed(texts)))


def medians(contestants: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a warm-up, one run of each in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for encode in contestants.values():
        encode(texts[: len(texts) // 4])
    for _ in range(rounds):
        for name, encode in contestants.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def installed(packages: Sequence[str]) -> str:
    """Packages and their versions."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=400)
    options = parser.parse_args()
    threads = available_threads()
    config = json.loads((options.model_dir / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "fastembed").mkdir()
        encoder = Encoder(export_onnx(options.model_dir, scratch / "encoder"))
        contestants: dict[str, Encode] = {"pgembed": encoder.encode_documents}
        contestants["sentence-transformers"] = sentence_transformers(options.model_dir)
        if other := fastembed(options.model_dir, scratch / "fastembed", threads):
            contestants["fastembed"] = other
        speed = sgemm_speed(threads)
        packages = ("torch", "sentence-transformers", "fastembed", "onnxruntime", "tokenizers", "numpy")
        print(f"{installed(packages)}; {threads} threads; sgemm {speed / 1e9:.0f} GFLOP/s")
        tokenizer = Tokenizer(scratch / "encoder" / TOKENIZER_FILE, max_tokens=encoder.max_tokens)
        kinds = {
            "short": corpus.short(2 * options.texts),
            "mixed": corpus.mixed(options.texts),
            "256 tokens": corpus.long(options.texts // 6),
        }
        print(f"{'texts':12}{'encoder':24}{'texts/s':>9}{'tokens/s':>10}{'of sgemm':>10}{'pgembed is':>12}")
        for kind, texts in kinds.items():
            lengths = tokenizer(texts).lengths
            measured = medians(contestants, texts, options.rounds)
            for name, seconds in measured.items():
                share = operations(config, lengths) / seconds / speed
                ratio = seconds / measured["pgembed"]
                print(
                    f"{kind:12}{name:24}{len(texts) / seconds:9.0f}{lengths.sum() / seconds:10.0f}"
                    f"{share:10.0%}{ratio:11.2f}x"
                )


if __name__ == "__main__":
    main()
