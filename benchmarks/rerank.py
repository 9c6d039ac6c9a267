"""How fast pairs of texts are scored, beside CrossEncoder of sentence-transformers, and searches re-ranked.

Usage; without ``--rounds 0``, in an environment that has torch and sentence-transformers as well as pgembed::

    python benchmarks/rerank.py MODEL_DIR [--pairs 200] [--rounds 7] [--threads 1] [--rows 100000]
    python benchmarks/rerank.py MODEL_DIR --rounds 0 --calls 20    # the searches alone

The model has random weights and the size of MiniLM-L6 (6 layers, width 384, 30,522 words); ``MODEL_DIR`` is
that of all-MiniLM-L6-v2, whose tokenizer it takes. Both compute in float32 on the CPU, with their defaults, a
query and 50 texts after the other, once with texts of about ten words and once with whole docstrings. Rounds
are interleaved; printed are the medians of pairs per second and per second of CPU, and the median of the
rounds' ratios. On a busy machine, compare the CPU time of one thread (``--threads 1``): threads that wait for
others by spinning count as work. 0 rounds leave this out.

Then 50 candidates of ``semantic_search`` among ``--rows`` rows (clustered random vectors, HNSW, docstrings as
their texts) are re-ranked to 10, on the embedded server. 0 rows leave that out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from safetensors.numpy import load_file, save_file
from search import DIMENSIONS, Article, load, vectors
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgembed import Reranker, export_onnx, rerank, semantic_search
from pgembed.database import embedded

CANDIDATES = 50
Pairs = list[tuple[str, str]]
Predict = Callable[[Pairs], Any]


def cross_encoder(model_dir: Path, folder: Path) -> None:
    """Write a cross-encoder with random weights, of the shapes of an encoder's, and its tokenizer."""
    config = json.loads((model_dir / "config.json").read_text())
    assert [config[name] for name in ("num_hidden_layers", "hidden_size", "vocab_size")] == [6, 384, 30522]
    random = np.random.default_rng(1)
    folder.mkdir()
    weights = {}
    for name, found in load_file(model_dir / "model.safetensors").items():
        if name.endswith("LayerNorm.weight"):
            drawn = np.ones(found.shape)
        else:
            drawn = random.normal(scale=0.02, size=found.shape)
        if np.issubdtype(found.dtype, np.floating):  # not the numbers of positions
            weights["bert." + name.removeprefix("bert.")] = drawn.astype(np.float32)
    weights["classifier.weight"] = random.normal(scale=0.02, size=(1, 384)).astype(np.float32)
    weights["classifier.bias"] = np.zeros(1, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    changed = {"architectures": ["BertForSequenceClassification"], **labels}
    (folder / "config.json").write_text(json.dumps(config | changed))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, folder / name)


def kinds(number: int) -> dict[str, Pairs]:
    """Pairs by the length of their texts."""
    queries = corpus.short(number // CANDIDATES + 1)
    found = {"short": corpus.short(number), "mixed": corpus.mixed(number)}
    return {
        kind: [(queries[index // CANDIDATES], text) for index, text in enumerate(texts)]
        for kind, texts in found.items()
    }


def by_fifty(predict: Predict, pairs: Pairs) -> list[float]:
    """Scores, a query after the other."""
    starts = range(0, len(pairs), CANDIDATES)
    return [float(score) for start in starts for score in predict(pairs[start : start + CANDIDATES])]


def compare(contestants: dict[str, Predict], pairs: Pairs, rounds: int) -> None:
    """Print how fast each is; the first is compared with."""
    first, *_ = contestants
    wanted = by_fifty(contestants[first], pairs)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for name, predict in contestants.items():
        difference = np.abs(np.array(by_fifty(predict, pairs)) - wanted).max()
        assert "int8" in name or difference < 1e-5, difference
    for _ in range(rounds):
        for name, predict in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            by_fifty(predict, pairs)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, found in times.items():
        wall, cpu = (statistics.median(each) for each in zip(*found, strict=True))
        ratios = [
            tuple(base / own for base, own in zip(before, after, strict=True))
            for before, after in zip(times[first], found, strict=True)
        ]
        ratio, by_cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(
            f"  {name:24} {len(pairs) / wall:7.0f} pairs/s {len(pairs) / cpu:7.0f} pairs/CPU s "
            f"{ratio:6.2f}x {by_cpu:6.2f}x by CPU"
        )


def side_by_side(model: Path, rerankers: dict[str, Reranker], given: argparse.Namespace) -> None:
    """Print how fast pairs are scored, beside the reference."""
    import torch
    from sentence_transformers import CrossEncoder

    if given.threads:
        torch.set_num_threads(given.threads)
    reference = CrossEncoder(str(model), device="cpu")
    contestants: dict[str, Predict] = {
        "sentence-transformers": lambda pairs: reference.predict(pairs, show_progress_bar=False),
        **{name: each.predict for name, each in rerankers.items()},
    }
    for kind, pairs in kinds(given.pairs).items():
        print(f"{kind} pairs, {np.mean([len(text) for _, text in pairs]):.0f} characters a text on average")
        compare(contestants, pairs, given.rounds)


def end_to_end(rerankers: dict[str, Reranker], rows: int, calls: int) -> None:
    """Print what a re-ranked search takes."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(200, DIMENSIONS)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    texts, questions = corpus.mixed(4000), corpus.short(calls)
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder) / "postgres") as server:
        engine = create_engine(server)
        begin = time.perf_counter()
        load(engine, centres, rows, title=lambda key: texts[key % len(texts)])
        print(f"{rows} rows loaded and indexed in {time.perf_counter() - begin:.0f} s")
        with Session(engine) as session:
            seconds: dict[str, list[tuple[float, float]]] = {
                name: [] for name in ("search alone", *rerankers)
            }
            for turn, (vector, question) in enumerate(
                zip(vectors(random, centres, calls), questions, strict=True)
            ):
                statement = semantic_search(Article.embedding, vector, limit=CANDIDATES)
                for name in seconds:
                    session.expunge_all()
                    wall, cpu = time.perf_counter(), time.process_time()
                    if name in rerankers:
                        found = rerank(session, statement, question, rerankers[name], text=Article.title)
                        assert len(found) == 10
                    else:
                        assert len(session.execute(statement).all()) == CANDIDATES
                    if turn:  # the first call prepares everything
                        seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        engine.dispose()
    print(f"{CANDIDATES} of {rows} rows re-ranked, {calls - 1} calls")
    for name, times in seconds.items():
        wall, cpu = np.median(times, axis=0) * 1000
        print(f"  {name:24} p50 {wall:7.1f} ms, {cpu:7.1f} ms of the client's CPU")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of both; by default what each takes")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        cross_encoder(given.model_dir, model)
        ours = export_onnx(model, Path(folder) / "ours")
        rerankers = {
            "pgembed": Reranker(ours, threads=given.threads),
            "pgembed, int8": Reranker(ours, precision="int8", threads=given.threads),
        }
        if given.rounds:
            side_by_side(model, rerankers, given)
        if given.rows:
            end_to_end(rerankers, given.rows, given.calls)


if __name__ == "__main__":
    main()
