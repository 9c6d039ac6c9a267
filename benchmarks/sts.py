"""How faithful: Spearman correlation on the STS Benchmark (dev), times 100.

Usage::

    python benchmarks/sts.py FOLDER [--encoder NAME_OR_PATH] [--precision fp32]

``FOLDER`` holds ``sts-dev.csv`` of the STS Benchmark (http://ixa2.si.ehu.eus/stswiki), which is not shipped.
Published for all-MiniLM-L6-v2: 86.72.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pgembed.encoders import Encoder, packaged

Numbers = npt.NDArray[np.float64]


def read(path: Path) -> tuple[Numbers, list[str], list[str]]:
    """Scores and both sentences; the file is tab-separated, without header and without quoting."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return np.array([float(row[4]) for row in rows]), [row[5] for row in rows], [row[6] for row in rows]


def ranks(values: Numbers) -> Numbers:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(left: Numbers, right: Numbers) -> float:
    """Pearson correlation of the ranks."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def measure(encoder: Encoder, folder: Path) -> tuple[float, int]:
    """Spearman of cosine against human scores, and the number of pairs."""
    scores, left, right = read(folder / "sts-dev.csv")
    vectors = encoder.encode_documents([*left, *right]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = np.einsum("ij,ij->i", vectors[: len(left)], vectors[len(left) :])
    return spearman(cosine, scores), len(scores)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with sts-dev.csv")
    parser.add_argument("--encoder", help="name or path; by default all-MiniLM-L6-v2 from its package")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    name = options.encoder or packaged("all-MiniLM-L6-v2")
    with Encoder(name, precision=options.precision) as encoder:
        correlation, pairs = measure(encoder, options.folder)
        print(f"{encoder.name}, {options.precision}: Spearman {100 * correlation:.2f} on {pairs} pairs")


if __name__ == "__main__":
    main()
