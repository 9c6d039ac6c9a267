"""Records what sentence-transformers computes for all-MiniLM-L6-v2, for the tests to compare with.

Run it in an environment with sentence-transformers (torch, CPU, float32)::

    python tests/golden/record_minilm.py MODEL_DIR

It writes ``minilm_texts.json`` and ``minilm_vectors.npy`` (float32, one row a text) beside itself.
"""

# ruff: noqa: RUF001  (texts of many scripts are the point)
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent

SENTENCE = "Postgres keeps every version of a row until no transaction can see it any more. "
TEXTS = [
    "",
    " ",
    "\n\t ",
    "a",
    "A",
    "?",
    "12345678901234567890",
    "reset my password",
    "Reset my PASSWORD!",
    "How do I compress a file?",
    "naïve café résumé",
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301",
    "Straße, Ærø, Łódź, İstanbul, ﬁle",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "こんにちは世界",
    "你好，世界。数据库很有用。",
    "안녕하세요 세계",
    "မင်္ဂလာပါ ကမ္ဘာလောက",
    "ሰላም ልዑል",
    "👋🌍 emoji 👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "∑ᵢ xᵢ² ≤ ∞, α→β, ½ ± √2",
    "x\u0000y\u0001z\u200b\ufeff\u00ad",
    "\u202eright to left\u202c",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "<s> </s> <pad> ##ing ##ed",
    "def f(x):\n    return {'a': [x, *range(10)]}  # comment\n",
    "SELECT * FROM article WHERE embedding <=> $1 < 0.5 ORDER BY 1;",
    "https://example.org/path?query=a%20b&c=d#fragment",
    "user.name+tag@example.co.uk, +49 (0)30 1234-5678",
    "C:\\Windows\\System32\\drivers\\etc\\hosts",
    "a" * 99,
    "a" * 101,
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "the " * 20,
    "word, " * 40,
    SENTENCE,
    SENTENCE * 2,
    SENTENCE * 4,
    SENTENCE * 8,
    SENTENCE * 14,
    # the limit is 256 tokens with [CLS] and [SEP]: 253, 254, 255 words and far more
    " ".join(["one"] * 253),
    " ".join(["one"] * 254),
    " ".join(["one"] * 255),
    "漢字" * 200,
    SENTENCE * 60 + "The end is cut off.",
]


def main(model_dir: str) -> None:
    """Record."""
    model = SentenceTransformer(model_dir, device="cpu")
    # one by one, so that no padding takes part
    vectors = np.stack([model.encode(text, convert_to_numpy=True) for text in TEXTS]).astype(np.float32)
    (HERE / "minilm_texts.json").write_text(json.dumps(TEXTS, indent=1) + "\n")
    np.save(HERE / "minilm_vectors.npy", vectors)
    print(len(TEXTS), vectors.shape)


if __name__ == "__main__":
    main(sys.argv[1])
